"""The gradients of a batch, by one process or by several that share it: what tests compare, and what starts them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import tiny
import torch
import torch.distributed as dist
from torch import Generator, Tensor
from torch.multiprocessing import spawn

from tiprctl.config import ObjectiveConfig
from tiprctl.distributed import own_share
from tiprctl.gradients import Passes, gradients_of
from tiprctl.objectives import OBJECTIVES, find_objective
from tiprctl.objectives.base import Objective
from tiprctl.objectives.composition import Composition

PROCESSES = 2


@dataclass(frozen=True)
class Case:
    """A step on a batch of noise: its objectives, its rows, in how many parts, and whether the captions come masked."""

    objectives: Sequence[ObjectiveConfig]
    size: int = 6
    parts: int = 1
    masked: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a step left: the losses by name, and gradients and buffers by the names of parameters and buffers."""

    total: Tensor
    losses: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor | None]
    buffers: Mapping[str, Tensor]


def take_step(case: Case) -> Outcome:
    """The step of a case halfway through a training, by this process on its share of the batch."""
    torch.manual_seed(0)
    heads = {find_objective(config.name).needs_head for config in case.objectives} - {None}
    encoder = tiny.encoder(head=heads.pop() if heads else "global")
    composition = Composition(encoder, case.objectives, identities=3)
    share = own_share(case.size)
    gradients = gradients_of(composition, Passes(device=torch.device("cpu")), parts=case.parts, rows=case.size)
    losses = gradients(share.of(batch(case)), 0.5, _generator(0), _generator(1))
    return Outcome(
        losses.total.detach(),
        losses.parts,
        {name: parameter.grad for name, parameter in composition.named_parameters()},
        dict(composition.named_buffers()),
    )


def assert_same(one: Outcome, other: Outcome) -> None:
    """Losses and buffers agree to 1e-5, the gradient of each parameter to 1e-4 of its norm."""
    torch.testing.assert_close(one.total, other.total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.buffers, other.buffers, rtol=1e-5, atol=1e-5)
    assert one.gradients.keys() == other.gradients.keys()
    assert [name for name, each in one.gradients.items() if each is None] == [
        name for name, each in other.gradients.items() if each is None
    ]
    norms = {name: each.norm() for name, each in one.gradients.items() if each is not None}
    # What a softmax does not feel, such as a bias of its keys, has a gradient of rounding errors alone.
    least = 1e-4 * max(norms.values(), default=0.0)
    for name, norm in norms.items():
        difference = (other.gradients[name] - one.gradients[name]).norm()
        assert difference <= 1e-4 * max(norm, least), f"{name}: {difference} of {norm}"


def work(rank: int, folder: Path, cases: Mapping[str, Case], added: Sequence[type[Objective]]) -> None:
    """Be one of `PROCESSES`: take the steps of all cases, with objectives of one's own, and write what they left."""
    OBJECTIVES.update({kind.name: kind for kind in added})
    with joined(rank, folder):
        torch.save({name: take_step(case) for name, case in cases.items()}, folder / f"{rank}.pt")


@contextmanager
def joined(rank: int, folder: Path) -> Iterator[None]:
    """Within the block this process is one of `PROCESSES`, which meet in the folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=PROCESSES)
    yield
    dist.barrier()
    dist.destroy_process_group()


def run_together(
    folder: Path, cases: Mapping[str, Case], added: Sequence[type[Objective]] = ()
) -> list[dict[str, Outcome]]:
    """What the steps left in each process."""
    spawn(work, (folder, cases, added), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


def batch(case: Case) -> tiny.NoiseBatch:
    """The batch of a case; every other caption is shorter."""
    whole = tiny.batch(case.size)
    whole.token_ids[1::2, 6], whole.token_ids[1::2, 7:] = 99, 0
    if not case.masked:
        return whole
    chosen = torch.rand(whole.token_ids.shape, generator=_generator(2)) < 0.3
    labels = torch.where(chosen & (whole.token_ids < 98), whole.token_ids, 0)
    return replace(whole, token_ids=torch.where(labels > 0, 97, whole.token_ids), token_labels=labels)


def _generator(seed: int) -> Generator:
    return Generator().manual_seed(seed)
