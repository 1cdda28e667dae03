"""How a training is carried out on a machine, beside its device."""

from __future__ import annotations

from dataclasses import dataclass


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
