"""Mixed precision: float32 weights, autocast around the step."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch

from tiprctl.errors import UsageError

Precision = Literal["float32", "bfloat16", "float16"]
"""What a model computes in."""

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


def amp_dtype(mode: str, device: torch.device, *, training: bool = False) -> torch.dtype | None:
    """The autocast type of a mode (`auto`, `bf16`, `fp16`, `off`) on a device, None for plain float32.

    `auto` on CUDA is bfloat16 where the device computes it natively, else float16. On the CPU it is bfloat16 for
    `training` on a processor that computes it natively, else float32: elsewhere it is emulated, and slow. What is
    measured and searched on the CPU stays in float32, so that a model ranks alike on every machine.
    """
    if mode != "auto":
        return DTYPES[mode]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if training and device.type == "cpu" and _cpu_has_bf16() else None


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies matrices of bfloat16 natively, by AVX512-BF16 or AMX."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager:
    """Autocast to `dtype` on `device`; without a type, nothing."""
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
