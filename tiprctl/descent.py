"""A descent on a batch: the gradients of its losses, clipped, and what the optimiser makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from tiprctl.config import OptimConfig
from tiprctl.execution import Execution, repeatable
from tiprctl.gradients import Passes, gradients_of
from tiprctl.models.compilation import checkpoint_blocks, compile_blocks
from tiprctl.models.encodings import PairBatch
from tiprctl.objectives.composition import Composition, Losses
from tiprctl.optimisation import build_optimizer, clip_gradients, pack_optimizer, set_learning_rate, unpack_optimizer
from tiprctl.precision import autocast


class Descent:
    """Takes a composition down, batch by batch, as an execution asks for; in float16 its losses are scaled.

    Args:
        rows: how many of a batch's are this process's.
        dtype: what autocast computes the forward passes in; None: float32.
        on_uncompiled: is told why the blocks are not compiled though the execution asks for it.

    Raises:
        UsageError: a batch is to be taken in more parts than `rows`.
    """

    def __init__(
        self,
        composition: Composition,
        config: OptimConfig,
        execution: Execution,
        *,
        rows: int,
        device: torch.device,
        dtype: torch.dtype | None,
        on_uncompiled: Callable[[str], object],
    ):
        self.composition = composition
        self.optimizer = build_optimizer(composition.roles(), config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
        self._limit = config.clip_norm
        if execution.checkpoint_blocks:
            checkpoint_blocks(composition)
        if execution.compile:
            # Compiled for what the steps will find: where these differ, all is compiled again.
            with repeatable(execution.deterministic), autocast(device, dtype):
                compile_blocks(composition, on_uncompiled)
        passes = Passes(device=device, dtype=dtype, scale=self.scaler.scale)
        self.gradients = gradients_of(composition, passes, parts=execution.accumulate, rows=rows)

    def __call__(self, batch: PairBatch, progress: float, masks: Generator, dropout: Generator) -> Losses:
        """Descend once, and tell the losses before; see `Gradients` for the arguments."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.gradients(batch, progress, masks, dropout)
        self.update()
        return losses

    def update(self) -> None:
        """Change the weights by the gradients that they hold; in float16 not where those overflow."""
        self.scaler.unscale_(self.optimizer)
        clip_gradients(self.composition, self._limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def set_rate(self, rate: float) -> None:
        """Take the next steps at this base learning rate."""
        set_learning_rate(self.optimizer, rate)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint holds of it beside the weights: tensors by name, and plain values."""
        tensors, groups = pack_optimizer(self.optimizer)
        return tensors, {"scaler": self.scaler.state_dict(), "groups": groups}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from what `state` told; values may hold more. Without a scaler's state it begins anew."""
        unpack_optimizer(self.optimizer, tensors, values["groups"])
        if values["scaler"]:
            self.scaler.load_state_dict(values["scaler"])
