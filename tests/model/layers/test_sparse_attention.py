"""Sparse window attention against the definition in loops: values, gradients, windows, ties, tracing."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.layers import sparse_attention
from model.layers.sparse_attention import attend, kept_count, sparse_window_attention, to_windows
from utils.errors import UserError

SHAPES = {  # (B, heads, d, H, W), split
    "square windows": ((2, 2, 3, 8, 4), (4, 4)),
    "high windows": ((1, 3, 2, 6, 4), (3, 2)),
    "one window": ((2, 1, 4, 3, 3), (3, 3)),
    "windows of four": ((1, 2, 2, 4, 2), (2, 2)),
}


def draw(shape, seed=0, dtype=torch.double):
    torch.manual_seed(seed)
    batch, heads, d, height, width = shape
    maps = [torch.randn(batch, heads * d, height, width, dtype=dtype, requires_grad=True) for _ in range(3)]
    scale = torch.linspace(0.5, 5.0, heads, dtype=dtype).view(heads, 1, 1).requires_grad_()
    return [*maps, scale]


def slow(q, k, v, logit_scale, split, ratio):
    """What the page says, token by token."""
    heads, (batch, channels, height, width) = len(logit_scale), q.shape
    down, across, d = height // split[0], width // split[1], channels // heads
    out = torch.empty_like(v)
    kept = math.floor(split[0] * split[1] * ratio)
    for b in range(batch):
        for i in range(down):
            for j in range(across):
                places = [(i + down * a, j + across * c) for a in range(split[0]) for c in range(split[1])]
                for h in range(heads):
                    own = slice(h * d, (h + 1) * d)
                    scale = logit_scale[h, 0, 0].clamp(max=4.6052).exp()
                    for r, c in places:
                        cosines = [F.cosine_similarity(q[b, own, r, c], k[b, own, y, x], dim=0) for y, x in places]
                        logits = scale * torch.stack(cosines)
                        best = logits.topk(kept).indices
                        weights = logits[best].softmax(0)
                        values = torch.stack([v[b, own, y, x] for y, x in places])
                        out[b, own, r, c] = weights @ values[best]
    return out


@pytest.mark.parametrize("ratio", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("name", SHAPES)
def test_it_is_the_definition_in_value_and_gradient(name, ratio, monkeypatch):
    shape, split = SHAPES[name]
    monkeypatch.setattr(sparse_attention, "CACHED_LOGITS", 3 * (split[0] * split[1]) ** 2)  # blocks with a rest
    given = draw(shape)
    ours, theirs = sparse_window_attention(*given, split, ratio), slow(*given, split, ratio)
    torch.testing.assert_close(ours, theirs)
    cotangent = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad(x, given, cotangent) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-6)


def test_gradients_are_those_of_finite_differences():
    given = draw((1, 2, 3, 4, 4))
    with torch.no_grad():
        given[3][:] = torch.tensor([1.0, 2.0]).view(2, 1, 1)  # below the clamp
    assert torch.autograd.gradcheck(lambda *x: sparse_window_attention(*x, (2, 4), 0.5), given)


def test_a_scale_beyond_the_clamp_counts_as_the_clamp_and_gets_no_gradient():
    q, k, v, scale = draw((1, 2, 3, 4, 4))
    scale = torch.tensor([2.0, 7.0], dtype=torch.double).view(2, 1, 1).requires_grad_()
    out = sparse_window_attention(q, k, v, scale, (4, 4), 0.5)
    out.square().sum().backward()
    assert scale.grad[0].abs() > 0 and scale.grad[1] == 0
    cut = torch.tensor([2.0, 4.6052], dtype=torch.double).view(2, 1, 1)
    torch.testing.assert_close(out, sparse_window_attention(q, k, v, cut, (4, 4), 0.5))


def test_windows_are_dilated_grids_that_span_the_map():
    places = torch.arange(8 * 4).view(1, 1, 8, 4)
    windows = to_windows(places, 1, (4, 2))[:, 0]
    assert windows.shape == (4, 8)
    assert windows[0].tolist() == [0, 2, 8, 10, 16, 18, 24, 26]  # rows 0, 2, 4, 6, columns 0, 2
    assert windows[3].tolist() == [5, 7, 13, 15, 21, 23, 29, 31]
    assert windows.flatten().sort().values.equal(torch.arange(32))


def test_each_row_has_its_k_best_and_equal_ones_are_all_kept():
    k = torch.eye(4)[None] * torch.tensor([4.0, 3.0, 3.0, 1.0])  # logits 4, 3, 3, 1 of a query of ones
    q, v = torch.ones(1, 4, 4), torch.eye(4)[None]
    best = attend(q, k, v, 1)[0]
    torch.testing.assert_close(best, torch.eye(4)[:1].expand(4, 4))
    for kept in (2, 3):  # the second and the third tie
        weights = torch.tensor([4.0, 3.0, 3.0, -math.inf]).softmax(0)
        torch.testing.assert_close(attend(q, k, v, kept)[0], weights.expand(4, 4))
    torch.testing.assert_close(attend(q, k, v, 4)[0], torch.tensor([4.0, 3.0, 3.0, 1.0]).softmax(0).expand(4, 4))


def test_equal_and_zero_tokens_stay_finite():
    maps = [torch.zeros(1, 4, 4, 4, requires_grad=True) for _ in range(3)]
    out = sparse_window_attention(*maps, torch.zeros(2, 1, 1), (4, 4), 0.3)
    out.sum().backward()
    assert all(m.grad.isfinite().all() for m in maps)


@pytest.mark.parametrize(("tokens", "ratio", "kept"), [(64, 0.3, 19), (49, 0.3, 14), (64, 1.0, 64), (10, 0.1, 1)])
def test_how_many_are_kept(tokens, ratio, kept):
    assert kept_count(tokens, ratio) == kept


@pytest.mark.parametrize("ratio", [0.0, 0.01, -0.5, 1.2])
def test_a_ratio_that_keeps_none_or_more_than_all_is_refused(ratio):
    with pytest.raises(UserError, match=r"SPARSE_RATIO.*64 tokens in a window of MODEL\.MSVIT\.SPLIT_SIZE"):
        kept_count(64, ratio)


def test_a_map_that_cannot_be_split_is_refused():
    with pytest.raises(UserError, match=r"map of 8 x 6 cannot be split into windows of 4 x 4"):
        sparse_window_attention(*draw((1, 2, 2, 8, 6)), (4, 4), 0.5)


def test_no_matrix_of_logits_is_kept_for_the_backward_pass():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        sparse_window_attention(*draw((2, 2, 4, 16, 16), dtype=torch.float32), (8, 8), 0.3)
    assert max(kept) <= 2 * 8 * 16 * 16  # a map; the logits would be 2 * 2 * 4 windows of 64 x 64


def test_products_run_in_the_precision_of_autocast_and_the_rest_in_float32():
    given = draw((2, 2, 8, 8, 8), dtype=torch.float32)
    exact = sparse_window_attention(*given, (8, 8), 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        half = sparse_window_attention(*given, (8, 8), 1.0)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, atol=0.1, rtol=0.1)
    half.float().sum().backward()
    assert {x.grad.dtype for x in given} == {torch.float32}


class Block(nn.Module):
    def __init__(self, ratio):
        super().__init__()
        self.ratio = ratio

    def forward(self, q, k, v, scale):
        return sparse_window_attention(q, k, v, scale, (4, 4), self.ratio)


@pytest.mark.slow
def test_the_form_that_compilers_and_exporters_see_is_the_same():
    given, block = draw((2, 2, 4, 8, 8), dtype=torch.float32), Block(0.3)
    eager = block(*given)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)(*given)
    torch.testing.assert_close(compiled, eager)
    cotangent = torch.randn_like(eager)
    for a, b in zip(*(torch.autograd.grad(x, given, cotangent) for x in (compiled, eager)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    given = [x.detach() for x in given]
    torch.testing.assert_close(torch.export.export(block, tuple(given)).module()(*given), eager.detach())
