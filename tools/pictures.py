"""Pictures of what a model does: ``python -m tools.pictures --config_file FILE TEST.WEIGHT PATH``.

Draws into OUTPUT_DIR/pictures, from where the run's report takes them:

attention   ViT and CLIP towers: attention of the class token in the last block, and rolled out over all blocks
activation  convolutional networks: mean over channels of the squared last map
tokens      MSViT: the tokens that its sparse attention keeps
map         features of some identities in a plane (t-SNE)
sheet       a contact sheet of every dataset, the built-in ones included

Images are queries of the first test set, evenly spaced. A kind that the network has nothing for is left out, or refused
when it is asked for with ``--only``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from configs import load_config
from datasets.loaders import Data, feature_loader, make_dataloader
from datasets.records import Records, join
from datasets.storage.decoding import load_image
from datasets.transforms.pipelines import build_transforms
from model import RetrievalModel
from processor.evaluate import extract_features
from processor.trained import output_folder, tested_model
from tools.pages.kept_tokens import draw_tokens, last_attentions, watched
from tools.pages.looking import attentions, last_attention, last_map, roll_out, strength
from tools.pages.sheet import contact_sheet
from tools.report import write_report
from utils.commands import make_parser, run_command
from utils.device import choose_device
from utils.errors import UserError
from utils.files import write_atomically
from utils.scoring.embedding import in_plane, rows_to_show

KINDS = ("attention", "activation", "tokens", "map", "sheet")
FOLDER, INDEX = "pictures", "index.json"
GAP, TITLE, HEIGHT = 6, 92, 176


@dataclass(frozen=True)
class Picture:
    """A file in the folder of pictures, and what a page says of it. alt: for those who do not see it."""

    kind: str
    file: str
    title: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Looked:
    """What heat maps are drawn over. images: (B, 3, H, W) as the network sees them; pixels: (B, H, W, 3) in 0..1.

    labels: cameras and views, as the network's forward takes them.
    """

    images: Tensor
    pixels: np.ndarray
    labels: dict[str, Tensor]


def looked_at(cfg, records: Records, count: int, device: torch.device) -> Looked:
    """``count`` images of a list, evenly spaced."""
    rows = np.unique(np.linspace(0, len(records) - 1, min(count, len(records))).astype(int))
    some, transform = records.take(rows), build_transforms(cfg, is_train=False)
    boxes = [None] * len(some) if some.boxes is None else some.boxes
    images = torch.stack([transform(load_image(path, box)) for path, box in zip(some.paths, boxes, strict=True)])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    pixels = (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    labels = {"cam_label": torch.from_numpy(some.cam_labels), "view_label": torch.from_numpy(some.view_labels)}
    return Looked(images.to(device), pixels, {name: label.to(device) for name, label in labels.items()})


def overlaid(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Images with heat over them, dark blue to yellow. pixels: (B, H, W, 3) in 0..1. heat: (B, h, w), any range."""
    from matplotlib import colormaps

    out = np.empty_like(pixels)
    for image, own, target in zip(pixels, heat.astype(np.float32), out, strict=True):
        own = (own - own.min()) / max(np.ptp(own), 1e-12)
        large = Image.fromarray(own).resize(image.shape[1::-1], Image.Resampling.BICUBIC)
        colour = colormaps["plasma"](np.asarray(large).clip(0, 1))[..., :3]
        target[:] = 0.4 * image.mean(-1, keepdims=True) + 0.6 * colour
    return out


def save_rows(rows: dict[str, np.ndarray], path: Path) -> None:
    """A picture with a column per image. rows: title -> images (B, H, W, 3) in 0..1."""
    height, width = next(iter(rows.values())).shape[1:3]
    size = max(round(HEIGHT * width / height), 1), HEIGHT
    count = len(next(iter(rows.values())))
    sheet = Image.new("RGB", (TITLE + count * (size[0] + GAP), len(rows) * (size[1] + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, (title, images) in enumerate(rows.items()):
        top = GAP + i * (size[1] + GAP)
        pen.text((GAP, top + size[1] // 2 - 12), title, fill="black", font=font)
        for j, image in enumerate(images):
            own = Image.fromarray((255 * image).round().astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
            sheet.paste(own, (TITLE + j * (size[0] + GAP), top))
    save_png(sheet, path)


def save_png(picture: Image.Image, path: Path) -> None:
    small = picture.convert("RGB").quantize(256)
    write_atomically(path, lambda handle: small.save(handle, "PNG", optimize=True))


def draw_attention(model: RetrievalModel, looked: Looked, folder: Path) -> Picture | None:
    found, layout = attentions(model, looked.images, **looked.labels), model.token_layout()
    if not found:
        return None
    heats = {"last block": last_attention(found, layout), "roll-out": roll_out(found, layout)}
    rows = {"image": looked.pixels} | {n: overlaid(looked.pixels, h.cpu().numpy()) for n, h in heats.items()}
    save_rows(rows, folder / "attention.png")
    asks = "the class token" if layout.by_class else "all patches"
    return Picture(
        "attention", "attention.png", "Where the network looks",
        f"Attention of {asks}, mean over heads, yellow is most: in the last block, and rolled out over all "
        f"{len(found)} blocks (Abnar and Zuidema, 2020).",
        f"{len(looked.pixels)} query images, below each its attention in the last block and rolled out",
    )  # fmt: skip


def draw_activation(model: RetrievalModel, looked: Looked, folder: Path) -> Picture | None:
    maps = last_map(model, looked.images, **looked.labels)
    if maps is None:
        return None
    heat = overlaid(looked.pixels, strength(maps).cpu().numpy())
    save_rows({"image": looked.pixels, "activation": heat}, folder / "activation.png")
    return Picture(
        "activation", "activation.png", "Where the last map is strong",
        f"Mean over the channels of the squared last map ({maps.shape[2]} x {maps.shape[3]} places), yellow is most.",
        f"{len(looked.pixels)} query images, below each the strength of the network's last map",
    )  # fmt: skip


def draw_kept_tokens(model: RetrievalModel, looked: Looked, folder: Path, at: tuple[float, float]) -> Picture | None:
    if not last_attentions(model):
        return None
    with watched(model) as stages:
        model(looked.images, **looked.labels)
        rows = {name: stage.looked_at(at) for name, stage in stages.items()}
    save_png(draw_tokens(looked.pixels, rows), folder / "tokens.png")
    return Picture(
        "tokens", "tokens.png", "Tokens that sparse attention keeps",
        "A row per stage: a cross on the token that asks, a ring on every token of its window, filled from yellow to "
        "red by the share of heads that keep it.",
        f"{len(looked.pixels)} query images for each stage of the network, with the tokens kept for one token marked",
    )  # fmt: skip


def draw_map(cfg, model: RetrievalModel, data: Data, device: torch.device, folder: Path) -> Picture | None:
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
        own = shown.pids == pid
        axes.scatter(*plane[own].T, s=36, marker="osD^"[i // 10 % 4], color=f"C{i % 10}", label=f"id {pid}", alpha=0.8)
    axes.set_xticks([]), axes.set_yticks([])
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    save_png(Image.fromarray(np.asarray(canvas.buffer_rgba())), folder / "map.png")
    return Picture(
        "map", "map.png", "Map of features", f"t-SNE of the features of {len(ids)} identities of {test.name}.",
        f"Points of {len(rows)} images in {len(ids)} colours; what the model finds alike lies close together",
    )  # fmt: skip


def draw_sheets(data: Data, folder: Path) -> list[Picture]:
    found = []
    for dataset in data.datasets:
        name = dataset.spec.name
        file = f"sheet_{name}.png"
        folder.mkdir(parents=True, exist_ok=True)
        if contact_sheet(dataset, folder / file):
            told = "a row per identity, blue training images, red queries, green their matches"
            found.append(Picture("sheet", file, f"Images of {name}", f"{told.capitalize()}.", f"Contact sheet: {told}"))
    return found


def draw(
    cfg,
    model: RetrievalModel | None,
    data: Data,
    device: torch.device,
    folder: Path,
    kinds: tuple[str, ...] = KINDS,
    count: int = 6,
    at: tuple[float, float] = (0.35, 0.5),
) -> list[Picture]:
    """Draws what the model has something for; writes ``index.json`` for the report. model: None for sheets alone.

    folder: the run's, or another. count: images. at: the place whose token asks, in shares of height and width.
    """
    folder = Path(folder) / FOLDER
    found: list[Picture | None] = []
    if model is not None:
        training = model.training
        model.eval()
        with torch.no_grad():
            looked = looked_at(cfg, data.tests[0].query, count, device)
            makers = {
                "attention": lambda: draw_attention(model, looked, folder),
                "activation": lambda: draw_activation(model, looked, folder),
                "tokens": lambda: draw_kept_tokens(model, looked, folder, at),
                "map": lambda: draw_map(cfg, model, data, device, folder),
            }
            found += [make() for kind, make in makers.items() if kind in kinds]
        model.train(training)
    if "sheet" in kinds:
        found += draw_sheets(data, folder)
    pictures = [picture for picture in found if picture]
    text = json.dumps([asdict(picture) for picture in pictures], indent=2)
    write_atomically(folder / INDEX, lambda handle: handle.write(text.encode()))
    return pictures


def report_with_pictures(cfg, model: RetrievalModel, data: Data, device: torch.device, folder: Path) -> None:
    """Draws the pictures that a report shows, less the map, which it draws itself, and writes it (``TEST.REPORT``)."""
    if cfg.TEST.REPORT:
        draw(cfg, model.to(device), data, device, folder, tuple(kind for kind in KINDS if kind != "map"))
        write_report(folder)


def main(argv: list[str] | None = None) -> None:
    """The command."""

    parser = make_parser(
        "python -m tools.pictures", __doc__,
        "--config_file configs/quickstart.yml TEST.WEIGHT runs/quickstart/resnet10_12.pth",
        "--config_file configs/quickstart.yml --only sheet", settings=True,
    )  # fmt: skip
    parser.add_argument("--only", action="append", choices=KINDS, help="this kind alone; may be given several times")
    parser.add_argument("--out", type=Path, help="folder in which 'pictures' is made (OUTPUT_DIR)")
    parser.add_argument("--images", type=int, default=6, help="how many (6)")
    parser.add_argument(
        "--at", type=float, nargs=2, default=(0.35, 0.5), metavar=("DOWN", "ACROSS"),
        help="tokens: the place that asks, in shares of height and width (0.35 0.5)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if not all(0 <= share < 1 for share in args.at) or args.images < 1:
        raise UserError("--at: expected two shares from 0 up to below 1, and --images at least 1")
    cfg = load_config(args.config_file, args.opts)
    kinds, device = tuple(args.only or KINDS), choose_device(cfg.MODEL.DEVICE)
    data = make_dataloader(cfg, training=False)
    model = None if kinds == ("sheet",) else tested_model(cfg, data).to(device)
    folder = args.out or output_folder(cfg, args.config_file)
    pictures = draw(cfg, model, data, device, folder, kinds, args.images, tuple(args.at))
    missed = [kind for kind in args.only or () if kind not in {picture.kind for picture in pictures}]
    if missed:
        raise UserError(f"--only {missed[0]}: MODEL.NAME {cfg.MODEL.NAME!r} or its data have nothing to draw for it")
    for picture in pictures:
        print(folder / FOLDER / picture.file)


if __name__ == "__main__":
    run_command(main)
