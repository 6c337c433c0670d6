"""The choice of an attention backend for a command: checked against its device and precision before it starts."""

from __future__ import annotations

from typing import Any

import torch

from madtp_cli.attention import Backend, resolve, use_backend, varlen
from madtp_cli.engine.building.device import choose_device, choose_precision
from madtp_cli.errors import UsageError

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def use_attention(name: Backend, device: str, precision: str) -> None:
    """Compute all attention of this process by a backend.

    Raises UsageError where the device or the precision, each as given to the command, cannot run it.
    """
    if name == "varlen":
        where = choose_device(device)
        reason = varlen.unavailable(where, TYPES[choose_precision(precision, where)])
        if reason:
            raise UsageError(
                f"--attention varlen cannot be used here: {reason}; "
                "try --device cuda with --precision bf16, or --attention auto"
            )
    use_backend(name)


def attention_used(device: torch.device, precision: str) -> Backend:
    """Name what computes attention on a device in a precision, as figures report it: `auto` on a CPU only."""
    return resolve(device, TYPES[precision])


def taken_with(device: torch.device, precision: str) -> dict[str, Any]:
    """Say what figures were taken with, by the names that results have for it."""
    return {
        "device": str(device),
        "dtype": precision,
        "threads": torch.get_num_threads(),
        "attention_backend": attention_used(device, precision),
    }
