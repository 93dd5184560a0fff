"""LARS: SGD with a rate per tensor, for large batches (You et al., arXiv:1708.03888)."""

from __future__ import annotations

import torch
from torch.optim import Optimizer


class LARS(Optimizer):
    """Each tensor's update is scaled by ``eta`` times its length over the gradient's; vectors are neither scaled nor
    decayed. As DINO's release has it: decay joins the gradient before both, momentum comes after."""

    def __init__(self, params, lr: float, weight_decay: float = 0.0, momentum: float = 0.9, eta: float = 0.001):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eta": eta})

    @torch.no_grad()
    def step(self, closure=None):
        """One update. closure: evaluates the loss anew, as torch's optimizers have it."""
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
                held = state.setdefault("momentum_buffer", torch.zeros_like(parameter))
                held.mul_(group["momentum"]).add_(update)
                parameter.add_(held, alpha=-group["lr"])
        return value
