"""What a network returns in training."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class ReIDOutput:
    """Scores and features of one training batch, a list entry per part (one part without JPM, five with it).

    scores: (B, C) logits each. feats: (B, d) features each, for the metric loss, before the necks. maps: flattened
    stage maps where a method needs them. i2t_logits: (B, C) image-to-text logits of prompt models. heads, tokens:
    outputs of the self-supervised head and features of further views, (B, d) each. retrieval: (B, D) the retrieval
    feature by the batch's statistics, where it is not ``feats[0]``.
    """

    scores: list[Tensor]
    feats: list[Tensor]
    maps: list[Tensor] = field(default_factory=list)
    i2t_logits: Tensor | None = None
    heads: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    retrieval: Tensor | None = None
