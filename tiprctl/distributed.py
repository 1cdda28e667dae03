"""What the processes of a joined job exchange: rows, sums, gradients and answers; alone, all of it does nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tiprctl.shares import Share

Made = TypeVar("Made")


def processes() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process() -> int:
    """The number of this process, from 0; 0 without a process group."""
    return dist.get_rank() if processes() > 1 else 0


def anyone(says: bool) -> bool:
    """Whether any process says so; all get the same answer, after all have asked."""
    return bool(add_up([int(says)])[0])


def first_makes(make: Callable[[], Made]) -> Made:
    """What the first process makes, told to all the others; they must be able to unpickle it."""
    made = [make() if process() == 0 else None]
    if processes() > 1:
        dist.broadcast_object_list(made, src=0, device=torch.device("cpu"))
    return made[0]


@contextmanager
def first_goes_ahead() -> Iterator[None]:
    """The first process is through the block before the others begin it, so that they find what it wrote."""
    if process() > 0:
        anyone(False)
    yield
    if process() == 0:
        anyone(False)


def own_share(total: int) -> Share:
    """Which of so many rows are this process's."""
    return _shares(total)[process()]


def gather(rows: Tensor, total: int) -> Tensor:
    """The rows `(total, ...)` of all processes in their order, of which each has its `own_share`; gradients go back."""
    if processes() == 1:
        return rows
    sizes = tuple(len(share) for share in _shares(total))
    return _Rows.apply(rows, sizes) if rows.is_floating_point() else _gathered(rows, sizes)


def add_up(numbers: Sequence[int]) -> list[int]:
    """The sum of each number over all processes; no device waits for it."""
    if processes() == 1 or not numbers:
        return list(numbers)
    sums = torch.tensor(numbers)
    dist.all_reduce(sums)
    return sums.tolist()


def total(value: Tensor) -> Tensor:
    """The sum of a tensor, of equal shape everywhere, over all processes; gradients go back."""
    return value if processes() == 1 else _Total.apply(value)


def average(value: Tensor) -> Tensor:
    """The mean of a tensor, of equal shape everywhere, over all processes."""
    return value if processes() == 1 else total(value) / processes()


def averaging(module: nn.Module, *, some_unused: bool) -> nn.Module:
    """The module, or around it one whose backward pass leaves every process the mean of all processes' gradients.

    They are averaged while the pass goes on. All processes begin with the first one's weights. Where `some_unused`
    parameters may take no part in a pass, they are looked for in each one, in what `forward` returns (also in a
    dataclass); what no process used keeps no gradient, so that the optimiser leaves it alone.
    """
    if processes() == 1:
        return module
    with warnings.catch_warnings():
        # Newer releases of torch have another name for `broadcast_buffers`, which older ones do not know.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            module, broadcast_buffers=False, find_unused_parameters=some_unused, gradient_as_bucket_view=True
        )


def unaveraged(module: nn.Module, *, when: bool) -> AbstractContextManager:
    """Within the block a module of `averaging` keeps to its own gradients; what follows averages them with its own."""
    return module.no_sync() if when and isinstance(module, DistributedDataParallel) else nullcontext()


def _shares(total: int) -> list[Share]:
    return Share.whole(total).split(processes())


class _Total(torch.autograd.Function):
    """Adds up tensors; the gradient of each is the sum of what all processes have for the total."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _summed(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


class _Rows(torch.autograd.Function):
    """Gathers rows; the gradient of a row is the sum of what all processes have for it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: tuple[int, ...]) -> Tensor:
        ctx.sizes = sizes
        return _gathered(rows, sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _summed_rows(gradient, ctx.sizes), None


def _summed_rows(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """This process's rows of the sum `(sum of sizes, ...)` over all processes."""
    if len(set(sizes)) > 1:
        return _summed(rows).split(sizes)[process()]
    own = rows.new_empty((sizes[0], *rows.shape[1:]))
    dist.reduce_scatter_tensor(own, rows.contiguous())
    return own


def _summed(value: Tensor) -> Tensor:
    value = value.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(value)
    return value


def _gathered(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rows `(B, ...)` of all processes, `(sum of sizes, ...)`."""
    longest = max(sizes)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes)])
