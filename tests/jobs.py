"""Jobs of two processes: as torchrun starts them, or forked from one that has loaded everything, which takes no time.

Run by torchrun as a script it is the program, but for `Signal`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.distributed import TCPStore

PROCESSES = 2
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
PRELOADED = ["torch.distributed.run", "tiprctl.cli.app", "tiprctl.cli.training_view", "tiprctl.training"]


@dataclass(frozen=True)
class Signal:
    """What a process of this number sends before a step of this number, from 1: to itself, or SIGINT to torchrun."""

    name: str
    process: int = 0
    before: int = 1

    def arm(self) -> None:
        """Let this process send it, if it is the one."""
        from tiprctl.job import place
        from tiprctl.training import Trainer

        take_steps, taken = Trainer.take_steps, []

        def signalled(trainer):
            for step in take_steps(trainer):
                yield step
                taken.append(step)
                if len(taken) == self.before - 1:
                    os.kill(os.getppid() if self.name == "SIGINT" else os.getpid(), signal.Signals[self.name])

        if place().process == self.process:
            Trainer.take_steps = signalled


@dataclass(frozen=True)
class Done:
    """What the processes of a job printed, together, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def torchrun(*arguments: str, sent: Signal | None = None) -> Done:
    """Two processes that torchrun starts; its own reports, which go to stderr as well, name its package."""
    program = [__file__, sent.name, str(sent.process), str(sent.before)] if sent else ["-m", "tiprctl"]
    return _printed([partial(_launch, ["--nproc-per-node", str(PROCESSES), *program, *arguments])])


def forked(*arguments: str, sent: Signal | None = None) -> Done:
    """Two processes with the environment that torchrun would give them, but without it: nobody ends the other one.

    The exit code is the highest of theirs, or that of a signal, below 0, where all others are 0.
    """
    # torchrun keeps the store of its job, and so does this process.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return _printed([partial(_work, rank, store.port, arguments, sent) for rank in range(PROCESSES)])


def _printed(works: Sequence[Callable[[], None]]) -> Done:
    """What functions print that run at the same time, each in a process forked from one that has loaded everything."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with TemporaryDirectory() as folder:
        files = Path(folder, "out"), Path(folder, "err")
        processes = [context.Process(target=_print_into, args=(work, *files)) for work in works]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=240)
            process.kill()
            process.join()
        codes = [process.exitcode for process in processes]
        return Done(max(codes) or min(codes), *(file.read_text() for file in files))


def _print_into(work: Callable[[], None], out: Path, err: Path) -> None:
    os.environ |= ENVIRONMENT
    for file, stream in ((out, sys.stdout), (err, sys.stderr)):
        with file.open("ab") as handle:
            os.dup2(handle.fileno(), stream.fileno())
    work()


def _launch(arguments: Sequence[str]) -> None:
    """Be torchrun."""
    from torch.distributed.run import main

    main(arguments)


def _work(rank: int, port: int, arguments: Sequence[str], sent: Signal | None) -> None:
    """Be one process of a job, running the program."""
    from tiprctl.cli import main

    place = {"RANK": rank, "WORLD_SIZE": PROCESSES, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": PROCESSES}
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    os.environ |= {name: str(value) for name, value in (place | store).items()}
    if sent:
        sent.arm()
    sys.argv = ["tiprctl", *arguments]
    main()


if __name__ == "__main__":
    from tiprctl.cli import main

    Signal(sys.argv.pop(1), int(sys.argv.pop(1)), int(sys.argv.pop(1))).arm()
    main()
