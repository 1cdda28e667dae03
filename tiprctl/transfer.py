"""From the host to the training device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def staged(rows: Tensor, device: torch.device) -> Tensor:
    """`rows` in memory from which `device` copies while it computes: for CUDA pinned, else as they are."""
    return rows.pin_memory() if device.type == "cuda" and not (rows.is_cuda or rows.is_pinned()) else rows


def to_device(rows: Tensor, device: torch.device) -> Tensor:
    """`rows` on `device`; a copy to CUDA joins the queue of its work, and the host goes on at once.

    The copy reads pinned memory, since from any other CUDA copies only when what is queued is done.
    """
    return staged(rows, device).to(device, non_blocking=device.type == "cuda")
