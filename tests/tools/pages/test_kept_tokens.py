"""The picture of kept tokens: what it marks is what the network attends to."""

from __future__ import annotations

import numpy as np
import torch

from model.backbones.msvit import WindowAttention, WindowSpec
from model.layers.sparse_attention import attention_weights
from tools.pages.kept_tokens import WatchedAttention


def test_the_marked_tokens_are_those_of_the_asking_ones_window():
    module = WindowAttention(2, WindowSpec((4, 2), 0.5))
    stage, maps = WatchedAttention(module), [torch.randn(3, 4, 8, 6) for _ in range(3)]
    module(*maps)
    asking, tokens, shares = stage.kept_for((0.4, 0.7))  # row 3, column 4
    np.testing.assert_allclose(asking * (8, 6), (3.5, 4.5))
    rows, columns = (tokens * (8, 6) - 0.5).T.round().astype(int)
    assert sorted(set(rows)) == [1, 3, 5, 7] and sorted(set(columns)) == [1, 4]
    assert shares.shape == (3, 8) and np.allclose(shares.sum(1), 4)  # four of eight by each head
    every = attention_weights(*maps[:2], module.logit_scale.detach(), (4, 2), 0.5)
    assert every.shape == (3, 6, 2, 8, 8) and ((every > 0).sum(-1) == 4).all()
    token = [i for i, (r, c) in enumerate(zip(rows, columns, strict=True)) if (r, c) == (3, 4)]
    np.testing.assert_allclose(shares, (every[:, 1 * 3 + 1, :, token[0]] > 0).float().mean(1))


def test_the_weights_are_what_the_attention_multiplies_the_values_with():
    q, k = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
    module = WindowAttention(1, WindowSpec((4, 4), 0.5))
    v = torch.randn(1, 4, 4, 4)
    weights = attention_weights(q, k, module.logit_scale, (4, 4), 0.5)[0, 0, 0]
    torch.testing.assert_close((weights @ v.flatten(2)[0].T).T.view(1, 4, 4, 4), module(q, k, v))
