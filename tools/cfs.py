"""Catastrophic-forgetting scores of unlabelled images, and the list that pre-training keeps the best of.

``python -m tools.cfs --config_file FILE --before PRETRAINED --after FINETUNED --out list.txt [KEY VALUE ...]``

The score of an image is the cosine similarity of two features, before and after a pre-trained network was fine-tuned
with labels: what fine-tuning leaves as it was lies close to the labelled data (TransReID-SSL, arXiv:2111.12084). The
images are those that DATASETS.NAMES trains on. Written are their names, best first, one a line (as DATASETS.FILTER_PATH
reads them), and beside them ``NAME.scores.npy``, float32, in the same order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from configs import load_config
from datasets import make_dataset
from datasets.joining import join_training
from datasets.loaders import feature_loader
from datasets.options import dataset_options, names_of
from datasets.readers.filter_list import relative_names
from datasets.readers.unlabelled import LIST_FOLDERS
from datasets.records import Records
from model.make_model import make_backbone
from processor.evaluate import extract_features
from utils.checkpoint import load_complete, load_pretrained
from utils.commands import make_parser, run_command
from utils.device import choose_device
from utils.distributed import is_main, start, stop
from utils.errors import UserError
from utils.files import write_atomically


class Forgetting(nn.Module):
    """Cosine similarity of an image's features from two networks. (B, 3, H, W) -> (B, 1), in -1 to 1."""

    def __init__(self, before: nn.Module, after: nn.Module):
        super().__init__()
        self.before, self.after = before, after

    def forward(self, images: Tensor, cam_label=None, view_label=None) -> Tensor:
        return F.cosine_similarity(self.before(images), self.after(images), dim=1)[:, None]


def ranked(names: list[str], scores: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names and scores by falling score; equal ones keep their order."""
    order = np.argsort(-scores, kind="stable")
    return [names[i] for i in order.tolist()], scores[order]


def load_backbone(cfg, path: str) -> nn.Module:
    """A backbone of the configuration with a file's weights: a bare one, a DINO checkpoint, or a whole ReID model's."""
    backbone = make_backbone(cfg, 0, 0)
    load_complete(backbone, path, cfg.MODEL.PRETRAIN_HW_RATIO, load=load_pretrained)
    return backbone


def images_of(cfg) -> tuple[Records, str]:
    """The training images of DATASETS.NAMES, and the folder that a filter's names are relative to."""
    sources = [make_dataset(n, cfg.DATASETS.ROOT_DIR, **dataset_options(cfg, n)) for n in names_of(cfg.DATASETS.NAMES)]
    if len(sources) == 1 and sources[0].spec.name in LIST_FOLDERS:
        return sources[0].train, str(sources[0].folder / LIST_FOLDERS[sources[0].spec.name])
    return join_training([source.train for source in sources]), cfg.DATASETS.ROOT_DIR


def write_list(path: Path, names: list[str], scores: np.ndarray) -> None:
    """The list and its scores, each whole or not at all."""
    write_atomically(path, lambda handle: handle.write("".join(f"{name}\n" for name in names).encode()))
    write_atomically(path.with_name(f"{path.name}.scores.npy"), lambda handle: np.save(handle, scores))


def score(cfg, before: str, after: str, out: Path) -> tuple[list[str], np.ndarray]:
    """Scores the images, writes the list, and returns names and scores, best first."""
    device = choose_device(cfg.MODEL.DEVICE)
    start(device)
    try:
        records, root = images_of(cfg)
        networks = Forgetting(load_backbone(cfg, before), load_backbone(cfg, after)).to(device)
        found = extract_features(networks, feature_loader(cfg, records), device)
        names, scores = ranked(relative_names(records, root), found[:, 0].numpy())
        if is_main():
            write_list(out, names, scores)
    finally:
        stop()
    return names, scores


def main(argv: list[str] | None = None) -> None:
    """The command."""

    example = "--config_file configs/dino/vit_small_lup.yml --before lup20.pth --after mm.pth --out LUP/CFS_list.txt"
    parser = make_parser("python -m tools.cfs", __doc__, example, settings=True)
    parser.add_argument("--before", required=True, metavar="PATH", help="weights before fine-tuning")
    parser.add_argument("--after", required=True, metavar="PATH", help="weights after fine-tuning")
    parser.add_argument("--out", required=True, type=Path, metavar="PATH", help="list to write, a text file")
    args = parser.parse_args(argv)
    if args.out.suffix == ".pkl":
        raise UserError(f"--out: {args.out}: the list is written as text, one name a line; name it .txt")
    names, scores = score(load_config(args.config_file, args.opts), args.before, args.after, args.out)
    if is_main():
        middle = float(np.median(scores))
        print(f"{args.out}: {len(names)} images, scores {scores[0]:.3f} to {scores[-1]:.3f}, median {middle:.3f}")


if __name__ == "__main__":
    run_command(main)
