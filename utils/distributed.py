"""Helpers for one process or many: ranks, gathering with gradient, and shared values."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_distributed() -> bool:
    """Returns whether this run has a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Returns this process's number, from 0."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Returns the number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """Returns whether this is the first process."""
    return rank() == 0


def local_rank() -> int:
    """Returns this process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def start(device: torch.device) -> None:
    """Joins the process group that ``torchrun`` announces in the environment; does nothing without one."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not is_distributed():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def stop() -> None:
    """Leaves the process group, if there is one."""
    if is_distributed():
        dist.destroy_process_group()


def barrier() -> None:
    """Waits for all processes."""
    if is_distributed():
        dist.barrier()


def broadcast_object(value: Any) -> Any:
    """Returns rank 0's value on every rank."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def share_buffers(module: nn.Module) -> None:
    """Copies rank 0's buffers, such as running statistics, to every rank."""
    if is_distributed():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def any_rank(*conditions: bool, device: torch.device) -> list[bool]:
    """Returns for each condition whether it holds on any rank, the same on every rank. device: of the process group."""
    if not is_distributed():
        return list(conditions)
    values = torch.tensor(conditions, dtype=torch.int32, device=device)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return [bool(value) for value in values.tolist()]


def gather_objects(value: Any) -> list[Any]:
    """Returns every rank's value, in rank order, on every rank."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded)
        return torch.cat([of_rank[:count] for of_rank, count in zip(gathered, counts, strict=True)])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous()
        dist.all_reduce(grad)  # every process used every row, so their gradients add up
        return grad.split(ctx.counts)[rank()], None


def gather_rows(rows: Tensor, counts: list[int] | None = None) -> Tensor:
    """Returns the rows of all processes in rank order, with gradient. (B, ...) -> (sum of all B, ...).

    counts: each process's B; None if they are equal. A loss on the gathered rows, averaged over processes as
    ``DistributedDataParallel`` does, has the gradient of one process with the whole batch.
    """
    if world_size() == 1:
        return rows
    return _GatherRows.apply(rows, counts or [len(rows)] * world_size())


def share_of(count: int) -> tuple[slice, list[int]]:
    """Divides ``count`` rows in order; returns this process's rows, and the number of rows of each process."""
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
    """Returns the sum over all processes, with gradient."""
    return _AllReduce.apply(value) if world_size() > 1 else value
