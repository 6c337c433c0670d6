"""The name of what figures were taken on, as people know it."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")


def processor_name(device: torch.device) -> str:
    """Name the GPU, or the CPU where the device is not a GPU: its model where the system tells, else its kind."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", CPUINFO.read_text(encoding="utf-8"), re.M)
    except OSError:  # not Linux
        found = None
    return " ".join(found[1].split()) if found else platform.processor() or platform.machine()
