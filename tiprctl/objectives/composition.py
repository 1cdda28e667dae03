"""The dual encoder together with the objectives that train it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Generator, Tensor, nn

from tiprctl.config import MOST_PHRASES, CaptionConfig, ObjectiveConfig, from_dict
from tiprctl.distributed import add_up, processes
from tiprctl.errors import UsageError
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.encodings import (
    EncoderSpec,
    Encodings,
    Masks,
    Needs,
    PairBatch,
    draw_masks,
    encode_masked,
)
from tiprctl.models.rows import Gathered, GatheredEncodings
from tiprctl.objectives import find_objective
from tiprctl.objectives.base import Loss, Objective, ObjectiveOutput, Role


@dataclass(frozen=True)
class Term:
    """What one objective, or several that share a loss, add to the sum.

    `count` tells over how many things a mean by row goes; None where the loss looks at the whole batch.
    """

    name: str
    weight: float
    loss: Loss
    count: Callable[[Masks, PairBatch], int] | None = None


Outputs = dict[str, ObjectiveOutput]
"""What terms make of a batch, or of a part of it, by their names."""


@dataclass(frozen=True)
class Losses:
    """The weighted sum to descend, and each part unweighted, detached, by name, for the log."""

    total: Tensor
    parts: dict[str, Tensor]

    @classmethod
    def of(cls, terms: Iterable[Term], outputs: Outputs) -> Losses:
        """Those of the terms that have an output, in their order; zero where none has."""
        summands, parts = [], {}
        for term in terms:
            if output := outputs.get(term.name):
                summands.append(term.weight * output.loss)
                parts[term.name] = output.loss.detach()
                parts |= {f"{term.name}/{figure}": value.detach() for figure, value in output.figures.items()}
        return cls(sum(summands) if summands else torch.zeros(()), parts)

    def detached(self) -> Losses:
        """The same without gradients."""
        return Losses(self.total.detach(), self.parts)

    def __add__(self, other: Losses) -> Losses:
        """The losses of two parts of a batch, or of different terms."""
        parts = {name: value + other.parts.get(name, 0) for name, value in self.parts.items()}
        return Losses(self.total + other.total, other.parts | parts)


class Composition(nn.Module):
    """A method: an encoder and its weighted objectives, each active in its share of the training.

    Raises:
        UsageError: an objective is unknown, its options are wrong, it needs another head or text tower, or pairs of a
            head that looks at none; two that are active together want different masks of the same kind or share a loss
            on different conditions; or a stretch of the training has none.
    """

    def __init__(self, encoder: DualEncoder, configs: Sequence[ObjectiveConfig], *, identities: int):
        super().__init__()
        self.encoder = encoder
        self.configs = tuple(configs)
        spec = EncoderSpec(encoder.clip.config, encoder.head.width, identities, encoder.head.name)
        self.objectives = nn.ModuleDict({config.name: build_objective(config, spec) for config in self.configs})
        self._check_pairs()
        for boundary in _boundaries(self.configs):
            self._check(boundary)

    def active(self, progress: float) -> list[ObjectiveConfig]:
        """The objectives that take part at `progress`, the share of all steps that is done."""
        return _active(self.configs, progress)

    def _check_pairs(self) -> None:
        """Refuse an objective that reads pairs of images and captions where the head looks at none."""
        for name, objective in self.objectives.items():
            if objective.needs().pairs and not self.encoder.head.reranks:
                raise UsageError(
                    f"The objective {name} reads pairs of images and captions, and the head {self.encoder.head.name} "
                    "looks at none",
                    where="model.head",
                    remedy=f"Give a head that does: `--set model.head=division`, or train without {name}.",
                )

    def _check(self, progress: float) -> None:
        """Refuse what could not be trained at `progress`: clashing objectives, or nothing to learn from."""
        self._check_needs(self.needs(progress))
        self.terms(progress)
        if not self.active(progress):
            raise UsageError(
                f"No objective is active after {progress:.0%} of the training",
                where="objectives",
                remedy="Let one of them start there, or stop later.",
            )

    def _check_needs(self, needs: Needs) -> None:
        """Refuse views of the captions that are made in CLIP's vocabulary or context, where BERT reads them."""
        if self.encoder.bert is not None and (needs.masked_text or needs.padded_text):
            raise UsageError(
                "Masked words (mlm) and attended padding (attend_padding) are for CLIP's text tower only",
                where="objectives",
                remedy="Train without them, or with the text encoder clip.",
            )

    def check_captions(self, captions: CaptionConfig) -> None:
        """Refuse captions that come without the phrases that an objective reads.

        Raises:
            UsageError: they do.
        """
        for name, objective in self.objectives.items():
            needs = objective.needs()
            if (needs.prompts or needs.pairs) and not captions.phrases:
                raise UsageError(
                    f"The objective {name} reads the phrases of the captions, and captions.phrases is 0",
                    where="captions.phrases",
                    remedy=f"Give `--set captions.phrases={MOST_PHRASES}`, or train without {name}.",
                )

    def needs(self, progress: float) -> Needs:
        """What the objectives that are active at `progress` need together."""
        return reduce(Needs.merge, (self.objectives[config.name].needs() for config in self.active(progress)), Needs())

    def terms(self, progress: float) -> list[Term]:
        """The losses that are added up at `progress`; the objectives of a group share one.

        Raises:
            UsageError: those of a group cannot share one as they are set.
        """
        return [self._term(configs) for configs in _sharing(self.active(progress))]

    def _term(self, configs: Sequence[ObjectiveConfig]) -> Term:
        """The loss of an objective, or of those that share one."""
        first, *others = objectives = [self.objectives[config.name] for config in configs]
        if len({objective.by_row for objective in objectives}) > 1:
            raise UsageError(
                f"The objectives {_joined(configs)} share one loss, and only some of them are `by_row`",
                where="objectives",
                remedy="Declare it of all of them or of none, or train with one of them at a time.",
            )
        weights = [config.weight for config in configs]
        loss = first.together(objectives, weights) if others else first
        return Term(_joined(configs), weights[0], loss, first.count if first.by_row else None)

    def roles(self) -> Iterable[tuple[Role, nn.Module]]:
        """Every module with parameters, with the role that its owner declares."""
        for tower in self.encoder.towers:
            yield Role.BASE, tower
        yield Role.FAST, self.encoder.head
        for objective in self.objectives.values():
            yield from objective.roles()

    def forward(self, batch: PairBatch, progress: float, generator: Generator) -> Losses:
        """The losses of a batch; masks are drawn from `generator`.

        Where the batch is this process's share of a larger one, losses and gradients, averaged over the processes, are
        those of the whole.
        """
        needs, terms = self.needs(progress), self.terms(progress)
        masks = draw_masks(self.encoder, batch, needs, generator)
        own = encode_masked(self.encoder, batch, needs, masks)
        counts = Counts(terms, masks, batch)
        return Losses.of(terms, self.jointly(terms, own, batch) | self.apart(terms, own, batch, masks, counts))

    def jointly(self, terms: Iterable[Term], own: Encodings, batch: PairBatch) -> Outputs:
        """What the terms that look at the whole batch make of the encodings of all processes."""
        everyones, whole = own, batch
        if processes() > 1:
            everyones, whole = GatheredEncodings(own, batch.share.total), Gathered(batch, batch.share.total)
        return {term.name: term.loss(everyones, whole) for term in terms if term.count is None}

    def apart(self, terms: Iterable[Term], rows: Encodings, batch: PairBatch, masks: Masks, counts: Counts) -> Outputs:
        """What the terms that go by row make of some rows of a batch, weighed by how much of it these are."""
        own = (term for term in terms if term.count is not None)
        return {term.name: _scaled(term.loss(rows, batch), counts.weight(term, masks, batch)) for term in own}


class Counts:
    """Over how many things the mean of each term that goes by row goes, in the rows of all processes together."""

    def __init__(self, terms: Iterable[Term], masks: Masks, batch: PairBatch):
        own = {term.name: term.count(masks, batch) for term in terms if term.count is not None}
        self._totals = dict(zip(own, add_up(list(own.values()))))

    def weight(self, term: Term, masks: Masks, batch: PairBatch) -> float:
        """What the mean of some rows weighs.

        The weighted means of all parts of a process added up, and averaged over the processes, are the mean of all.
        """
        return processes() * term.count(masks, batch) / max(1, self._totals[term.name])


def _scaled(output: ObjectiveOutput, factor: float) -> ObjectiveOutput:
    return ObjectiveOutput(factor * output.loss, {name: factor * value for name, value in output.figures.items()})


def build_objective(config: ObjectiveConfig, spec: EncoderSpec) -> Objective:
    """The objective that a configuration describes, with fresh weights.

    Raises:
        UsageError: it is unknown, or its options are wrong.
    """
    kind = find_objective(config.name)
    return kind(from_dict(kind.Config, config.options, where=f"objective {config.name}"), spec)


def loss_names(configs: Sequence[ObjectiveConfig]) -> list[str]:
    """The names of all losses that a training logs, as they come up; `cfr+fcd` where objectives share one."""
    shared = (_sharing(_active(configs, boundary)) for boundary in _boundaries(configs))
    return list(dict.fromkeys(_joined(together) for groups in shared for together in groups))


def _boundaries(configs: Sequence[ObjectiveConfig]) -> list[float]:
    """Where other objectives become active, as shares of the training, from its beginning on."""
    return sorted({0.0, *(edge for config in configs for edge in (config.start, config.stop) if edge < 1)})


def _active(configs: Sequence[ObjectiveConfig], progress: float) -> list[ObjectiveConfig]:
    return [config for config in configs if config.start <= progress < config.stop]


def _sharing(configs: Sequence[ObjectiveConfig]) -> list[list[ObjectiveConfig]]:
    """The objectives by themselves, then those of each group together."""
    groups = defaultdict(list)
    for config in configs:
        groups[find_objective(config.name).group].append(config)
    alone = groups.pop(None, [])
    return [*([config] for config in alone), *groups.values()]


def _joined(configs: Sequence[ObjectiveConfig]) -> str:
    return "+".join(config.name for config in configs)
