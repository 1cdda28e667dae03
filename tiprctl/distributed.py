"""Several processes that train one model: who they are, and what they exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process() -> int:
    """The number of this process, from 0; 0 without a process group."""
    return dist.get_rank() if processes() > 1 else 0


def gather(value: Any, sizes: Sequence[int]) -> Any:
    """The rows of all processes in their order, of tensors and of dataclasses that hold them; gradients go back.

    `sizes`: how many rows each process has. What is neither a tensor nor a dataclass is everybody's own.
    """
    if len(sizes) == 1:
        return value
    if isinstance(value, Tensor):
        return _Rows.apply(value, tuple(sizes)) if value.is_floating_point() else _gathered(value, sizes)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: gather(getattr(value, each.name), sizes) for each in fields(value)})
    return value


def total(number: Tensor) -> Tensor:
    """The sum of a number over all processes, without gradient."""
    if processes() == 1:
        return number
    number = number.detach().clone()
    dist.all_reduce(number)
    return number


class _Rows(torch.autograd.Function):
    """Gathers rows; the gradient of a row is the sum of what all processes have for it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: tuple[int, ...]) -> Tensor:
        ctx.sizes = sizes
        return _gathered(rows, sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.split(ctx.sizes)[process()], None


def _gathered(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rows `(B, ...)` of all processes, `(sum of sizes, ...)`."""
    longest = max(sizes)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes)])
