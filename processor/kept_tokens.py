"""Which tokens an MSViT looks at: ``python -m processor.kept_tokens --config_file FILE --out FILE TEST.WEIGHT PATH``.

A column per image, queries of the first test set evenly spaced, a row per stage with attention: a cross on the token
that asks, a ring on every token of its window, filled from yellow to red by the share of heads that keep it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from model.backbones.msvit import WindowAttention
from model.sparse_attention import attention_weights
from utils.checkpoint import write_atomically
from utils.commands import make_parser
from utils.errors import UserError


class Stage:
    """The last attention of a stage and what it was given."""

    def __init__(self, module: WindowAttention):
        self.module, self.maps = module, ()
        module.register_forward_pre_hook(self.keep)

    def keep(self, module: nn.Module, maps: tuple[Tensor, ...]) -> None:
        self.maps = maps[:2]

    def looked_at(self, place: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each image: the token at ``place`` (shares of height and width), its window's tokens, and who keeps them.

        Returns (2,) and (N, 2) rows and columns as shares of the image, and (B, N) shares of the heads.
        """
        q, k = self.maps
        (rows, columns), (height, width) = self.module.attention.split, q.shape[2:]
        down, across = height // rows, width // columns
        row, column = int(place[0] * height), int(place[1] * width)
        window, token = (row % down) * across + column % across, (row // down) * columns + column // across
        weights = attention_weights(q, k, self.module.logit_scale, (rows, columns), self.module.attention.ratio)
        grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)
        tokens = (grid * (down, across) + (row % down, column % across) + 0.5) / (height, width)
        return tokens[token], tokens, (weights[:, window, :, token] > 0).float().mean(1).cpu().numpy()


def last_attentions(model: nn.Module) -> dict[str, WindowAttention]:
    """Stage -> its last attention."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, WindowAttention):
            found[next(word for word in name.split(".") if word.startswith("layer"))] = module
    return found


def draw(images: np.ndarray, rows: dict[str, tuple], out: Path) -> None:
    """images: (B, H, W, 3) in 0..1. rows: stage -> what ``Stage.looked_at`` gives."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count, height, width = images.shape[:3]
    figure = Figure(figsize=(1.4 * count, 1.3 * len(rows) * height / width), dpi=80, layout="constrained")
    for i, (stage, (asking, tokens, shares)) in enumerate(rows.items()):
        for j, image in enumerate(images):
            axes = figure.add_subplot(len(rows), count, i * count + j + 1)
            axes.imshow(image)
            (y, x), share = (tokens * (height, width) - 0.5).T, shares[j]
            colours = np.stack([np.ones_like(share), 1 - share, 0 * share, 1.0 * (share > 0)], 1)
            axes.scatter(x, y, s=22, c=colours, edgecolors="white", linewidths=0.5)
            axes.plot(asking[1] * width - 0.5, asking[0] * height - 0.5, "x", color="cyan", markersize=7)
            axes.set_xticks([]), axes.set_yticks([])
            if j == 0:
                axes.set_ylabel(stage)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(128)
    write_atomically(out, lambda handle: picture.save(handle, "PNG", optimize=True))


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    """The command."""
    from configs import load_config
    from datasets.decoding import load_image
    from datasets.loaders import make_dataloader
    from datasets.transforms import build_transforms
    from model import make_model
    from utils.checkpoint import load_weights

    example = "--config_file configs/msvit/eth80.yml --out tokens.png TEST.WEIGHT runs/eth80/msvit_s_60.pth"
    parser = make_parser("python -m processor.kept_tokens", __doc__, example, settings=True)
    parser.add_argument("--out", type=Path, required=True, help="picture to write (.png)")
    parser.add_argument("--images", type=int, default=6, help="how many (6)")
    parser.add_argument("--at", type=float, nargs=2, default=(0.35, 0.5), help="the token: shares of height, width")
    args = parser.parse_args(argv)
    if not all(0 <= share < 1 for share in args.at) or args.images < 1:
        raise UserError("--at: expected two shares from 0 up to below 1, and --images at least 1")
    cfg = load_config(args.config_file, args.opts)
    data = make_dataloader(cfg, training=False)
    model = make_model(cfg, data.num_classes).eval()
    stages = {name: Stage(module) for name, module in last_attentions(model).items()}
    if not stages:
        raise UserError(f"MODEL.NAME: {cfg.MODEL.NAME!r} has no window attention to draw; msvit_s and msvit_l have")
    if cfg.TEST.WEIGHT:
        print(load_weights(model, cfg.TEST.WEIGHT))
    query, transform = data.tests[0].query, build_transforms(cfg, is_train=False)
    chosen = np.linspace(0, len(query) - 1, args.images).astype(int)
    boxes = [None if query.boxes is None else query.boxes[i] for i in chosen]
    images = torch.stack([transform(load_image(query.paths[i], b)) for i, b in zip(chosen, boxes, strict=True)])
    model(images)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    pixels = (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    draw(pixels, {name: stage.looked_at(tuple(args.at)) for name, stage in stages.items()}, args.out)
    print(args.out)


if __name__ == "__main__":
    from processor.command import guarded

    guarded(main)
