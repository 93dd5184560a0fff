"""Trains a model: ``python train.py --config_file configs/METHOD/DATASET.yml [KEY VALUE ...]``.

The same command goes on from where a stopped run was; ``torchrun --nproc_per_node N train.py ...`` uses N processes.
"""

from utils.commands import parse_run, reported_errors

if __name__ == "__main__":
    args = parse_run(None, "train", __doc__, "--config_file configs/transreid/market1501.yml SOLVER.SEED 7")
    with reported_errors():  # the imports below take seconds: --help and a mistake in the settings come before them
        from configs import load_config_with_notes

        cfg, notes = load_config_with_notes(args.config_file, args.opts)
        from processor import run
        from tools.pictures import report_with_pictures

        run.train(cfg, args.config_file, notes, after=report_with_pictures)
