"""Tables of side information in files of weights: a row for each camera and view of the training data."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor, nn

log = logging.getLogger("lineup")

WITHOUT_SIDES = "MODEL.SIE_CAMERA False MODEL.SIE_VIEW False"
"""What makes a model that embeds neither cameras nor views, as on a command line."""


def is_side_table(key: str) -> bool:
    """Returns whether a parameter is a table of side information, by its name in TransReID or CLIP-ReID."""
    return key.endswith(("sie_embed", "cv_embed"))


def side_settings(module: nn.Module, key: str, table: Tensor) -> str:
    """Returns what to set if a file's table has other rows than the module's; '' for any other parameter."""
    if not is_side_table(key):
        return ""
    counts = next(((m.camera_num, m.view_num) for m in module.modules() if hasattr(m, "camera_num")), (0, 0))
    ours = " x ".join(f"{count} {what}" for count, what in zip(counts, ("cameras", "views"), strict=True) if count)
    return (
        f"{WITHOUT_SIDES} to do without (its side information has {len(table)} rows, for the cameras and views that it "
        f"was trained on; these data have {ours}), or for fine-tuning MODEL.SIE_NEW_ROWS True"
    )


def with_new_rows(state: dict[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state with new tables where those of the file have another number of rows than the target's.

    The rows of a file belong to its own cameras, so none can be kept. Each new one starts as the mean of the known:
    the side information of an average camera, which the other weights were trained with. Zeros would be none at all.
    """
    state = dict(state)
    for key, value in state.items():
        if is_side_table(key) and key in target and value.shape != target[key].shape and len(value):
            state[key] = value.mean(0, keepdim=True).expand(target[key].shape).clone()
            log.info("%s: %d new rows start as the mean of the file's %d", key, len(state[key]), len(value))
    return state
