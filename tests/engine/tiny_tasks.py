"""A tiny model of every task, dense or pruned, with or without weights, and one sample for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from madtp_cli.models.base import initialise
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.clip.configs import small_clip_config
from madtp_cli.models.family import model_class
from madtp_cli.models.spec import PruningSpec
from tests.models.kinds import kinds

KINDS = tuple(kinds())
IDS = ["-".join(kind) for kind in KINDS]
SHAPE: dict[str, Any] = {
    "vision_layers": 3,
    "vision_width": 32,
    "vision_heads": 4,
    "text_layers": 3,
    "text_width": 24,
    "text_heads": 2,
}
SHARED: dict[str, Any] = {"image_size": 64, **SHAPE}
WORDS = 9


def config_of(kind: tuple[str, str], words: int = 40) -> Any:
    """Describe it."""
    if kind[0] == "clip":
        return small_clip_config(**SHARED, vocab_size=words, eos_token_id=39, projection_dim=20)
    ids: dict[str, Any] = {"dec_token_id": 37, "enc_token_id": 38, "sep_token_id": 39}
    return small_config(**SHARED, vocab_size=words, projection_width=12, merge_from=1, **ids)


def build(kind: tuple[str, str], *, device: str = "cpu", strength: float = 0.0) -> Any:
    """Build it; a strength prunes at random in every layer."""
    config, spec = config_of(kind), PruningSpec()
    if strength:
        layers = {site.name: (0, 1, 2) for site in model_class(*kind).sites_of(config) if site.prunes}
        spec = PruningSpec(method="random", strength=strength, layers=layers)
    torch.manual_seed(0)
    with torch.device(device):
        model = model_class(*kind)(
            config,
            alignment=spec.alignment(model_class(*kind).sites_of(config)),
            plan=spec.plan(),
            strength=spec.strength,
        )
    if device == "cpu":
        initialise(model)
    return model.eval()


def sample(kind: tuple[str, str], *, device: str = "cpu", texts: int = 1) -> dict[str, Any]:
    """Make one image (or pair) and texts of nine tokens about it."""
    pairs = kind[1] == "nlvr2"
    images: Tensor = torch.randn(2 if pairs else 1, 3, 64, 64, device=device)
    return {
        "images": images,
        "text": torch.randint(3, 36, (texts * WORDS,), device=device),
        "text_lengths": [WORDS] * texts,
        "image_index": [(0, 1)] * texts if pairs else [0] * texts,
    }
