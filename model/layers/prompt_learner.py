"""A learnt prompt per identity (CLIP-ReID, section 3.2): ``A photo of a X X X X person.``, each X a vector."""

from __future__ import annotations

import open_clip
import torch
from torch import Tensor, nn

from utils.errors import UserError

LEARNT = 4
BEFORE = "A photo of a"
FIRST = 5
"""Position of the first learnt vector: after the start token and the four words of ``BEFORE``."""


def template(noun: str) -> str:
    """Returns the sentence that the prompts follow; only the noun depends on the data."""
    return f"{BEFORE} {' '.join('X' * LEARNT)} {noun}."


def prompt_tokens(noun: str, context_length: int = 77) -> Tensor:
    """Returns the token ids (1, L) of the template. Raises ``UserError`` for a noun that makes the prompt invalid."""
    if not noun.strip():
        raise UserError("MODEL.PROMPT_NOUN: is blank; it is the last word of the prompts, such as person or product")
    with torch.device("cpu"):  # the ids are read, also if the model is built on the meta device
        ids, plain = open_clip.tokenize([template(noun), template("person")], context_length=context_length).split(1)
    row, plain = ids[0].tolist(), plain[0].tolist()
    start, end = plain[0], max(plain)
    stop = plain[plain.index(end) - 1]  # the full stop: missing if a long noun was cut off
    special = row.count(start) > 1 or row.count(end) > 1
    if row[: FIRST + LEARNT] != plain[: FIRST + LEARNT] or special or row[row.index(end) - 1] != stop:
        raise UserError(
            f"MODEL.PROMPT_NOUN: {noun[:40]!r} breaks the positions of the prompt's {context_length} tokens; use a "
            "plain word or a few"
        )
    return ids


class PromptLearner(nn.Module):
    """Prompts of identities: fixed token vectors around ``LEARNT`` vectors per identity. Names as published.

    tokens: (1, L) ids of the template. table: CLIP's token embedding (V, W). end: position of the end-of-text token.
    """

    token_prefix: Tensor
    token_suffix: Tensor

    def __init__(self, num_class: int, tokens: Tensor, table: Tensor):
        super().__init__()
        self.tokens, self.end = tokens, int(tokens.argmax())
        width = table.shape[1]
        self.register_buffer("token_prefix", torch.empty(1, FIRST, width))
        self.register_buffer("token_suffix", torch.empty(1, tokens.shape[1] - FIRST - LEARNT, width))
        self.cls_ctx = nn.Parameter(torch.empty(num_class, LEARNT, width))
        nn.init.normal_(self.cls_ctx, std=0.02)
        for name, rows in self.fixed_parts(table).items():
            self.get_buffer(name).copy_(rows)

    def fixed_parts(self, table: Tensor) -> dict[str, Tensor]:
        """Returns the buffers from CLIP's token embedding (V, W); raises ``UserError`` for another vocabulary."""
        width = self.cls_ctx.shape[2]
        if table.dim() != 2 or table.shape[1] != width or len(table) <= int(self.tokens.max()):
            raise UserError(
                f"token embedding of {tuple(table.shape)}: the prompts need {int(self.tokens.max()) + 1} rows or more "
                f"of width {width}: this file is of another vocabulary or text tower"
            )
        rows = table.detach()[self.tokens]
        return {"token_prefix": rows[:, :FIRST], "token_suffix": rows[:, FIRST + LEARNT :]}

    def forward(self, labels: Tensor) -> Tensor:
        """Returns the prompts of identities. (B,) -> (B, L, W)."""
        count = len(labels)
        prefix, suffix = self.token_prefix.expand(count, -1, -1), self.token_suffix.expand(count, -1, -1)
        return torch.cat([prefix, self.cls_ctx[labels], suffix], dim=1)
