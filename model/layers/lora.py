"""Low-rank adapters beside frozen linear layers (Hu et al., ICLR 2022, arXiv:2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError

Module = TypeVar("Module", bound=nn.Module)


class LoRALinear(nn.Linear):
    """A linear layer W x + b whose W and b stay, plus alpha / rank times B A x, of which A and B learn.

    ``weight`` and ``bias`` keep their names, so that files of the plain layer load. B starts at 0: at first the layer
    computes what the plain one does.
    """

    lora_scale: Tensor

    def __init__(self, plain: nn.Linear, rank: int, alpha: float):
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        self.register_buffer("lora_scale", torch.tensor(alpha / rank))  # in the file, as the features depend on it
        self.lora_down = nn.Parameter(torch.empty(rank, plain.in_features))
        self.lora_up = nn.Parameter(torch.zeros(plain.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        source = normed_from(x)
        down = F.linear(x, self.lora_down) if source is None else _ThinOfNormed.apply(x, self.lora_down, *source)
        thin = down * self.lora_scale
        return F.linear(x, self.weight, self.bias) + F.linear(thin, self.lora_up)

    def merged(self) -> nn.Linear:
        """Returns the plain layer that computes the same."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        with torch.no_grad():
            plain.weight.copy_(self.weight + self.lora_scale * self.lora_up @ self.lora_down)
            if self.bias is not None:
                plain.bias.copy_(self.bias)
        return plain.to(self.weight)


class FrozenLayerNorm(nn.LayerNorm):
    """A layer norm that is not trained, and whose output an adapter need not keep for the backward pass.

    The norm's backward keeps its input anyway, from which the output is computed again at the cost of a pass over it:
    one width less per token and adapter.
    """

    @classmethod
    def of(cls, plain: nn.LayerNorm) -> FrozenLayerNorm:
        """Returns a norm that shares a plain one's parameters and names."""
        norm = cls(list(plain.normalized_shape), plain.eps, plain.elementwise_affine, plain.bias is not None, "meta")
        norm.weight, norm.bias = plain.weight, plain.bias
        return norm

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        normed = super().forward(input)
        if input.requires_grad and len(self.normalized_shape) == 1 and not torch.compiler.is_compiling():
            made = (input, self.weight, self.bias, self.eps)
            normed.made_from = (normed._version, made)  # pyright: ignore[reportAttributeAccessIssue]
        return normed


Made = tuple[Tensor, Tensor | None, Tensor | None, float]
"""Input, weight, bias and epsilon of a layer norm over the last dimension."""


def normed_from(x: Tensor) -> Made | None:
    """Returns what a tensor was normed from: None unless a ``FrozenLayerNorm`` made it, nothing has changed it in place
    since, and it is in full precision."""
    version, made = getattr(x, "made_from", (0, None))
    if made is None or version != x._version or torch.is_autocast_enabled(x.device.type):
        return None
    return made


class _ThinOfNormed(torch.autograd.Function):
    """``F.linear(normed, down)``, which keeps what ``normed`` was made from in place of it."""

    @staticmethod
    def forward(ctx, normed: Tensor, down: Tensor, source: Tensor, weight, bias, eps: float) -> Tensor:
        ctx.save_for_backward(down, source, weight, bias)
        ctx.eps = eps
        return F.linear(normed, down)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (grad,), (down, source, weight, bias) = grads, ctx.saved_tensors
        normed = F.layer_norm(source, source.shape[-1:], weight, bias, ctx.eps)
        of_down = grad.flatten(0, -2).t() @ normed.flatten(0, -2)
        return grad @ down, of_down, None, None, None, None


def add_adapters(module: nn.Module, rank: int, alpha: float, targets: Sequence[str]) -> list[str]:
    """Freezes ``module`` and gives each of its linear layers that matches a target an adapter; returns their names.

    targets: patterns of the ends of names, such as ``attn.qkv`` and ``mlp.*``. Raises ``UserError`` for a target that
    matches no linear layer.
    """
    linears = {name: layer for name, layer in module.named_modules() if type(layer) is nn.Linear}
    chosen: set[str] = set()
    for target in targets:
        matches = {name for name in linears if fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")}
        if not matches:
            ends = sorted({".".join(name.split(".")[-2:]) for name in linears})
            known = f"they end in {', '.join(ends)}" if ends else "it has none"
            raise UserError(f"MODEL.LORA.TARGETS: {target!r} matches no linear layer of the backbone; {known}")
        chosen |= matches
    module.requires_grad_(False)
    for name in sorted(chosen):
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, LoRALinear(linears[name], rank, alpha))
    for parent in list(module.modules()):
        for leaf, layer in list(parent.named_children()):
            if type(layer) is nn.LayerNorm:
                setattr(parent, leaf, FrozenLayerNorm.of(layer))
    return sorted(chosen)


def merge_adapters(module: Module) -> Module:
    """Replaces every adapter inside ``module`` by the plain layer that computes the same, and returns the module."""
    for parent in list(module.modules()):
        for leaf, layer in list(parent.named_children()):
            if isinstance(layer, LoRALinear):
                setattr(parent, leaf, layer.merged())
    return module
