"""Parameter groups and the learning-rate schedule, from the roles that owners declare and the recipe's numbers."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from tiprctl.config import OptimConfig
from tiprctl.objectives.base import Role


def build_optimizer(roles: Iterable[tuple[Role, nn.Module]], config: OptimConfig) -> Optimizer:
    """Adam or AdamW over one group for each (learning-rate factor, weight decay) that occurs."""
    kind = {"adam": Adam, "adamw": AdamW}[config.name]
    groups = parameter_groups(roles, config)
    return kind(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def parameter_groups(roles: Iterable[tuple[Role, nn.Module]], config: OptimConfig) -> list[dict]:
    """Optimiser groups, each with its `factor` of the scheduled learning rate and its `weight_decay`."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for role, module in roles:
        for parameter, bias in _with_bias(module):
            factor = _factor(role, bias, config)
            decayed = not bias and (parameter.ndim > 1 or config.decay_vectors)
            groups.setdefault((factor, config.weight_decay if decayed else 0.0), []).append(parameter)
    return [
        {"params": parameters, "factor": factor, "lr": config.lr * factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]


def schedule_factor(epochs_done: float, epochs: float, config: OptimConfig) -> float:
    """The factor of the base learning rate after `epochs_done` of `epochs`: a linear warm-up, then the schedule.

    With interval `epoch` the factor is that of the epoch's beginning, as in the published code.
    """
    done = (math.floor(epochs_done) if config.interval == "epoch" else epochs_done) / epochs
    if done < config.warmup:
        return config.warmup_start + (1 - config.warmup_start) * done / config.warmup
    if config.schedule == "steps":
        return config.gamma ** bisect_right(config.milestones, done)
    return 0.5 * (1 + math.cos(math.pi * (done - config.warmup) / (1 - config.warmup))) if config.warmup < 1 else 1.0


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group `rate` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def pack_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], list[dict]]:
    """The optimiser's state as tensors with names, and its groups as plain values: what a checkpoint can hold."""
    state = optimizer.state_dict()
    tensors = {f"{index}.{key}": value for index, values in state["state"].items() for key, value in values.items()}
    return tensors, state["param_groups"]


def unpack_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], groups: list[dict]) -> None:
    """Give the optimiser the state that `pack_optimizer` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _with_bias(module: nn.Module) -> Iterable[tuple[nn.Parameter, bool]]:
    """Parameters that learn, each with whether it is a bias: torch's modules call those `bias` or `..._bias`."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            yield parameter, name.rpartition(".")[2].endswith("bias")


def _factor(role: Role, bias: bool, config: OptimConfig) -> float:
    if bias and role is not Role.CLASSIFIER and config.bias_factor is not None:
        return config.bias_factor
    return 1.0 if role is Role.BASE else config.fresh_factor


def clip_gradients(module: nn.Module, limit: float) -> None:
    """Scale all gradients down so that their joint norm is at most `limit`; 0 leaves them."""
    if limit > 0:
        torch.nn.utils.clip_grad_norm_(module.parameters(), limit)
