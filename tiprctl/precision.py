"""Mixed precision: float32 weights, autocast around the step."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from tiprctl.errors import UsageError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}


def find_device(name: str | None) -> torch.device:
    """The device of that name; without a name, the first CUDA device or else the CPU.

    Raises:
        UsageError: there is no such device on this machine.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"The device {name!r} cannot be used: {reason}", where="--device", remedy="Try cpu."
        ) from error
    return device


def amp_dtype(mode: str, device: torch.device) -> torch.dtype | None:
    """The autocast type of a mode (`auto`, `bf16`, `fp16`, `off`) on a device, None for plain float32.

    `auto` is bfloat16 on a CUDA device that computes it natively, else float16; float32 on the CPU.
    """
    if mode != "auto":
        return DTYPES[mode]
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager:
    """Autocast to `dtype` on `device`; without a type, nothing."""
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
