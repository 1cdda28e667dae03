"""The dual encoder together with the objectives that train it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

from torch import Generator, Tensor, nn

from tiprctl.config import MOST_PHRASES, CaptionConfig, ObjectiveConfig, from_dict
from tiprctl.distributed import processes, total
from tiprctl.errors import UsageError
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.encodings import (
    EncoderSpec,
    Encodings,
    Gathered,
    GatheredEncodings,
    Needs,
    PairBatch,
    draw_masks,
    encode_masked,
)
from tiprctl.objectives import find_objective
from tiprctl.objectives.base import Loss, Objective, ObjectiveOutput, Role


@dataclass(frozen=True)
class Losses:
    """The weighted sum to descend, and each part unweighted, detached, by name, for the log."""

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class Term:
    """What one objective, or several that share a loss, add to the sum; `alone` as the objective's own."""

    name: str
    weight: float
    loss: Loss
    alone: Objective | None = None


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
        weights = [config.weight for config in configs]
        loss = first.together(objectives, weights) if others else first
        return Term(_joined(configs), weights[0], loss, first if first.alone else None)

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
        needs = self.needs(progress)
        masks = draw_masks(self.encoder, batch, needs, generator)
        own = encode_masked(self.encoder, batch, needs, masks)
        everyones, whole = self._everyones(own, batch)
        outputs = []
        for term in self.terms(progress):
            if term.alone is None:
                outputs.append((term, term.loss(everyones, whole), 1.0))
            else:
                outputs.append((term, term.loss(own, batch), _part(term.alone.count(masks, batch))))
        return _summed(outputs)

    def _everyones(self, own: Encodings, batch: PairBatch) -> tuple[Encodings, PairBatch]:
        """The encodings and the batch of all processes together."""
        if processes() == 1:
            return own, batch
        return GatheredEncodings(own, batch.share.total), Gathered(batch, batch.share.total)


def _part(count: Tensor) -> Tensor | float:
    """What a mean over `count` things weighs, so that the mean over the processes is the mean over all things."""
    return 1.0 if processes() == 1 else processes() * count / total(count).clamp(min=1)


def _summed(outputs: Iterable[tuple[Term, ObjectiveOutput, Tensor | float]]) -> Losses:
    """The weighted sum of the terms, each of which counts as far as it is `part` of the whole batch's."""
    losses, parts = [], {}
    for term, output, part in outputs:
        losses.append(term.weight * part * output.loss)
        parts[term.name] = (part * output.loss).detach()
        parts |= {f"{term.name}/{figure}": (part * value).detach() for figure, value in output.figures.items()}
    return Losses(sum(losses), parts)


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
