"""The levers of a training that change how it is carried out and not what is learnt, and what machines refuse of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tiprctl.errors import TrainingError

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""The variable that lets cuBLAS keep the order of its sums; it is read when its first product is computed."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """What makes a training faster, smaller or repeatable; what is learnt stays the same but for rounding.

    `compile`: fuse the towers' blocks with a compiler. `checkpoint_blocks`: keep only what enters each block of the
    towers and compute the rest again going backward. `accumulate`: in how many parts a process takes its rows of a
    batch; the losses are those of the whole batch all the same. `deterministic`: no kernel whose result depends on the
    order of its threads.
    """

    compile: bool = False
    checkpoint_blocks: bool = False
    accumulate: int = 1
    deterministic: bool = False

    def describe(self, device: torch.device, dtype: torch.dtype | None) -> dict[str, Any]:
        """What a run keeps of it: the levers, the device by name, the precision, and the number of threads."""
        return {
            **asdict(self),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
            "precision": str(dtype or torch.float32).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }


@contextmanager
def repeatable(enabled: bool) -> Iterator[None]:
    """Within the block torch takes only kernels that give the same bits each time, if `enabled`; then all is as before.

    An operation that has no such kernel on the device fails, with a RuntimeError that names it.
    """
    if not enabled:
        yield
        return
    cudnn, workspace = torch.backends.cudnn, os.environ.get(CUBLAS_WORKSPACE)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.deterministic, cudnn.benchmark
    os.environ[CUBLAS_WORKSPACE] = workspace or ":4096:8"
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = flags
        if workspace is None:
            del os.environ[CUBLAS_WORKSPACE]


@contextmanager
def faults_told(execution: Execution, place: str, *, device: torch.device, remedy: str) -> Iterator[None]:
    """Within the block, whose `place` in a training is such as `at step 7`, what the machine refuses is explained.

    Raises:
        TrainingError: memory ran out, which `remedy` is for; an operation has no deterministic kernel, and such were
            asked for; or the compiler failed where the blocks could not be run without it.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        told = partial(TrainingError, where=str(device))
        if out_of_memory(error):
            raise told(f"Out of memory {place}; {_peak(device)}", remedy=remedy) from error
        reason = next(iter(str(error).splitlines()), "")
        if execution.deterministic and "deterministic implementation" in reason:
            remedy = "Give --no-deterministic, also with --resume; or train with --device cpu."
            raise told(f"The training cannot be repeatable {place}: {reason}", remedy=remedy) from error
        if execution.compile and _of_compiler(error):
            # A resumed run compiles as before, unless it is told not to.
            remedy = "Go on with --resume RUN --no-compile."
            raise told(f"The compiler failed {place}: {reason}", remedy=remedy) from error
        raise


def memory_savers(execution: Execution, dtype: torch.dtype | None, *, rows: int) -> str:
    """Which of the flags that save memory are left to a process with so many rows of a batch, as a remedy.

    Those that change no result come first.
    """
    levers = [] if execution.checkpoint_blocks else ["--checkpoint-blocks"]
    if execution.accumulate < rows:
        levers.append(f"--accumulate {min(2 * execution.accumulate, rows)}")
    others = " or ".join(["a smaller --batch-size", *(["--amp bf16"] if dtype is None else [])])
    if not levers:
        return f"Start anew with {others}."
    return f"Give {' or '.join(levers)}, also with --resume; or start anew with {others}."


def _of_compiler(error: BaseException) -> bool:
    # Imported here: it takes seconds, and most trainings do without.
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


def _peak(device: torch.device) -> str:
    peak = peak_memory(device)
    return "the peak is not known here" if peak is None else f"the peak so far was {peak / 1e9:.1f} GB"


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocator of torch gave up: CUDA's, or the CPU's, which has no error of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: " in str(error)
    )


def peak_memory(device: torch.device) -> int | None:
    """The most memory so far in bytes: of tensors on a CUDA device, else of the whole process; None: not known.

    The process's begins anew where Linux is told so.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # on Windows
        return None
    # macOS counts in bytes, others in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
