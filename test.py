"""Tests a model: ``python test.py --config_file configs/METHOD/DATASET.yml TEST.WEIGHT model.pth [KEY VALUE ...]``.

Prints mAP, mINP and Rank-1/5/10 and writes them to ``metrics.json`` in OUTPUT_DIR.
"""

from processor.command import run_command

if __name__ == "__main__":
    run_command(None, "test", __doc__, "--config_file configs/transreid/market1501.yml TEST.WEIGHT model.pth")
