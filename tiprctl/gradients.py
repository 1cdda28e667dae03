"""The losses of a batch and their gradients: taken at once or in parts, by one process or by many."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from tiprctl.config import ObjectiveConfig
from tiprctl.data.samplers import check_parts
from tiprctl.distributed import anyone, averaging, own_share, process, processes, unaveraged
from tiprctl.models.encodings import (
    Encodings,
    Masks,
    Needs,
    PairBatch,
    draw_masks,
    encode_masked,
)
from tiprctl.models.rows import concatenated
from tiprctl.objectives.composition import Composition, Counts, Losses, Term
from tiprctl.precision import autocast
from tiprctl.shares import Share

PROBED = 2
"""From how many rows of each share it is told, at most, which parameters take part in the losses."""


def unscaled(loss: Tensor) -> Tensor:
    """The loss as it is."""
    return loss


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How passes are taken.

    `dtype` is what autocast computes the forward ones in, None: float32; a loss goes through `scale` before its
    gradients are taken, as by a `GradScaler`.
    """

    device: torch.device
    dtype: torch.dtype | None = None
    scale: Callable[[Tensor], Tensor] = unscaled

    @contextmanager
    def forward(self, seed: int) -> Iterator[None]:
        """Within the block operations are cast, and dropout starts from `seed`."""
        with autocast(self.device, self.dtype), _dropout_from(seed, self.device):
            yield


class Gradients(ABC):
    """Leaves in the parameters of a composition the gradients of a batch's losses, averaged over the processes.

    Losses and gradients are those of the whole batch, of which each process has its share.
    """

    def __init__(self, composition: Composition, passes: Passes):
        self.composition = composition
        self.passes = passes

    @abstractmethod
    def __call__(self, batch: PairBatch, progress: float, masks: Generator, dropout: Generator) -> Losses:
        """Add the gradients of a batch to what the parameters hold.

        Args:
            progress: the share of the training that is done.
            masks: what the objectives' masks are drawn from, in the same state in all processes.
            dropout: whose seed, together with the process, dropout starts from.
        """


class AtOnce(Gradients):
    """The gradients of a batch by one pass forward and one backward.

    In a job, which parameters take part is found whenever other objectives become active: by a forward pass of its own,
    of `PROBED` rows of each share at most, so that it takes little memory beside a step.
    """

    def __init__(self, composition: Composition, passes: Passes):
        super().__init__(composition, passes)
        self.model: nn.Module = composition
        self._active: Sequence[ObjectiveConfig] | None = None
        self._some_unused: bool | None = None

    def __call__(self, batch: PairBatch, progress: float, masks: Generator, dropout: Generator) -> Losses:
        if processes() > 1:
            self._average(batch, progress)
        with self.passes.forward(dropout.initial_seed() + process()):
            losses = self.model(batch, progress, masks)
        self.passes.scale(losses.total).backward()
        return losses

    def _average(self, batch: PairBatch, progress: float) -> None:
        """Have the gradients averaged, without a search for what is unused where all parameters take part."""
        active = self.composition.active(progress)
        if active == self._active:
            return
        self._active = active
        some_unused = anyone(not self._takes_all(_probe(batch), progress))
        if some_unused != self._some_unused:
            self._some_unused = some_unused
            self.model = averaging(self.composition, some_unused=some_unused)

    def _takes_all(self, batch: PairBatch, progress: float) -> bool:
        """Whether a loss gives every parameter a gradient: found in evaluation, where a pass leaves no trace."""
        learning = {each for each in self.composition.parameters() if each.requires_grad}
        trained = self.composition.training
        self.composition.eval()
        with self.passes.forward(seed=0):
            losses = self.composition(batch, progress, torch.Generator().manual_seed(0))
        self.composition.train(trained)
        return learning <= reached(losses.total)


class InParts(Gradients):
    """The gradients of a batch whose rows are encoded in parts: the memory of one part, and the tokens of all.

    Gradient caching (Gao et al., 2021, arXiv 2101.06983). The plain views of all parts are first encoded without
    gradients; the losses of the whole batch and their gradients down to the tokens are then those of the undivided
    batch. Each part is encoded again, with its masked views, takes the cached gradients of its tokens further down, and
    those of the losses that need no other rows besides. So the plain views are encoded twice, and nothing else is.

    Raises:
        UsageError: there are more parts than rows, or fewer than one.
    """

    def __init__(self, composition: Composition, passes: Passes, *, parts: int, rows: int):
        check_parts(parts, rows)
        super().__init__(composition, passes)
        self.parts = parts
        # What the losses of the whole batch alone have reached has no part in the passes of the parts.
        self.model = averaging(_PartPass(composition), some_unused=True)

    def __call__(self, batch: PairBatch, progress: float, masks: Generator, dropout: Generator) -> Losses:
        needs, terms = self.composition.needs(progress), self.composition.terms(progress)
        drawn = draw_masks(self.composition.encoder, batch, needs, masks)
        counts = Counts(terms, drawn, batch)
        first_seed, *seeds = _seeds(dropout, 1 + self.parts)
        # A batch of the sampler `pairs` may have too few rows; as many parts in every process, or they would not meet.
        count = min(self.parts, batch.share.total // processes())
        shares = Share.whole(len(batch.pids)).split(count)
        parts = [_Part(rows, rows.of(batch), rows.of(drawn), seed) for rows, seed in zip(shares, seeds)]
        jointly, gradients = self._jointly(batch, parts, needs, terms, first_seed)
        return sum(self._apart(parts, needs, terms, counts, gradients), start=jointly)

    def _jointly(
        self, batch: PairBatch, parts: Sequence[_Part], needs: Needs, terms: Sequence[Term], seed: int
    ) -> tuple[Losses, dict[str, Tensor]]:
        """The losses that look at the whole batch, and their gradients by the views whose tokens have one."""
        if all(term.count is not None for term in terms):
            return Losses.of(terms, {}), {}
        leaves = _leaves(concatenated([self._plain(part, needs) for part in parts]))
        with self.passes.forward(seed):
            losses = Losses.of(terms, self.composition.jointly(terms, leaves, batch))
        self.passes.scale(losses.total).backward()
        cached = {name: view.values.grad for name, view in leaves.plain.items()}
        return losses.detached(), {name: each for name, each in cached.items() if each is not None}

    @torch.no_grad()
    def _plain(self, part: _Part, needs: Needs) -> Encodings:
        """The views of a part that are not masked."""
        with self.passes.forward(part.seed):
            return encode_masked(self.composition.encoder, part.batch, needs, Masks())

    def _apart(
        self,
        parts: Sequence[_Part],
        needs: Needs,
        terms: Sequence[Term],
        counts: Counts,
        gradients: Mapping[str, Tensor],
    ) -> Iterator[Losses]:
        """The losses of each part that need no other rows; its gradients go down to the parameters."""
        for part in parts:
            # What only the losses of the whole batch have reached is averaged with the last part as well.
            with unaveraged(self.model, when=part is not parts[-1]):
                with self.passes.forward(part.seed):
                    forward = self.model(part, needs, terms, counts, list(gradients))
                roots = [self.passes.scale(forward.losses.total)] if forward.losses.parts else []
                torch.autograd.backward(
                    [*roots, *forward.tokens],
                    [*(None for _ in roots), *(part.rows.of(each) for each in gradients.values())],
                )
            yield forward.losses.detached()


def _probe(batch: PairBatch) -> PairBatch:
    """The first rows of a process's share, as the process's share of a small batch: equally many in every process."""
    rows = min(PROBED, batch.share.total // processes())
    return replace(Share(0, rows, len(batch.share)).of(batch), share=own_share(rows * processes()))


@dataclass(frozen=True)
class _Part:
    """Some `rows` of a process's share, what is hidden of them, and where their dropout starts."""

    rows: Share
    batch: PairBatch
    masks: Masks
    seed: int


@dataclass(frozen=True)
class _PartForward:
    """The losses of a part that need no other rows, and the tokens that have a gradient from elsewhere."""

    losses: Losses
    tokens: Sequence[Tensor]


class _PartPass(nn.Module):
    """The forward pass of a part, as a module: so that gradients can be averaged while they come up."""

    def __init__(self, composition: Composition):
        super().__init__()
        self.composition = composition

    def forward(
        self, part: _Part, needs: Needs, terms: Sequence[Term], counts: Counts, views: Sequence[str]
    ) -> _PartForward:
        encodings = encode_masked(self.composition.encoder, part.batch, needs, part.masks)
        outputs = self.composition.apart(terms, encodings, part.batch, part.masks, counts)
        return _PartForward(Losses.of(terms, outputs), [encodings.plain[view].values for view in views])


def gradients_of(composition: Composition, passes: Passes, *, parts: int, rows: int) -> Gradients:
    """The gradients of a process's `rows` of a batch, at once or in `parts`.

    Raises:
        UsageError: there are more parts than rows, or fewer than one.
    """
    if parts == 1:
        return AtOnce(composition, passes)
    return InParts(composition, passes, parts=parts, rows=rows)


def reached(loss: Tensor) -> set[Tensor]:
    """The leaves that the backward pass of a loss gives a gradient."""
    leaves, seen, waiting = set(), set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        waiting.extend(following for following, _ in node.next_functions)
    return leaves


def _leaves(encodings: Encodings) -> Encodings:
    """The same, with tokens that keep their gradient."""
    views = {name: replace(view, values=view.values.requires_grad_()) for name, view in encodings.plain.items()}
    return replace(encodings, **views)


def _seeds(dropout: Generator, count: int) -> list[int]:
    """Seeds that differ from each other, and from process to process."""
    own = torch.Generator().manual_seed(dropout.initial_seed() + process())
    return torch.randint(2**62, (count,), generator=own).tolist()


@contextmanager
def _dropout_from(seed: int, device: torch.device) -> Iterator[None]:
    """Within the block torch's global generators, which dropout (BERT's) draws from, start from `seed`."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
