"""One process or many: ranks, gathering with gradient, and agreeing on things."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    return rank() == 0


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def start(device: torch.device) -> None:
    """Joins the process group that ``torchrun`` announces in the environment; without one, does nothing."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not is_distributed():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def stop() -> None:
    if is_distributed():
        dist.destroy_process_group()


def barrier() -> None:
    if is_distributed():
        dist.barrier()


def broadcast_object(value: Any) -> Any:
    """Rank 0's value on every rank."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def share_buffers(module: nn.Module) -> None:
    """Rank 0's buffers, such as running statistics, on every rank."""
    if is_distributed():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on every rank."""
    if not is_distributed():
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous()
        dist.all_reduce(grad)  # every process used every row, so their gradients add up
        return grad.split(ctx.counts)[rank()], None


def gather_rows(rows: Tensor, counts: list[int] | None = None) -> Tensor:
    """Rows of all processes in rank order, with gradient. (B, ...) -> (sum of all B, ...).

    counts: each process's B; None where they are alike. A loss on the gathered rows, averaged over processes as
    ``DistributedDataParallel`` does, has the gradient of one process with the whole batch.
    """
    if world_size() == 1:
        return rows
    return _GatherRows.apply(rows, counts or [len(rows)] * world_size())


def share_of(count: int) -> tuple[slice, list[int]]:
    """This process's rows of ``count`` ones shared out in order, and how many each process has."""
    world = world_size()
    counts = [count // world + (r < count % world) for r in range(world)]
    begin = sum(counts[: rank()])
    return slice(begin, begin + counts[rank()]), counts


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


def all_reduce_with_grad(value: Tensor) -> Tensor:
    """Sum over all processes, with gradient."""
    return _AllReduce.apply(value) if world_size() > 1 else value
