"""Which backend computes attention: one choice for the whole process, and what it means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

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


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Compute attention by a backend inside a `with` block."""
    before = _in_force
    use_backend(name)
    try:
        yield
    finally:
        use_backend(before)
