"""The process group of a torchrun job: how a process joins the others, on its device, and leaves them or loses one.

What the processes exchange between the two is in `tiprctl.distributed`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from tiprctl.distributed import anyone
from tiprctl.errors import TiprError, UsageError
from tiprctl.job import Place, Terminated, place, termination
from tiprctl.precision import find_device

TIMEOUT = timedelta(minutes=30)
"""How long the processes wait for each other: longer than the first one takes for a checkpoint on a slow disk."""

LEFT_OVER = 30
"""Seconds after an error until a process is killed that waits, even as it ends, for another that is lost."""


@dataclass
class Job:
    """This process's part in a job: its device, and what tells the user what to do when the job is cut short."""

    device: torch.device
    remedy: Callable[[], str] = lambda: "Start it again."

    def cut_short(self) -> TiprError:
        """What is told of a job that lost a process, or was told to end; one cannot be known from the other."""
        return TiprError(
            "The job was cut short: one of its processes was killed, perhaps for want of memory, "
            "or all were told to end",
            remedy=self.remedy(),
        )


@contextmanager
def joined(device: str | None, tell: Callable[[TiprError], object]) -> Iterator[Job]:
    """Within the block this process works in its job, on its device; alone it works on the device of that name.

    With CUDA each process has the GPU of its number on its machine, and they speak through nccl; else through gloo. All
    leave the block together, unless one raises. `tell` says why where the block cannot be left any more.

    Raises:
        UsageError: there is no such device, or not one for each process.
        TiprError: the processes do not find each other, or one was lost.
    """
    here = place()
    if here.processes == 1:
        yield Job(find_device(device))
        return
    job = Job(_own_device(device, here))
    with termination(lambda: tell(job.cut_short())):
        try:
            _meet(job.device)
            yield job
            # torchrun ends all processes once one has left with an error, as after Ctrl-C: first all have to be done.
            anyone(False)
            dist.destroy_process_group()
        except BaseException as error:
            signal.alarm(LEFT_OVER)
            if isinstance(error, Terminated) or _tells_of_loss(error):
                raise job.cut_short() from error
            raise


def _own_device(name: str | None, here: Place) -> torch.device:
    """The device of one process of several."""
    if not (torch.cuda.is_available() if name is None else name.startswith("cuda")):
        return find_device(name)
    if name not in (None, "cuda"):
        raise UsageError(
            f"Each of {here.processes} processes has a GPU of its own, and not all of them {name}",
            where="--device",
            remedy="Leave it out, or choose the GPUs with CUDA_VISIBLE_DEVICES.",
        )
    if here.locals > torch.cuda.device_count() > 0:
        raise UsageError(
            f"There are {here.locals} processes on this machine and {torch.cuda.device_count()} GPUs",
            where="--nproc-per-node",
            remedy="Start one process for each GPU, or work on the CPU: --device cpu.",
        )
    # Where there is no CUDA at all, the error names what was typed.
    device = find_device(f"cuda:{here.local}" if torch.cuda.is_available() else name)
    torch.cuda.set_device(device)
    return device


def _meet(device: torch.device) -> None:
    """Start the process group from torchrun's variables."""
    on_gpu = device.type == "cuda"
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=TIMEOUT, device_id=device if on_gpu else None
        )
    except (dist.DistError, ValueError) as error:
        raise TiprError(
            f"The processes of the job do not find each other: {str(error).splitlines()[0]}",
            where=f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}",
            remedy="Check --rdzv-endpoint of torchrun, and that its port is open between the machines.",
        ) from error


def _tells_of_loss(error: BaseException) -> bool:
    """Whether an error says that another process cannot be reached any more; gloo's are of no type of their own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
