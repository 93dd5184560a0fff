"""Scores unlabelled images by catastrophic forgetting, for pre-training on the best of them.

``python -m tools.cfs --config_file FILE --before PRETRAINED --after FINETUNED --out list.txt [KEY VALUE ...]``

The score of an image is the cosine similarity of two features, before and after a pre-trained network was fine-tuned
with labels: images whose features hardly change are close to the labelled data (TransReID-SSL, arXiv:2111.12084). The
images are those that DATASETS.NAMES trains on. The list has their names, best first, one per line (as
DATASETS.FILTER_PATH reads them); beside it ``NAME.scores.npy`` holds the scores, float32, in the same order.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

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
from utils.checkpoint import load_pretrained, require_complete
from utils.commands import make_parser, run_command
from utils.device import choose_device
from utils.distributed import is_main, start, stop
from utils.errors import UserError
from utils.files import write_atomically, write_lines

log = logging.getLogger("lineup")


class Forgetting(nn.Module):
    """Computes the cosine similarity of an image's features from two networks. (B, 3, H, W) -> (B, 1), in -1 to 1."""

    def __init__(self, before: nn.Module, after: nn.Module):
        super().__init__()
        self.before, self.after = before, after

    def forward(self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None) -> Tensor:
        return F.cosine_similarity(self.before(images), self.after(images), dim=1)[:, None]


def sorted_by_score(names: list[str], scores: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Returns names and scores in descending order of the scores; equal ones keep their order."""
    order = np.argsort(-scores, kind="stable")
    return [names[i] for i in order.tolist()], scores[order]


def load_backbone(cfg: CfgNode, path: str) -> nn.Module:
    """Returns the configured backbone with the weights of a file: of a backbone, a DINO run, or a whole ReID model."""
    backbone = make_backbone(cfg, 0, 0)
    report = load_pretrained(backbone, path, cfg.MODEL.PRETRAIN_HW_RATIO)
    log.info("%s", report)
    require_complete(backbone, report)
    return backbone


def scored_images(cfg: CfgNode) -> tuple[Records, str]:
    """Returns the training images of DATASETS.NAMES, and the folder that a filter's names are relative to."""
    sources = [make_dataset(n, cfg.DATASETS.ROOT_DIR, **dataset_options(cfg, n)) for n in names_of(cfg.DATASETS.NAMES)]
    if len(sources) == 1 and sources[0].spec.name in LIST_FOLDERS:
        return sources[0].train, str(sources[0].folder / LIST_FOLDERS[sources[0].spec.name])
    return join_training([source.train for source in sources]), cfg.DATASETS.ROOT_DIR


def write_list(path: Path, names: list[str], scores: np.ndarray) -> None:
    """Writes the list and its scores, each whole or not at all."""
    write_lines(path, (f"{name}\n" for name in names))
    write_atomically(path.with_name(f"{path.name}.scores.npy"), lambda handle: np.save(handle, scores))


def score_images(cfg: CfgNode, before: str, after: str, out: Path) -> tuple[list[str], np.ndarray]:
    """Scores the images, writes the list, and returns names and scores, best first."""
    device = choose_device(cfg.MODEL.DEVICE)
    start(device)
    try:
        records, root = scored_images(cfg)
        networks = Forgetting(load_backbone(cfg, before), load_backbone(cfg, after)).to(device)
        similarities = extract_features(networks, feature_loader(cfg, records), device)[:, 0].numpy()
        names, scores = sorted_by_score(relative_names(records, root), similarities)
        if is_main():
            write_list(out, names, scores)
    finally:
        stop()
    return names, scores


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    example = "--config_file configs/dino/vit_small_lup.yml --before lup20.pth --after mm.pth --out LUP/CFS_list.txt"
    parser = make_parser("python -m tools.cfs", __doc__, example, settings=True)
    parser.add_argument("--before", required=True, metavar="PATH", help="weights before fine-tuning")
    parser.add_argument("--after", required=True, metavar="PATH", help="weights after fine-tuning")
    parser.add_argument("--out", required=True, type=Path, metavar="PATH", help="list to write, a text file")
    args = parser.parse_args(argv)
    if args.out.suffix == ".pkl":
        raise UserError(f"--out: {args.out}: the list is written as text, one name per line; name it .txt")
    names, scores = score_images(load_config(args.config_file, args.opts), args.before, args.after, args.out)
    if is_main():
        middle = float(np.median(scores))
        print(f"{args.out}: {len(names)} images, scores {scores[0]:.3f} to {scores[-1]:.3f}, median {middle:.3f}")


if __name__ == "__main__":
    run_command(main)
