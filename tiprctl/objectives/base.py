"""What an objective is: one auxiliary task with its parameters, its needs and its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from torch import Tensor, nn

from tiprctl.errors import UsageError
from tiprctl.models.encodings import EncoderSpec, Encodings, Masks, Needs, PairBatch


class Role(Enum):
    """How fast parameters learn; their owner declares it, the recipe gives it numbers.

    BASE, as the towers: base rate, biases at the bias rate. FAST, as most of what starts fresh: `fresh_factor` times
    the base rate, biases at the bias rate. CLASSIFIER: `fresh_factor` times for weights and biases alike.
    """

    BASE = "base"
    FAST = "fast"
    CLASSIFIER = "classifier"


@dataclass(frozen=True)
class ObjectiveOutput:
    """A scalar loss, and further scalars worth logging."""

    loss: Tensor
    figures: Mapping[str, Tensor] = field(default_factory=dict)


Loss = Callable[[Encodings, PairBatch], ObjectiveOutput]
"""What an objective is called as, and what several that share a loss are called as together."""


class Objective(nn.Module):
    """Base of all objectives.

    A subclass gives `name`, `Config` (a configuration dataclass), `__init__(config, spec)` and `forward(enc, batch)`;
    `needs` and `roles` where the defaults (no further view; all own parameters FAST) do not fit; `group` and `together`
    where it shares its loss with others; `by_row` and `count` where its loss needs no other rows of the batch.

    Raises:
        UsageError: the encoder has another head than the one that it needs.
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    knows_people: ClassVar[bool] = False
    """Whether its weights stand for the identities of the training data, and so mean nothing for other data."""
    needs_head: ClassVar[str | None] = None
    """The name of the only head that it can train; None: any."""
    group: ClassVar[str | None] = None
    """A name that it has in common with those whose loss it shares while they are active together; None: no other's."""
    by_row: ClassVar[bool] = False
    """Whether its loss is a mean to which each row gives its part by its own tokens, whatever rows are beside it.

    It is then computed of each share of a batch by itself, and reads tokens, never features. Any other loss is given
    the whole batch.
    """

    def __init__(self, config: Any, spec: EncoderSpec):
        super().__init__()
        if self.needs_head not in (None, spec.head):
            raise UsageError(
                f"The objective {self.name} needs the head {self.needs_head}, but the model has the head {spec.head}",
                where="model.head",
                remedy=f"Give `--set model.head={self.needs_head}`, or train without {self.name}.",
            )
        self.config = config

    def needs(self) -> Needs:
        """The views of a batch, beside the plain ones, that `forward` reads."""
        return Needs()

    def roles(self) -> Iterable[tuple[Role, nn.Module]]:
        """The objective's modules, each with the role of its parameters."""
        yield Role.FAST, self

    def count(self, masks: Masks, batch: PairBatch) -> int:
        """Over how many things the mean of these rows goes, where the loss is `by_row`: the rows, or what is hidden."""
        return len(batch.pids)

    def forward(self, enc: Encodings, batch: PairBatch) -> ObjectiveOutput:
        raise NotImplementedError(f"{type(self).__name__} does not define its loss")

    @classmethod
    def together(cls, objectives: Sequence[Objective], weights: Sequence[float]) -> Loss:
        """The one loss of several objectives of a group, each given with its weight; it counts with the first's.

        Raises:
            UsageError: they cannot share one.
        """
        raise NotImplementedError(f"{cls.__name__} does not define the loss of its group, {cls.group}")
