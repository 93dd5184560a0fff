"""Normalisation layers: instance-batch norm and batch norm synchronised over processes."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from utils.distributed import all_reduce_with_grad, world_size


class IBN(nn.Module):
    """Half the channels through instance norm, half through batch norm (Pan et al., ECCV 2018, IBN-a).

    (B, C, H, W) -> (B, C, H, W). The first C // 2 channels are instance-normalised (affine, no running statistics).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.instance_channels = channels // 2
        self.IN = nn.InstanceNorm2d(self.instance_channels, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.instance_channels)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x[:, : self.instance_channels], x[:, self.instance_channels :]
        return torch.cat([self.IN(first.contiguous()), self.BN(second.contiguous())], dim=1)


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm with the statistics of all processes' rows, with gradient, on any device and backend.

    torch's own refuses CPU tensors. The mean comes first, then squared deviations, so that float32 does not cancel.
    (B, C, ...) -> the same shape. Running statistics use the unbiased variance as in ``nn.BatchNorm``. drop, act: what
    some of timm's norms do after normalising.
    """

    def __init__(self, *args: Any, drop: nn.Module | None = None, act: nn.Module | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.drop, self.act = drop or nn.Identity(), act or nn.Identity()

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"expected at least two dimensions, got {x.dim()}")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return self.act(self.drop(super().forward(x)))
        self._check_input_dim(x)
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        count = all_reduce_with_grad(torch.tensor(float(values.numel() // values.shape[1]), device=x.device))
        mean = all_reduce_with_grad(values.sum(dims)) / count
        var = all_reduce_with_grad((values - mean.view(shape)).square().sum(dims)) / count
        if self.track_running_stats:
            with torch.no_grad():
                assert self.num_batches_tracked is not None, "tracked statistics have a counter"
                assert self.running_mean is not None and self.running_var is not None
                self.num_batches_tracked += 1
                momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), momentum)
        out = (values - mean.view(shape)) * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return self.act(self.drop(out.to(x.dtype)))


def convert_sync_batch_norm(module: nn.Module) -> nn.Module:
    """Replaces every batch norm inside ``module`` by ``SyncBatchNorm`` with the same parameters and buffers.

    Returns the module, or the replacement if it is a batch norm itself.
    """
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, SyncBatchNorm):
        synced = SyncBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats,
            drop=module.get_submodule("drop") if isinstance(module, BatchNormAct2d) else None,
            act=module.get_submodule("act") if isinstance(module, BatchNormAct2d) else None,
        )  # fmt: skip
        synced.weight, synced.bias = module.weight, module.bias
        synced.running_mean, synced.running_var = module.running_mean, module.running_var
        synced.num_batches_tracked = module.num_batches_tracked
        synced.train(module.training)
        return synced
    for name, child in module.named_children():
        replaced = convert_sync_batch_norm(child)
        if replaced is not child:  # timm registers some children under two names: assigning one would break the tie
            setattr(module, name, replaced)
    return module
