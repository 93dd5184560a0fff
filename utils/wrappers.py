"""Where a published file keeps its weights: under a key, under a longer name, or both."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from utils.errors import UserError

log = logging.getLogger("lineup")

WRAPPERS = (
    "model", "state_dict", "teacher", "model_state_dict", "net", "network", "module", "state_dict_ema", "model_ema",
    "ema", "ema_state_dict", "target_encoder",
)  # fmt: skip
"""Keys under which published files hold their weights, the first that is there taken: averaged ones, which others may
evaluate and few train on, only where there are no others or MODEL.WEIGHT_KEY names them."""
DEEPEST = 3
"""Wrappers within wrappers, and words before a name."""


def open_wrappers(state: Mapping[str, Any], key: str = "", name: str = "the state dict") -> Mapping[str, Any]:
    """Returns the innermost mapping of names to tensors.

    key: MODEL.WEIGHT_KEY, '' for the first of ``WRAPPERS``. name: the file in messages. The log names the others that
    could have been meant. Raises ``UserError`` for a key that a file of several mappings does not have.
    """
    choices = [word for word, value in state.items() if isinstance(value, Mapping) and holds_tensors(value)]
    if key and choices:
        if key not in choices:
            there = ", ".join(map(str, choices))
            raise UserError(f"MODEL.WEIGHT_KEY: {name} has no weights under {key!r}; it has {there}")
        state = state[key]
    for _ in range(DEEPEST):
        known = [word for word in WRAPPERS if word in state and isinstance(state[word], Mapping)]
        if not known:
            break
        others = [word for word in known[1:] if holds_tensors(state[word])]
        if others:
            there = ", ".join(map(repr, others))
            log.info("%s: the weights under %r are taken; it has %s too (MODEL.WEIGHT_KEY)", name, known[0], there)
        state = state[known[0]]
    return state


def holds_tensors(value: Mapping[str, Any], depth: int = DEEPEST) -> bool:
    """Returns whether a mapping has tensors, or a mapping that has."""
    return any(
        isinstance(inner, Tensor) or (depth > 1 and isinstance(inner, Mapping) and holds_tensors(inner, depth - 1))
        for inner in value.values()
    )


def without_prefix(state: dict[str, Tensor], fits: Callable[[dict[str, Tensor]], bool]) -> dict[str, Tensor]:
    """Returns the state with the words removed that Lightning and others put before a network's names.

    fits: whether a state has names of the network. A state that fits as it is stays so.
    """
    if fits(state):
        return state
    for prefix in common_prefixes(state):
        inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if fits(inner):
            return inner
    return state


def common_prefixes(names: Mapping[str, Any]) -> Iterator[str]:
    """Yields the beginnings, such as ``model.`` and ``model.net.``, that at least half of the names share."""
    counts: Counter[str] = Counter()
    for name in names:
        words = name.split(".")
        counts.update(".".join(words[:depth]) + "." for depth in range(1, min(DEEPEST, len(words) - 1) + 1))
    yield from (prefix for prefix, count in counts.most_common() if 2 * count >= len(names))
