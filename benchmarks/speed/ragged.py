"""Ragged batches: samples whose lengths spread fourfold, together, one by one, and padded to the longest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.padded import in_parts, vision_layers
from benchmarks.speed.subjects import Call
from madtp_cli.engine.profiling.costs import at_strength
from madtp_cli.models.base import PrunedModel
from madtp_cli.tokens import Spans, Tokens

SPREAD = 4
PACKED, ALONE, PADDED = "packed", "one by one", "padded to the longest"


@dataclass(frozen=True)
class Ragged:
    """Samples of some lengths as they enter the vision tower: x [T, C] end to end."""

    x: Tensor
    lengths: Sequence[int]

    @classmethod
    def draw(cls, model: PrunedModel, samples: int) -> Ragged:
        """Draw samples whose lengths lie evenly between a whole image and a quarter of it, the longest first."""
        longest = model.image_tokens
        steps = max(1, samples - 1)
        lengths = [round(longest * (1 - (1 - 1 / SPREAD) * row / steps)) for row in range(samples)]
        parameter = next(model.parameters())
        width = model.config.vision_config.hidden_size
        x = torch.randn(sum(lengths), width, generator=torch.Generator().manual_seed(0))
        return cls(x.to(parameter.device, parameter.dtype), lengths)

    def alone(self) -> list[Ragged]:
        """Return the samples one by one."""
        parts = self.x.split(list(self.lengths))
        return [Ragged(part, [length]) for part, length in zip(parts, self.lengths, strict=True)]


def encode(model: PrunedModel, samples: Ragged) -> Tokens:
    """Run the vision tower's layers over samples."""
    tokens = Tokens.pack(samples.x, Spans.of(samples.lengths), prefix=1)
    encoder: Any = model.vision_model
    return model.run_tower("vision", encoder.encoder.layers, tokens, None).tokens


def candidates(model: PrunedModel, samples: Ragged, strength: float) -> dict[str, Call]:
    """Make the ways to encode samples; where something is pruned, there is no padded one."""
    chosen = at_strength(model, strength)
    single = samples.alone()
    calls: dict[str, Call] = {
        PACKED: lambda: encode(chosen, samples).x,
        ALONE: lambda: torch.cat([encode(chosen, each).x for each in single]),
    }
    if not strength:
        layers, padded_batch, mask = vision_layers(model), *_pad(samples)

        def padded(x: Tensor, mask: Tensor) -> Tensor:
            for layer in layers:
                x = layer(x, mask)
            return x

        calls[PADDED] = lambda: in_parts(padded, padded_batch.shape[1], padded_batch, mask)[mask]
    return calls


def _pad(samples: Ragged) -> tuple[Tensor, Tensor]:
    """Return samples as [B, longest, C] and the mask [B, longest] of what is not padding."""
    parts = samples.x.split(list(samples.lengths))
    x = torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
    longest = torch.arange(x.shape[1], device=x.device)
    return x, longest < torch.tensor(samples.lengths, device=x.device)[:, None]


@torch.inference_mode()
def check(model: PrunedModel, samples: Ragged, tolerance: float = 1e-3) -> None:
    """Raise AssertionError unless all ways give the same tokens, up to a share of the largest."""
    calls = candidates(model, samples, 0.0)
    ours = calls[PACKED]()
    for name, call in calls.items():
        off = ((call() - ours).abs().max() / ours.abs().max()).item()
        if not off <= tolerance:
            raise AssertionError(f"a ragged batch {name} gives other tokens: {off:.2g} of the largest off")
