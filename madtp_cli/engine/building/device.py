"""Where a run computes and in which precision: what was asked for, checked against the machine."""

from __future__ import annotations

import torch

from madtp_cli.errors import UsageError

# A vocabulary of whole words fits a model that has at most this many times as many.
MOST_WORDS = 2


def floating(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Resolve a type of weights by its name, torch's or a recipe's; raises UsageError for any other."""
    if dtype is None:
        return None
    short = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    found = getattr(torch, short.get(dtype, dtype), None) if isinstance(dtype, str) else dtype
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    raise UsageError(f"dtype {dtype!r}: is no floating-point type; give torch.bfloat16, or a name such as 'bf16'")


def choose_device(name: str) -> torch.device:
    """Resolve a --device; raises UsageError for one that this machine does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split()).split(". ")[0]
        raise UsageError(f"--device {name} cannot be used here: {reason}; try --device cpu") from None
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """Resolve `auto`: bf16 where the hardware multiplies in it, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    # AMX tiles make bf16 several times faster than fp32; plain AVX-512 bf16 does not pay in training.
    return "bf16" if device.type == "cpu" and torch.cpu._is_amx_tile_supported() else "fp32"
