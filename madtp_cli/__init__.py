"""Prune the tokens of vision-language transformers to a cost budget, and prove what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str | Path, device: str = "cpu", dtype: Any = None) -> Any:
    """Return the ready model, in eval mode, and the processor of a checkpoint.

    `path` is a folder of ours or of Hugging Face, a `.pth` or `.safetensors` file, a hub id (`owner/name`, or
    `owner/name@revision`), an https address, or `builtin:NAME`; what is fetched is kept, and read offline. `device` is
    as of `--device`. `dtype` is a `torch.dtype` or its name, as in `"bf16"`; None keeps float32. Raises
    errors of `madtp_cli.errors`: SourceError for what is missing or unreadable, UsageError for a device or type.
    """
    # Imported here so that the command line starts without torch.
    from madtp_cli.engine.building.model import load as load_checkpoint

    return load_checkpoint(path, device=device, dtype=dtype)
