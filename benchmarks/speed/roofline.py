"""How fast this machine multiplies matrices: what no model on it can beat."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn.functional import linear

from madtp_cli.costs.latency import Setting, compare
from madtp_cli.models.base import PrunedModel

SQUARE = 2048


def shapes(title: str, model: PrunedModel) -> dict[str, tuple[int, int, int]]:
    """Name the products to time, rows x inputs x outputs: a large square, and the MLP of an image."""
    vision = model.config.vision_config
    return {
        f"square of {SQUARE}": (SQUARE, SQUARE, SQUARE),
        f"MLP of an image, {title}": (model.image_tokens, vision.hidden_size, vision.intermediate_size),
    }


@torch.inference_mode()
def rates(
    named: Mapping[str, tuple[int, int, int]], setting: Setting, dtype: torch.dtype, seconds: float
) -> dict[str, float]:
    """Measure products of those shapes for some seconds each: 1e9 multiply-adds a second, at the median."""
    calls = {}
    for name, (rows, inputs, outputs) in named.items():
        x = torch.randn(rows, inputs, device=setting.device, dtype=dtype)
        weight = torch.randn(outputs, inputs, device=setting.device, dtype=dtype)
        calls[name] = lambda x=x, weight=weight: linear(x, weight)
    found = compare(calls, setting, seconds=seconds, memory=False)
    return {name: rows * inputs * outputs / found[name].p50_ms / 1e6 for name, (rows, inputs, outputs) in named.items()}
