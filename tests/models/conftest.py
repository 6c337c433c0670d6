"""A tiny random BLIP-NLVR and inputs for it, shared by the tests of the models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.blip.configuration_blip import BlipConfig

from madtp_cli.models.base import initialise
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.blip.nlvr import BlipForNlvr
from madtp_cli.models.spec import PruningSpec


@pytest.fixture(scope="session")
def config() -> BlipConfig:
    """Three vision layers over 16 patches, three text layers of another width, the last with a merge layer."""
    return small_config(
        image_size=32,
        vocab_size=30,
        vision_layers=3,
        vision_width=24,
        vision_heads=3,
        text_layers=3,
        text_width=32,
        text_heads=4,
        merge_from=2,
    )


@pytest.fixture(scope="session")
def spec() -> PruningSpec:
    """Prune every layer of both towers."""
    layers = {"vision": (0, 1, 2), "text": (0, 1, 2)}
    return PruningSpec(method="madtp", strength=0.5, layers=layers, alignment_tokens=6, alignment_dim=16)


@pytest.fixture(scope="session")
def state(config: BlipConfig, spec: PruningSpec) -> dict[str, Tensor]:
    """Draw weights so that no part of the model is idle: biases and norms too."""
    torch.manual_seed(2)
    model = BlipForNlvr(config, alignment=spec.alignment(BlipForNlvr.sites_of(config)))
    initialise(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.state_dict()


@pytest.fixture(scope="session")
def make(config: BlipConfig, state: dict[str, Tensor]) -> Callable[[PruningSpec], BlipForNlvr]:
    """Build the model with those weights and any pruning."""

    def build(spec: PruningSpec) -> BlipForNlvr:
        model = BlipForNlvr(
            config, alignment=spec.alignment(BlipForNlvr.sites_of(config)), plan=spec.plan(), strength=spec.strength
        )
        model.load_state_dict(state, strict=spec.alignment_tokens > 0)
        return model.eval()

    return build


@pytest.fixture(scope="session")
def inputs() -> dict[str, Any]:
    """Five sentences about four images: they share images, swap sides, and the last has a single token."""
    generator = torch.Generator().manual_seed(1)
    lengths = [7, 4, 12, 9, 1]
    return {
        "images": torch.randn(4, 3, 32, 32, generator=generator),
        "text": torch.randint(0, 30, (sum(lengths),), generator=generator),
        "text_lengths": lengths,
        "image_index": [(0, 1), (0, 1), (2, 3), (3, 2), (1, 1)],
    }
