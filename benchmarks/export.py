"""Exports every architecture and compares the file with the model: ``python -m benchmarks.export --images FOLDER``.

FOLDER is a data set in Market-1501's layout; a few identities of its test images serve, resized from the photographs as
they are. The networks have their full size at 256 x 128 and the weights that they start from without a file, so the
differences are those of arithmetic and the mAP says nothing else. A row per architecture: the largest difference of a
unit feature from the same pixels, that of a resized pixel in grey levels, the mAP of PyTorch and of onnxruntime, and
how many times faster onnxruntime is (float32, 8 images, resize included). What is not exported says why.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import torch

from configs import load_config
from datasets import make_dataset
from datasets.loaders import make_dataloader
from model import make_model
from tools.export import export
from utils.errors import UserError

VIT = {"MODEL.NAME": "transformer", "MODEL.STRIDE_SIZE": [16, 16]}
SMALL = {"MODEL.TRANSFORMER_TYPE": "vit_small_patch16_224_TransReID", "MODEL.VIT_SMALL": "deit"}
ICS = VIT | SMALL | {"MODEL.STEM_CONV": True}

ARCHITECTURES: dict[str, dict] = {
    "ViT-B/16": VIT | {"MODEL.TRANSFORMER_TYPE": "vit_base_patch16_224_TransReID"},
    "TransReID, ViT-B/16, stride 12, SIE, JPM": VIT | {
        "MODEL.TRANSFORMER_TYPE": "vit_base_patch16_224_TransReID", "MODEL.STRIDE_SIZE": [12, 12],
        "MODEL.SIE_CAMERA": True, "MODEL.JPM": True, "MODEL.RE_ARRANGE": True,
    },
    "DeiT-S/16": VIT | {"MODEL.TRANSFORMER_TYPE": "deit_small_patch16_224_TransReID"},
    "ViT-S/16 + ICS, GeM": ICS | {"MODEL.GEM_POOLING": True},
    "Swin-B": VIT | {"MODEL.TRANSFORMER_TYPE": "swin_base_patch4_window7_224"},
    "ResNet-50": {"MODEL.NAME": "resnet50"},
    "ResNet-50-IBN-a": {"MODEL.NAME": "resnet50_ibn_a"},
    "MSViT-S": {"MODEL.NAME": "msvit_s"},
    "MSViT-L": {"MODEL.NAME": "msvit_l"},
    "CLIP ViT-B/16": {"MODEL.NAME": "ViT-B-16", "MODEL.STRIDE_SIZE": [16, 16]},
    "CLIP RN50": {"MODEL.NAME": "RN50", "MODEL.STRIDE_SIZE": [16, 16]},
    "torchreid ResNet-50": {"MODEL.NAME": "torchreid_resnet50"},
    "OSNet x1.0": {"MODEL.NAME": "torchreid_osnet_x1_0", "MODEL.FC_DIM": 512},
    "OSNet-AIN x1.0": {"MODEL.NAME": "torchreid_osnet_ain_x1_0", "MODEL.FC_DIM": 512},
    "MobileNetV2 x1.4": {"MODEL.NAME": "torchreid_mobilenetv2_x1_4"},
    "SSDViT, ViT-B/16 + ICS": {
        "MODEL.NAME": "ssdvit", "PROCESSOR.NAME": "self_distill", "MODEL.STRIDE_SIZE": [16, 16],
        "MODEL.STEM_CONV": True, "MODEL.TRANSFORMER_TYPE": "vit_base_patch16_224_TransReID",
    },
    "cluster encoder, ViT-S/16 + ICS": ICS | {"PROCESSOR.NAME": "cluster"},
    "DINO, ViT-S/16 + ICS": ICS | {"PROCESSOR.NAME": "dino", "DINO.OUT_DIM": 1024},
    "timm:resnet26d": {"MODEL.NAME": "timm:resnet26d"},
}  # fmt: skip


def few_images(root: Path, identities: int, images: int, out: Path) -> Path:
    """A table of the first identities' test photographs, ``images`` of each in the gallery."""
    dataset = make_dataset("market1501", root)
    chosen = sorted(set(dataset.query.pids.tolist()))[:identities]
    with open(out, "w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["path", "pid", "camid", "split"])
        for split in ("query", "gallery"):
            records = getattr(dataset, split)
            for pid in chosen:
                rows = [i for i in range(len(records)) if records.pids[i] == pid]
                for i in rows[:: max(len(rows) // images, 1)]:
                    table.writerow([Path(records.paths[i]).resolve(), pid, records.camids[i], split])
    return out


def row(name: str, settings: dict, table: Path, folder: Path) -> str:
    """One architecture's line of a Markdown table."""
    common = {
        "DATASETS.NAMES": "csv", "DATASETS.FILE": str(table), "INPUT.SIZE_TRAIN": [256, 128],
        "INPUT.SIZE_TEST": [256, 128], "MODEL.PRETRAIN_CHOICE": "no", "MODEL.DEVICE": "cpu",
        "DATALOADER.NUM_WORKERS": 0, "TEST.IMS_PER_BATCH": 16, "TEST.WEIGHT": str(folder / "weights.pth"),
    }  # fmt: skip
    cfg = load_config("", [word for pair in (common | settings).items() for word in pair])
    data = make_dataloader(cfg, training=False)
    torch.manual_seed(0)
    model = make_model(cfg, data.num_classes, data.num_cameras, data.num_views, data.kind)
    torch.save(model.state_dict(), folder / "weights.pth")
    try:
        found = export(cfg, folder / "out")
    except UserError as error:
        return f"| {name} | {error} | | | | |"
    (before,), (after,) = found["pytorch"].values(), found["onnxruntime"].values()
    return (
        f"| {name} | {found['feature_difference']:.1e} | {found['pixel_difference']:g} | {100 * before['mAP']:.2f} | "
        f"{100 * after['mAP']:.2f} | {found['speed_ratio']:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="data root that holds market1501's folders")
    parser.add_argument("--identities", type=int, default=3)
    parser.add_argument("--gallery", type=int, default=3, help="gallery images of each")
    parser.add_argument("--only", default="", help="architectures whose name holds this")
    args = parser.parse_args()
    print("| architecture | unit feature | pixel | mAP, PyTorch | mAP, onnxruntime | times faster |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        table = few_images(args.images, args.identities, args.gallery, Path(name) / "few.csv")
        for title, settings in ARCHITECTURES.items():
            if args.only.lower() in title.lower():
                print(row(title, settings, table, Path(name)), flush=True)


if __name__ == "__main__":
    main()
