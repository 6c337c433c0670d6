"""Which backend computes attention: one choice for the whole process, and what it means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

from madtp_cli.attention import varlen

Backend = Literal["auto", "segments", "padded", "varlen"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)

_in_force: Backend = "auto"


def use_backend(name: Backend) -> None:
    """Compute all attention of this process from now on by this backend; raises ValueError for a name that is none."""
    global _in_force
    if name not in BACKENDS:
        raise ValueError(f"{name!r} is no attention backend; there are {', '.join(BACKENDS)}")
    _in_force = name


def backend_in_force() -> Backend:
    """Return the backend that `use_backend` chose, `auto` by default."""
    return _in_force


def resolve(device: torch.device, dtype: torch.dtype) -> Backend:
    """Return what computes attention in this type on this device.

    `auto` is varlen where that can, shares spans out among padded batches on a CPU (as `auto` itself), and pads
    elsewhere.
    varlen where it cannot, as for what a half-precision run computes in fp32, pads too.
    """
    if _in_force in ("auto", "varlen") and varlen.available(device, dtype):
        return "varlen"
    if _in_force == "varlen" or (_in_force == "auto" and device.type != "cpu"):
        return "padded"
    return _in_force


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Compute attention by a backend inside a `with` block."""
    before = _in_force
    use_backend(name)
    try:
        yield
    finally:
        use_backend(before)
