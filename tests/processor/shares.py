"""Every share of a step: one process writes what the whole batches give, several what their slices give together."""

from __future__ import annotations

from pathlib import Path

from tests.processor import (
    share_of_a_batch,
    share_of_a_pre_training,
    share_of_a_prompt_batch,
    share_of_a_self_distillation,
    share_of_an_adaptation,
)
from utils.distributed import barrier

SHARES = (
    share_of_a_batch, share_of_a_pre_training, share_of_a_prompt_batch, share_of_a_self_distillation,
    share_of_an_adaptation,
)  # fmt: skip


def write_shares(folder: Path) -> None:
    for share in SHARES:
        share.write_share(folder)
        barrier()
