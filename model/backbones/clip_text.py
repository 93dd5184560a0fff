"""CLIP's text tower on ready prompts: from token vectors to the feature that images are compared with."""

from __future__ import annotations

from typing import cast

import open_clip
import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn


class CLIPText(nn.Module):
    """Causal transformer over prompt vectors, read at the end-of-text token and projected.

    source: open_clip's model or text tower, whose modules become this one's. Parameter names are those of the published
    ReID files. width: W of the prompts; embed_dim: P of the features.
    """

    attn_mask: Tensor

    def __init__(self, source: open_clip.CLIP | TextTransformer):
        super().__init__()
        assert isinstance(source.text_projection, nn.Parameter), "CLIP's own text towers project by a matrix"
        self.transformer, self.ln_final = source.transformer, source.get_submodule("ln_final")
        self.positional_embedding = cast("nn.Parameter", source.get_parameter("positional_embedding"))
        self.text_projection = source.text_projection
        self.register_buffer("attn_mask", source.get_buffer("attn_mask"), persistent=False)
        self.width, self.embed_dim = self.text_projection.shape

    def forward(self, prompts: Tensor, ends: Tensor | int) -> Tensor:
        """Returns the text features (B, P) of prompts (B, L, W).

        ends: position of the end-of-text token, one for all or (B,). Attention is causal, so what follows the last end
        has no influence and is not computed.
        """
        length = int(ends.max() if isinstance(ends, Tensor) else ends) + 1
        x = prompts[:, :length] + self.positional_embedding[:length]
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])
        return self.ln_final(x[torch.arange(len(x), device=x.device), ends]) @ self.text_projection
