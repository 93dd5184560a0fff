"""Runs every share of a step in one process: ``python -m tests.processor.shares FOLDER``, or the same by ``torchrun``.

The files of one process hold what the whole batches give, those of several what their slices give together.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.processor import (
    share_of_a_batch,
    share_of_a_pre_training,
    share_of_a_prompt_batch,
    share_of_a_self_distillation,
    share_of_an_adaptation,
)
from utils.distributed import barrier, start, stop

SHARES = (
    share_of_a_batch, share_of_a_pre_training, share_of_a_prompt_batch, share_of_a_self_distillation,
    share_of_an_adaptation,
)  # fmt: skip


def main(folder: Path) -> None:
    start(torch.device("cpu"))
    for share in SHARES:
        share.write_share(folder)
        barrier()
    stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
