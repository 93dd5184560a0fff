"""Draws pictures of what a model does: ``python -m tools.pictures --config_file FILE TEST.WEIGHT PATH``.

They go into OUTPUT_DIR/pictures, where the run's report finds them:

attention   ViT and CLIP towers: attention of the class token in the last block, and rolled out over all blocks
activation  convolutional networks: mean over channels of the squared last map
tokens      MSViT: the tokens that its sparse attention keeps
map         features of some identities in two dimensions (t-SNE)
sheet       a contact sheet of every dataset, the built-in ones included

The images are queries of the first test set, evenly spaced. A kind that does not apply to the network is left out, or
refused if ``--only`` names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from yacs.config import CfgNode

from configs import load_config
from datasets.loaders import Data, feature_loader, make_dataloader
from datasets.records import Records, join
from datasets.storage.pillow_decoding import load_image
from datasets.storage.pixels import PixelRules
from datasets.transforms.pipelines import build_transforms
from model import RetrievalModel
from processor.evaluate import extract_features
from processor.trained import output_folder, tested_model
from tools.pages.attention_maps import attentions, channel_energy, last_attention, last_map, roll_out
from tools.pages.kept_tokens import draw_tokens, last_attentions, watched
from tools.pages.sheet import contact_sheet
from tools.report import PICTURE_INDEX, PICTURES, write_report
from utils.commands import make_parser, run_command
from utils.device import choose_device
from utils.errors import UserError
from utils.files import write_atomically, write_json
from utils.folder_lock import sole_user
from utils.scoring.embedding import in_plane, rows_to_show

KINDS = ("attention", "activation", "tokens", "map", "sheet")
GAP, TITLE, HEIGHT = 6, 92, 176
"""Pixels between images, of the titles' column, and of an image."""


@dataclass(frozen=True)
class Picture:
    """A file in the folder of pictures, with its texts on a page. alt: the alternative text."""

    kind: str
    file: str
    title: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Samples:
    """The images that are drawn. images: (B, 3, H, W), the network's input; pixels: the same as (B, H, W, 3) in 0..1.

    labels: cameras and views, as the network's forward takes them.
    """

    images: Tensor
    pixels: np.ndarray
    labels: dict[str, Tensor]


def load_samples(cfg: CfgNode, records: Records, count: int, device: torch.device) -> Samples:
    """Reads ``count`` images of a list, evenly spaced."""
    rows = np.unique(np.linspace(0, len(records) - 1, min(count, len(records))).astype(int))
    some, transform = records.take(rows), build_transforms(cfg, is_train=False)
    boxes = [None] * len(some) if some.boxes is None else some.boxes
    rules = PixelRules.from_cfg(cfg)
    images = torch.stack([transform(load_image(path, box, rules)) for path, box in zip(some.paths, boxes, strict=True)])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    pixels = (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    labels = {"cam_label": torch.from_numpy(some.cam_labels), "view_label": torch.from_numpy(some.view_labels)}
    return Samples(images.to(device), pixels, {name: label.to(device) for name, label in labels.items()})


def overlaid(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Returns images with heat over them, dark blue to yellow. pixels: (B, H, W, 3) in 0..1. heat: (B, h, w)."""
    from matplotlib import colormaps

    out = np.empty_like(pixels)
    for image, values, target in zip(pixels, heat.astype(np.float32), out, strict=True):
        scaled = (values - values.min()) / max(float(np.ptp(values)), 1e-12)
        large = Image.fromarray(scaled).resize(image.shape[1::-1], Image.Resampling.BICUBIC)
        colour = colormaps["plasma"](np.asarray(large).clip(0, 1))[..., :3]
        target[:] = 0.4 * image.mean(-1, keepdims=True) + 0.6 * colour
    return out


def save_rows(rows: dict[str, np.ndarray], path: Path) -> None:
    """Saves a picture with a column per image. rows: title -> images (B, H, W, 3) in 0..1."""
    height, width = next(iter(rows.values())).shape[1:3]
    size = max(round(HEIGHT * width / height), 1), HEIGHT
    count = len(next(iter(rows.values())))
    sheet = Image.new("RGB", (TITLE + count * (size[0] + GAP), len(rows) * (size[1] + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, (title, images) in enumerate(rows.items()):
        top = GAP + i * (size[1] + GAP)
        pen.text((GAP, top + size[1] // 2 - 12), title, fill="black", font=font)
        for j, image in enumerate(images):
            cell = Image.fromarray((255 * image).round().astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
            sheet.paste(cell, (TITLE + j * (size[0] + GAP), top))
    save_png(sheet, path)


def save_png(picture: Image.Image, path: Path) -> None:
    """Saves a PNG of 256 colours, chosen from a ninth of the pixels: from all of them it takes five times as long."""
    full = picture.convert("RGB")
    some = full.resize((full.width // 3 + 1, full.height // 3 + 1), Image.Resampling.NEAREST)
    small = full.quantize(palette=some.quantize(256), dither=Image.Dither.NONE)
    write_atomically(path, lambda handle: small.save(handle, "PNG", optimize=True))


def draw_attention(model: RetrievalModel, samples: Samples, folder: Path) -> Picture | None:
    """Draws the attention of a transformer; None for other networks."""
    weights, layout = attentions(model, samples.images, **samples.labels), model.token_layout()
    if not weights or layout is None:
        return None
    heats = {"last block": last_attention(weights, layout), "roll-out": roll_out(weights, layout)}
    rows = {"image": samples.pixels} | {n: overlaid(samples.pixels, h.cpu().numpy()) for n, h in heats.items()}
    save_rows(rows, folder / "attention.png")
    attending = "the class token" if layout.by_class else "all patches"
    return Picture(
        "attention", "attention.png", "Where the network looks",
        f"Attention of {attending}, mean over heads, yellow is most: in the last block, and rolled out over all "
        f"{len(weights)} blocks (Abnar and Zuidema, 2020).",
        f"{len(samples.pixels)} query images, below each its attention in the last block and rolled out",
    )  # fmt: skip


def draw_activation(model: RetrievalModel, samples: Samples, folder: Path) -> Picture | None:
    """Draws the last map of a convolutional network; None for other networks."""
    maps = last_map(model, samples.images, **samples.labels)
    if maps is None:
        return None
    heat = overlaid(samples.pixels, channel_energy(maps).cpu().numpy())
    save_rows({"image": samples.pixels, "activation": heat}, folder / "activation.png")
    return Picture(
        "activation", "activation.png", "Where the last map is strong",
        f"Mean over the channels of the squared last map ({maps.shape[2]} x {maps.shape[3]} cells), yellow is most.",
        f"{len(samples.pixels)} query images, below each the strength of the network's last map",
    )  # fmt: skip


def draw_kept_tokens(model: RetrievalModel, samples: Samples, folder: Path, at: tuple[float, float]) -> Picture | None:
    """Draws the tokens that an MSViT keeps; None for other networks."""
    if not last_attentions(model):
        return None
    with watched(model) as stages:
        model(samples.images, **samples.labels)
        rows = {name: stage.kept_for(at) for name, stage in stages.items()}
    save_png(draw_tokens(samples.pixels, rows), folder / "tokens.png")
    return Picture(
        "tokens", "tokens.png", "Tokens that sparse attention keeps",
        "A row per stage: a cross on the attending token, a ring on every token of its window, filled from yellow to "
        "red by the share of heads that keep it.",
        f"{len(samples.pixels)} query images for each stage of the network, with the tokens kept for one token marked",
    )  # fmt: skip


def draw_map(cfg: CfgNode, model: RetrievalModel, data: Data, device: torch.device, folder: Path) -> Picture | None:
    """Draws the features of some identities in two dimensions; None if there are too few images."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    test = data.tests[0]
    records = test.query if test.same_list else join([test.query, test.gallery])
    rows = rows_to_show(records.pids, np.unique(test.query.pids))
    if len(rows) < 4:
        return None
    shown = records.take(rows)
    plane = in_plane(extract_features(model, feature_loader(cfg, shown), device, cfg.TEST.FLIP).numpy())
    figure = Figure(figsize=(7, 6), dpi=90, layout="constrained")
    axes = figure.add_subplot()
    ids = np.unique(shown.pids)
    for i, pid in enumerate(ids):
        members = shown.pids == pid
        axes.scatter(
            *plane[members].T, s=36, marker="osD^"[i // 10 % 4], color=f"C{i % 10}", label=f"id {pid}", alpha=0.8
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    save_png(Image.fromarray(np.asarray(canvas.buffer_rgba())), folder / "map.png")
    return Picture(
        "map", "map.png", "Map of features", f"t-SNE of the features of {len(ids)} identities of {test.name}.",
        f"Points of {len(rows)} images in {len(ids)} colours; images that the model finds similar are close together",
    )  # fmt: skip


def draw_sheets(data: Data, folder: Path) -> list[Picture]:
    """Draws a contact sheet of every dataset."""
    pictures = []
    for dataset in data.datasets:
        name = dataset.spec.name
        file = f"sheet_{name}.png"
        folder.mkdir(parents=True, exist_ok=True)
        if contact_sheet(dataset, folder / file):
            content = "a row per identity, blue training images, red queries, green their matches"
            caption, alt_text = f"{content.capitalize()}.", f"Contact sheet: {content}"
            pictures.append(Picture("sheet", file, f"Images of {name}", caption, alt_text))
    return pictures


def draw_pictures(
    cfg: CfgNode,
    model: RetrievalModel | None,
    data: Data,
    device: torch.device,
    folder: Path,
    kinds: Sequence[str] = KINDS,
    count: int = 6,
    at: tuple[float, float] = (0.35, 0.5),
) -> list[Picture]:
    """Draws the kinds that apply to the model, and writes ``index.json`` for the report. model: None for sheets alone.

    folder: the run's, or another. count: images. at: the position of the attending token, in shares of height and
    width.
    """
    folder = Path(folder) / PICTURES
    drawn: list[Picture | None] = []
    if model is not None:
        training = model.training
        model.eval()
        with torch.no_grad():
            samples = load_samples(cfg, data.tests[0].query, count, device)
            makers = {
                "attention": partial(draw_attention, model, samples, folder),
                "activation": partial(draw_activation, model, samples, folder),
                "tokens": partial(draw_kept_tokens, model, samples, folder, at),
                "map": partial(draw_map, cfg, model, data, device, folder),
            }
            drawn += [make() for kind, make in makers.items() if kind in kinds]
        model.train(training)
    if "sheet" in kinds:
        drawn += draw_sheets(data, folder)
    pictures = [picture for picture in drawn if picture]
    write_json(folder / PICTURE_INDEX, [asdict(picture) for picture in pictures])
    return pictures


def report_with_pictures(cfg: CfgNode, model: RetrievalModel, data: Data, device: torch.device, folder: Path) -> None:
    """Writes the report of a run with its pictures, if ``TEST.REPORT`` asks for it; the report draws the map itself."""
    if cfg.TEST.REPORT:
        draw_pictures(cfg, model.to(device), data, device, folder, tuple(kind for kind in KINDS if kind != "map"))
        write_report(folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = make_parser(
        "python -m tools.pictures", __doc__,
        "--config_file configs/quickstart.yml TEST.WEIGHT runs/quickstart/resnet10_12.pth",
        "--config_file configs/quickstart.yml --only sheet", settings=True,
    )  # fmt: skip
    parser.add_argument("--only", action="append", choices=KINDS, help="draw this kind alone; may be repeated")
    parser.add_argument("--out", type=Path, help="folder for the folder 'pictures' (OUTPUT_DIR)")
    parser.add_argument("--images", type=int, default=6, help="number of images (6)")
    parser.add_argument(
        "--at", type=float, nargs=2, default=(0.35, 0.5), metavar=("DOWN", "ACROSS"),
        help="tokens: position of the attending token, in shares of height and width (0.35 0.5)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if not all(0 <= share < 1 for share in args.at) or args.images < 1:
        raise UserError("--at: expected two shares of at least 0 and below 1; --images: expected at least 1")
    cfg = load_config(args.config_file, args.opts)
    kinds, device = tuple(args.only or KINDS), choose_device(cfg.MODEL.DEVICE)
    data = make_dataloader(cfg, training=False)
    model = None if kinds == ("sheet",) else tested_model(cfg, data).to(device)
    folder = args.out or output_folder(cfg, args.config_file)
    with sole_user(folder):
        pictures = draw_pictures(cfg, model, data, device, folder, kinds, args.images, (args.at[0], args.at[1]))
    missing = [kind for kind in args.only or () if kind not in {picture.kind for picture in pictures}]
    if missing:
        raise UserError(f"--only {missing[0]}: does not apply to MODEL.NAME {cfg.MODEL.NAME!r} or its data")
    for picture in pictures:
        print(folder / PICTURES / picture.file)


if __name__ == "__main__":
    run_command(main)
