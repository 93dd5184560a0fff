"""Trains a model: ``python train.py --config_file configs/METHOD/DATASET.yml [KEY VALUE ...]``.

The same command goes on from where a stopped run was; ``torchrun --nproc_per_node N train.py ...`` uses N processes.
"""

from processor.command import run_command

if __name__ == "__main__":
    run_command(None, "train", __doc__, "--config_file configs/transreid/market1501.yml SOLVER.SEED 7")
