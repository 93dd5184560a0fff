"""Parameters that a whole run leaves as they are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from utils.errors import UserError

log = logging.getLogger("lineup")


def freeze_matching(model: nn.Module, patterns: Sequence[str], key: str = "SOLVER.FREEZE") -> None:
    """Excludes the parameters whose names match one of the patterns (``*``, ``?``, ``[0-5]``) from training.

    Batch norms keep counting their statistics. Raises ``UserError`` for a pattern that matches nothing, and if nothing
    is left to train. key: in messages.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen: set[str] = set()
    for pattern in patterns:
        matches = {name for name in names if fnmatchcase(name, pattern)}
        if not matches:
            raise UserError(
                f"{key}: {pattern!r} matches no parameter; names are such as {', '.join(names[:2])} and {names[-1]} "
                f"(base.blocks.[0-5].* is a pattern)"
            )
        frozen |= matches
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"{key}: {', '.join(map(repr, patterns))} match all parameters; nothing is left to train")
    if frozen:
        log.info("%s: %d of %d parameter tensors are not trained", key, len(frozen), len(names))
