"""LARS: SGD with a rate per tensor, for large batches (You et al., arXiv:1708.03888)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


class LARS(Optimizer):
    """Scales each tensor's update by ``eta`` times its length over the gradient's.

    Vectors are neither scaled nor decayed. As in DINO's release, decay is added to the gradient before both, and
    momentum comes after.
    """

    def __init__(
        self, params: ParamsT, lr: float, weight_decay: float = 0.0, momentum: float = 0.9, eta: float = 0.001
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eta": eta})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates the parameters. closure: computes the loss again and returns it, as for torch's optimizers."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad
                if parameter.dim() > 1:
                    update = update.add(parameter, alpha=group["weight_decay"])
                    length, change = parameter.norm(), update.norm()
                    trust = torch.where((length > 0) & (change > 0), group["eta"] * length / change, 1.0)
                    update = update * trust
                state = self.state[parameter]
                velocity = state.setdefault("momentum_buffer", torch.zeros_like(parameter))
                velocity.mul_(group["momentum"]).add_(update)
                parameter.add_(velocity, alpha=-group["lr"])
        return value
