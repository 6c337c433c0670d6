"""Tiny random models for every test of exports, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from madtp_cli.data.batch import Batch
from madtp_cli.export.graphs import Call, Graph
from madtp_cli.models.base import initialise
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.clip.configs import small_clip_config
from madtp_cli.models.family import model_class
from madtp_cli.models.spec import PruningSpec

WORDS, DEC, ENC, SEP = 30, 28, 29, 2
_SIZES: dict[str, Any] = {
    "image_size": 32,
    "vocab_size": WORDS,
    "vision_layers": 3,
    "vision_width": 24,
    "vision_heads": 3,
    "text_layers": 3,
    "text_width": 32,
    "text_heads": 4,
}
SPEC = PruningSpec(
    method="madtp",
    strength=0.5,
    layers={"vision": (0, 1, 2), "text": (0, 2)},
    alignment_tokens=6,
    alignment_dim=16,
)


def build(family: str, task: str, spec: PruningSpec = SPEC) -> Any:
    """Build a model whose weights depend on its kind alone; no part of it is idle."""
    config: Any = (
        small_clip_config(**_SIZES, eos_token_id=WORDS - 1)
        if family == "clip"
        else small_config(**_SIZES, merge_from=2, dec_token_id=DEC, enc_token_id=ENC, sep_token_id=SEP)
    )
    torch.manual_seed(2)
    plan = spec.plan(least=model_class(family, task).released_least)
    model = model_class(family, task)(
        config, alignment=spec.alignment(model_class(family, task).sites_of(config)), plan=plan, strength=spec.strength
    )
    initialise(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def only(graph: Graph) -> Call:
    """Call the only graph of a model, in PyTorch."""
    return lambda _, inputs: graph(inputs)


def pairs(lengths: list[int]) -> Batch:
    """Draw sentences of these lengths, each about two images of its own."""
    return _batch(lengths, torch.arange(2 * len(lengths)).view(-1, 2))


def singles(lengths: list[int]) -> Batch:
    """Draw texts of these lengths, each about an image of its own."""
    return _batch(lengths, torch.arange(len(lengths)))


def _batch(lengths: list[int], image_index: Tensor) -> Batch:
    generator = torch.Generator().manual_seed(1)
    names = tuple(map(str, range(len(lengths))))
    return Batch(
        images=torch.randn(image_index.numel(), 3, 32, 32, generator=generator),
        text=torch.randint(3, 28, (sum(lengths),), generator=generator),
        text_lengths=lengths,
        image_index=image_index,
        ids=names,
        groups=names,
    )
