"""What TEST.CAMERA_NORM gains, beside no norm, on one extraction of a test set's features.

    python -m benchmarks.camera_norm --config_file FILE TEST.WEIGHT PATH [KEY VALUE ...]

Prints mAP and Rank-1 of the usual protocol, and of pairs the true accept rate at a false accept rate of 1 %: of all
pairs of query and gallery, and of those of two cameras. The norms are fitted on the training images of the tested set
without their labels.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from configs import load_config
from datasets.loaders import make_dataloader
from processor.evaluate import Settings, camera_reference, extract_features, score
from processor.extractor import make_extractor
from tools.calibrate import Labelled, calibrated_set
from utils.scoring.calibration import smallest_far, thresholds

FAR = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config_file", default="")
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    cfg = load_config(args.config_file, [*args.opts, "TEST.CAMERA_NORM", "mean"])
    settings, data, extractor = Settings.from_cfg(cfg), make_dataloader(cfg, training=False), make_extractor(cfg)
    test = calibrated_set(cfg, data)
    feats = extract_features(extractor.model, test.loader, extractor.device, settings.flip)
    fitted = camera_reference(extractor.model, test, extractor.device, settings)
    assert fitted is not None
    print(f"{test.name}: fitted on {len(fitted.camids)} images without labels")
    for kind in ("off", "mean", "pair"):
        reference = None if kind == "off" else replace(fitted, kind=kind)
        metrics = score(test, feats, settings, reference).metrics
        labelled, shares = Labelled.of(test, feats, settings, reference), []
        for which in ("all", "across"):
            pairs = labelled.counted(settings, which, FAR)
            if smallest_far(pairs) <= FAR:
                (row,) = thresholds(pairs, [FAR], draws=20)
                shares.append(f"{which} {100 * row.tar:.1f}")
        print(
            f"{kind:5s} mAP {100 * metrics['mAP']:.1f} Rank-1 {100 * metrics['Rank-1']:.1f}; "
            f"TAR at FAR {FAR:g}: {', '.join(shares)}"
        )


if __name__ == "__main__":
    main()
