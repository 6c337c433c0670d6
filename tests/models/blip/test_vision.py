"""BLIP's vision blocks: the names and the numbers of HF transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.models.blip.configuration_blip import BlipConfig

from madtp_cli.models.blip.nlvr import BlipForNlvr
from madtp_cli.models.spec import PruningSpec

Make = Callable[[PruningSpec], BlipForNlvr]


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def test_the_vision_tower_is_transformers_own(
    make: Make, spec: PruningSpec, config: BlipConfig, state: dict[str, Tensor], inputs: dict[str, Any]
) -> None:
    """HF's BlipVisionModel takes our tensors by name, all of them, and gives the same states to 1e-5."""
    from transformers import BlipVisionModel

    theirs = BlipVisionModel(config.vision_config).eval()
    theirs.load_state_dict(_below(state, "vision_model."), strict=True)
    with torch.no_grad():
        expected = theirs(pixel_values=inputs["images"]).last_hidden_state
        output = make(replace(spec, strength=0.0))(**inputs)
    torch.testing.assert_close(output.images.x.unflatten(0, (4, -1)), expected, atol=1e-5, rtol=1e-5)


def test_bf16_stays_close(make: Make, spec: PruningSpec, inputs: dict[str, Any]) -> None:
    """Dense logits under autocast within 0.1 of float32's, and the residual stream runs in the compute type."""
    model = make(replace(spec, strength=0.0))
    with torch.no_grad():
        expected = model(**inputs).logits
        with torch.autocast("cpu", torch.bfloat16):
            output = model(**inputs)
    assert output.logits.dtype == torch.float32
    assert output.images.x.dtype == output.encoded.dtype == torch.bfloat16
    torch.testing.assert_close(output.logits, expected, atol=0.1, rtol=0)
