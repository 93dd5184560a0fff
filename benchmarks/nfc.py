"""What neighbour feature centralisation gains beside query expansion and re-ranking, on features of several weights.

    python -m benchmarks.nfc --config_file FILE --weights W1,W2,... [KEY VALUE ...]

Prints mAP and Rank-1 in percent for each file of weights, from one extraction of its features, and the share of nearest
neighbours within the gallery that show the same identity: what NFC adds to a feature.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from configs import load_config
from datasets.loaders import make_dataloader
from processor.evaluate import Settings, extract_features, score
from processor.trained import tested_model
from utils.device import choose_device

VARIANTS = {
    "plain": {},
    "NFC (2, 2)": {"centralisation": (2, 2)},
    "NFC (4, 4)": {"centralisation": (4, 4)},
    "NFC, gallery alone": {"centralisation": (2, 2), "centralised": "gallery"},
    "query expansion (1, 5, 3)": {"expansion": (1, 5, 3.0)},
    "re-ranking (20, 6, 0.3)": {"rerank": (20, 6, 0.3)},
    "NFC and re-ranking": {"centralisation": (2, 2), "rerank": (20, 6, 0.3)},
}


def neighbour_purity(feats: torch.Tensor, pids: torch.Tensor) -> float:
    """Returns the share of images (N, D) whose nearest other image has their identity (N,)."""
    unit = torch.nn.functional.normalize(feats)
    likeness = unit @ unit.T
    likeness.fill_diagonal_(-2)
    return float((pids[likeness.argmax(1)] == pids).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_file", default="")
    parser.add_argument("--weights", required=True, help="files, with commas between them")
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    for path in args.weights.split(","):
        cfg = load_config(args.config_file, [*args.opts, "TEST.WEIGHT", path])
        device, data = choose_device(cfg.MODEL.DEVICE), make_dataloader(cfg, training=False)
        model = tested_model(cfg, data).to(device)
        (test,), settings = data.tests, Settings.from_cfg(cfg)
        feats = extract_features(model, test.loader, device)
        count = len(test.query)
        purity = neighbour_purity(feats[count:], torch.as_tensor(test.gallery.pids))
        print(f"{path}: {test.name}, {count} queries, {len(test.gallery)} gallery images, purity {100 * purity:.1f}")
        for name, changes in VARIANTS.items():
            metrics = score(test, feats, replace(settings, **changes)).metrics
            print(f"  {name:26s} mAP {100 * metrics['mAP']:5.1f} Rank-1 {100 * metrics['Rank-1']:5.1f}", flush=True)


if __name__ == "__main__":
    main()
