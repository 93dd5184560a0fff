"""Trains a model: ``python train.py --config_file configs/METHOD/DATASET.yml [KEY VALUE ...]``.

The same command resumes a run that was stopped; ``torchrun --nproc_per_node N train.py ...`` uses N processes.
"""

if __name__ == "__main__":
    from utils import interrupt

    interrupt.end_when_interrupted()  # the imports below take long enough for a Ctrl-C

    from configs import load_config_with_notes
    from utils.commands import parse_run, reported_errors

    args = parse_run(None, "train", __doc__, "--config_file configs/transreid/market1501.yml SOLVER.SEED 7")
    with reported_errors():
        cfg, notes = load_config_with_notes(args.config_file, args.opts)
        from processor import run  # these imports take seconds: --help and mistakes in the settings come first
        from tools.pictures import report_with_pictures

        interrupt.raise_when_interrupted()
        run.train(cfg, args.config_file, notes, after=report_with_pictures)
