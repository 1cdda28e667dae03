"""From the host to the training device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(rows: Tensor, device: torch.device) -> Tensor:
    """`rows` on `device`; a copy to CUDA joins the queue of its work, and the host goes on at once.

    The copy reads pinned memory, since from any other CUDA copies only when what is queued is done.
    """
    if device.type != "cuda" or rows.is_cuda:
        return rows.to(device)
    return (rows if rows.is_pinned() else rows.pin_memory()).to(device, non_blocking=True)


def channels(values: Sequence[float], like: Tensor) -> Tensor:
    """One number a channel, `(C, 1, 1)`, of the type and on the device of `like`."""
    return to_device(torch.tensor(values, dtype=like.dtype).view(-1, 1, 1), like.device)
