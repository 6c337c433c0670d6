"""How fast this machine multiplies matrices: what no model on it can beat."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch.nn.functional import linear
from torch.utils.benchmark import timer

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
    named: Mapping[str, tuple[int, int, int]], device: torch.device, dtype: torch.dtype, seconds: float
) -> dict[str, float]:
    """Measure products of those shapes for some seconds each: 1e9 multiply-adds a second, of the fastest call."""
    found = {}
    for name, (rows, inputs, outputs) in named.items():
        x = torch.randn(rows, inputs, device=device, dtype=dtype)
        weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
        linear(x, weight)
        began = timer()
        fastest = math.inf
        while fastest == math.inf or timer() - began < seconds:
            start = timer()
            linear(x, weight)
            fastest = min(fastest, timer() - start)
        found[name] = rows * inputs * outputs / fastest / 1e9
    return found
