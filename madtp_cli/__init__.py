"""Prune the tokens of vision-language transformers to a cost budget, and prove what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str | Path, device: str = "cpu", dtype: Any = None) -> Any:
    """Return the ready model and processor of a checkpoint folder (or of `builtin:NAME`).

    `dtype` is a `torch.dtype`; None keeps the one the weights were saved in.
    """
    # Imported here so that the command line starts without torch.
    from madtp_cli.engine.build import load as load_checkpoint

    return load_checkpoint(path, device=device, dtype=dtype)
