"""Ranks a gallery by a sentence: ``python -m tools.text_query --config_file F --text "a red car" TEST.WEIGHT W``.

For models of the prompt method, whose image features stay comparable to text. The sentence's words are looked up in the
token embedding of the CLIP that training started from (MODEL.PRETRAIN_PATH, or fetched), which checkpoints do not hold.
Prints the images that are nearest by cosine; ``--out`` writes them as a CSV too.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn

from configs import load_config
from datasets.loaders import make_dataloader
from model import make_model
from model.pretrained import pretrained_source
from processor.methods.prompt import image_features
from utils.checkpoint import LoadReport, as_tensors, load_complete
from utils.commands import make_parser, run_command
from utils.device import choose_device
from utils.errors import UserError
from utils.files import write_atomically


@torch.no_grad()
def sentence_features(model: nn.Module, table: Tensor, sentences: list[str]) -> Tensor:
    """Text features (S, P) of free sentences. table: CLIP's token embedding (V, W)."""
    ids = open_clip.tokenize(sentences, context_length=len(model.text_encoder.positional_embedding))
    if table.shape[1] != model.text_encoder.width or len(table) <= int(ids.max()):
        raise UserError(
            f"MODEL.PRETRAIN_PATH: its token embedding of {tuple(table.shape)} is not that of the model's text tower"
        )
    device = next(model.parameters()).device
    return model.text_encoder(table.float()[ids].to(device), ids.argmax(1).to(device))


def token_table(cfg) -> Tensor:
    """The token embedding (V, W) of the CLIP that MODEL.PRETRAIN_PATH names."""

    state, name = as_tensors(pretrained_source(cfg))
    found = [value for key, value in state.items() if key.endswith("token_embedding.weight")]
    if not found:
        raise UserError(f"{name}: holds no token embedding; name the CLIP that training started from")
    return found[0]


def refuse_without_text(cfg) -> None:
    """Raises ``UserError`` for a method whose models no sentence can search."""
    if cfg.PROCESSOR.NAME != "prompt":
        raise UserError(
            f"PROCESSOR.NAME: {cfg.PROCESSOR.NAME!r} trains no model that a sentence can search; 'prompt' does"
        )


def refuse_mute(cfg, report: LoadReport) -> None:
    """Raises ``UserError`` where the weights that were loaded hold no text tower."""
    if any(key.startswith("text_encoder.") for key in (*report.missing, *report.mismatched)):
        raise UserError(
            f"TEST.WEIGHT: {cfg.TEST.WEIGHT} holds no text tower of this architecture; nothing to read with"
        )


def rank_by_text(cfg, sentence: str) -> list[tuple[float, str, str, int, int]]:
    """(cosine, dataset, path, pid, camid) of every gallery image of the test sets, best first."""

    refuse_without_text(cfg)
    if not Path(cfg.TEST.WEIGHT).is_file():
        raise UserError(f"TEST.WEIGHT: {cfg.TEST.WEIGHT or 'is empty'}: no such file; name a stage-2 checkpoint")
    table = token_table(cfg)
    data = make_dataloader(cfg, training=False)
    model = make_model(cfg, data.num_classes, data.num_cameras, data.num_views, data.kind)
    report = load_complete(model, cfg.TEST.WEIGHT)
    refuse_mute(cfg, report)
    model.to(choose_device(cfg.MODEL.DEVICE)).eval()
    wanted = sentence_features(model, table, [sentence])[0].float()
    rows = []
    for test in data.tests:
        feats = image_features(model, test.loader, side=True).float().to(wanted.device)
        cosines = torch.cosine_similarity(feats, wanted[None]).tolist()[0 if test.same_list else len(test.query) :]
        gallery = test.query if test.same_list else test.gallery
        rows += [
            (cosine, test.name, str(gallery.paths[i]), gallery.original_pids()[i], gallery.original_camids()[i])
            for i, cosine in enumerate(cosines)
        ]
    return sorted(rows, key=lambda row: -row[0])


def main(argv: list[str] | None = None) -> None:
    """The command."""

    example = '--config_file configs/clip_reid/veri_vit_prom.yml --text "a red car" TEST.WEIGHT ViT-B-16_60.pth'
    parser = make_parser("python -m tools.text_query", __doc__, example, settings=True)
    parser.add_argument("--text", required=True, help="the sentence")
    parser.add_argument("--top", type=int, default=10, help="how many images")
    parser.add_argument("--out", type=Path, help="CSV file for them")
    args = parser.parse_args(argv)
    if args.top < 1:
        raise UserError(f"--top: {args.top} is no number of images")
    rows = rank_by_text(load_config(args.config_file, args.opts), args.text)[: args.top]
    for cosine, name, path, pid, camid in rows:
        print(f"{cosine:7.4f}  {name}  {pid!s:>6}  {camid!s:>3}  {path}")
    if args.out:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["cosine", "dataset", "path", "pid", "camid"])
        writer.writerows([f"{row[0]:.6f}", *row[1:]] for row in rows)
        write_atomically(args.out, lambda handle: handle.write(text.getvalue().encode()))


if __name__ == "__main__":
    run_command(main)
