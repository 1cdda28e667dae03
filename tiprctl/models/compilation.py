"""The blocks of the towers and decoders in training: fused by torch's compiler, or computed again to save memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tiprctl.models.bert import Bert
from tiprctl.models.clip import Block, Transformer, run_block

RECOMPILES = 64
"""How many forms of a block are compiled at most: stacks differ in width, causality and masks."""
PROBE = (2, 3)
"""Rows and tokens of what is compiled with first; any numbers but 0 and 1, which the compiler treats apart."""


def checkpoint_blocks(model: nn.Module) -> None:
    """Have all stacks of blocks in `model` keep, in training, only what enters each block.

    A last block that works for one token is left out: what it keeps is the first to be used going backward, before
    that of another block is there.
    """
    for stack in _stacks(model):
        stack.checkpointed = True
    for module in model.modules():
        if isinstance(module, Bert):
            module.checkpoint_layers()


def compile_blocks(model: nn.Module, on_failure: Callable[[str], object]) -> None:
    """Have all stacks of blocks in `model` run compiled blocks in training; evaluation stays as it is.

    One form serves every number of rows and tokens. It is tried at once, forward and backward, in the precision of the
    autocast around this call. Where the compiler fails, then or later going forward, `on_failure` is told why, once,
    and all blocks are run as they are. Should it fail on another form going backward, that is a TorchDynamoException:
    losses and dropout are drawn by then. A BERT is left as `transformers` made it, and so is a last block that works
    for one token: there is little to fuse.
    """
    stacks = _stacks(model)
    runner = _CompiledRunner(on_failure)
    for stack in stacks:
        stack.runner = runner
    for stack in stacks:
        runner.probe(stack.resblocks[0], causal=stack.causal)


def run_uncompiled(model: nn.Module) -> None:
    """Have all stacks of blocks in `model` run their blocks as they are, though they may have been compiled."""
    for stack in _stacks(model):
        stack.runner = run_block


def _stacks(model: nn.Module) -> list[Transformer]:
    return [module for module in model.modules() if isinstance(module, Transformer)]


class _CompiledRunner:
    """Runs blocks compiled, until the compiler fails; then as they are."""

    def __init__(self, on_failure: Callable[[str], object]):
        # Imported here: it takes seconds, and most trainings do without.
        from torch._dynamo.exc import TorchDynamoException

        self._fault = TorchDynamoException
        self._compiled = torch.compile(run_block, dynamic=True, recompile_limit=RECOMPILES)
        self._on_failure = on_failure
        self._failed = False

    def __call__(self, block: Block, x: Tensor, *, causal: bool, visible: Tensor | None) -> Tensor:
        if not self._failed:
            try:
                return self._compiled(block, x, causal=causal, visible=visible)
            except self._fault as error:
                self._give_up(error)
        return run_block(block, x, causal=causal, visible=visible)

    def probe(self, block: Block, *, causal: bool) -> None:
        """Compile the block, forward and backward; no gradient is left."""
        weight = block.ln_1.weight
        x = torch.zeros(*PROBE, len(weight), device=weight.device, requires_grad=True)
        try:
            torch.autograd.grad(self(block, x, causal=causal, visible=None).sum(), x)
        except self._fault as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._failed = True
        self._on_failure(_reason(error))


def _reason(error: Exception) -> str:
    """The compiler's complaint in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
