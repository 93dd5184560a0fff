"""Averages of a run's weights, uniform over its last epochs or exponential, and batch norm's statistics for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from yacs.config import CfgNode

from utils.distributed import is_distributed, world_size
from utils.errors import UserError, conflict


def average_weights(states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the uniform mean of several state dicts (Izmailov et al., UAI 2018), summed in place in one copy.

    Running statistics of batch norm and whole numbers are not averaged but taken from the last state
    (``reestimate_batch_norm`` computes new ones). Raises ``UserError`` for no states, or states of different networks.
    """
    sums: dict[str, Tensor] = {}
    count = 0
    for state in states:
        if count and state.keys() != sums.keys():
            raise UserError("average_weights: the states are of different networks, their names differ")
        for name, value in state.items():
            if not is_weight(name, value):
                sums[name] = value.clone()
            elif count:
                sums[name] += value
            else:
                sums[name] = value.to(torch.promote_types(value.dtype, torch.float32), copy=True)
        count += 1
    if not count:
        raise UserError("average_weights: no states to average")
    return {name: value / count if is_weight(name, value) else value for name, value in sums.items()}


def is_weight(name: str, value: Tensor) -> bool:
    """Returns whether an entry of a state dict is averaged."""
    leaf = name.rpartition(".")[2]
    return value.is_floating_point() and not leaf.startswith("running_") and leaf != "num_batches_tracked"


class WeightAverage:
    """The mean of a module's trained parameters along a run, in one further copy of them.

    first: the first epoch (from 1) of a uniform mean over epochs. decay: instead, an exponential mean over updates
    that keeps this share at each. bn_update: whether to re-estimate batch norm for the mean.
    """

    def __init__(self, module: nn.Module, first: int = 1, decay: float | None = None, bn_update: bool = True):
        self.module, self.first, self.decay, self.bn_update = module, first, decay, bn_update
        self.count = 0
        self.mean: dict[str, Tensor] = {}

    def weights(self) -> dict[str, Tensor]:
        """Returns the module's trained parameters by name."""
        return {name: p.detach() for name, p in self.module.named_parameters() if p.requires_grad}

    def after_step(self) -> None:
        """Adds the weights to an exponential mean; called after each update."""
        if self.decay is not None:
            share = 1 - self.decay
            self._add(lambda mean, weight: mean.lerp_(weight, share))

    def after_epoch(self, epoch: int) -> None:
        """Adds the weights to a uniform mean; called after each epoch."""
        if self.decay is None and epoch >= self.first:
            self._add(lambda mean, weight: mean.add_(weight))

    def _add(self, merge: Callable[[Tensor, Tensor], Tensor]) -> None:
        for name, weight in self.weights().items():
            if self.count:
                merge(self.mean[name], weight)
            else:
                self.mean[name] = weight.clone()
        self.count += 1

    def apply(self) -> None:
        """Copies the mean into the module."""
        for name, weight in self.weights().items():
            weight.copy_(self.mean[name] / self.count if self.decay is None else self.mean[name])

    def state_dict(self) -> dict[str, Any]:
        """Returns what a restart needs."""
        return {"count": self.count, "held": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        self.count = state["count"]
        weights = self.weights()
        self.mean = {name: value.to(weights[name].device, copy=True) for name, value in state["held"].items()}


@torch.no_grad()
def reestimate_batch_norm(module: nn.Module, batches: Iterable, forward: Callable[[Any], object] | None = None) -> None:
    """Computes running statistics again, as means over the batches weighted by their lengths, in training mode.

    forward: what to do with a batch, by default to call the module on it. The variance is the mean of the batches'
    unbiased ones. Momenta and mode are restored. With several processes each sees its own batches, and the means are
    shared. Raises ``UserError`` if there is no batch.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    if not norms:
        return
    momenta, training, seen = [norm.momentum for norm in norms], module.training, 0
    module.train()
    for norm in norms:
        norm.reset_running_stats()
    for batch in batches:
        seen += len(batch)
        for norm in norms:
            norm.momentum = len(batch) / seen
        (forward or module)(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.train(training)
    if not seen:
        raise UserError("SOLVER.EMA.BN_UPDATE: at least one batch is needed to estimate batch norm's statistics")
    if is_distributed():
        for norm in norms:
            assert norm.running_mean is not None and norm.running_var is not None
            for value in (norm.running_mean, norm.running_var):
                dist.all_reduce(value)
                value /= world_size()


def first_averaged(ratio: float, epochs: int) -> int:
    """Returns the first epoch of a uniform mean: ``epochs * ratio``, cut to an integer.

    Raises ``UserError`` for a ratio outside (0, 1], with which it would start after the last epoch or before the first.
    """
    if not 0 < ratio <= 1:
        raise UserError(
            f"SOLVER.EMA.RATIO: {ratio} is outside (0, 1]: averaging would start at epoch {epochs * ratio:g} of "
            f"{epochs} (SOLVER.MAX_EPOCHS); 1 switches it off"
        )
    return int(epochs * ratio)


def make_average(cfg: CfgNode, module: nn.Module, epochs: int) -> WeightAverage | None:
    """Returns the average that SOLVER.EMA asks for, None if it is off. epochs: without SOLVER.EMA.EXTRA_EPOCHS."""
    ema = cfg.SOLVER.EMA
    first = first_averaged(ema.RATIO, epochs)
    if ema.MODE == "exponential":
        if ema.RATIO < 1:
            raise conflict("SOLVER.EMA.MODE 'exponential'", "SOLVER.EMA.RATIO below 1", "the ratio is for 'uniform'")
        return WeightAverage(module, decay=ema.DECAY, bn_update=ema.BN_UPDATE)
    return WeightAverage(module, first, bn_update=ema.BN_UPDATE) if ema.RATIO < 1 else None
