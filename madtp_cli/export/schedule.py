"""What is known of every pruned layer before a graph runs: how many tokens stay, and how wide padded batches get.

An image always has the same number of tokens, so that a scheduled model's images shrink by plan. An adaptive model's
shrink by what is in them, and texts by how long they are; there a graph counts, unless the mode is static.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from madtp_cli.export.padded import Cut
from madtp_cli.models.base import PrunedModel, prunes
from madtp_cli.pruning import Madtp

Mode = Literal["dynamic", "static"]
Quotas = Mapping[str, Mapping[int, int]]
"""By tower and layer, the free tokens that every sample keeps."""


@dataclass(frozen=True)
class Form:
    """How a model is laid out as a graph.

    batch: samples per call, None for any number. text_tokens: places of a text, None for any number. quotas: for an
    adaptive model in static mode, what it keeps.
    """

    mode: Mode = "dynamic"
    batch: int | None = None
    text_tokens: int | None = None
    quotas: Quotas = field(default_factory=dict)


def is_adaptive(model: PrunedModel) -> bool:
    """Tell whether what a sample keeps depends on what is in it."""
    return (
        prunes(model)
        and model.plan is not None
        and isinstance(model.plan.pruner, Madtp)
        and model.plan.pruner.tokens == "adaptive"
    )


def cuts(model: PrunedModel, form: Form) -> dict[str, dict[int, Cut]]:
    """Plan the cuts of a model's towers, by layer; a layer that can drop nothing has none."""
    found: dict[str, dict[int, Cut]] = {"vision": {}, "text": {}}
    if not prunes(model) or model.plan is None:
        return found
    counted = is_adaptive(model) and form.mode == "dynamic"
    for tower, layers in model.plan.layers.items():
        images = tower == "vision"
        alone = images and form.batch == 1 and model.images_per_text == 1
        length = model.image_tokens if images else form.text_tokens
        for layer in sorted(layers):
            quota = form.quotas[tower][layer] if is_adaptive(model) and not counted else None
            if counted or length is None:
                found[tower][layer] = Cut(equal=alone)
                continue
            leaving = leaving_of(model, tower, length, quota)
            if leaving < length:
                share = _share(length - protected_of(model, tower), model.strength)
                known = share if quota is None and images else quota
                found[tower][layer] = Cut(known, leaving, equal=images)
            length = leaving
    return found


def leaving_of(model: PrunedModel, tower: str, entering: int, quota: int | None = None) -> int:
    """Return how many of a sample's tokens leave a pruned layer that keeps `quota` free ones, or the model's share."""
    protected = protected_of(model, tower)
    free = entering - protected
    kept = min(free, _share(free, model.strength) if quota is None else quota)
    # Less than two dropped tokens, or none kept: the sample stays as it is (pruning.base.fuse).
    return entering if free - kept < 2 or kept < 1 else kept + protected + 1


def protected_of(model: PrunedModel, tower: str) -> int:
    """Return how many tokens of a sample no method may drop."""
    return 2 if model.family == "clip" and tower == "text" else 1


def _share(free: int, strength: float) -> int:
    """Round as pruning.base.keep_share does, in float32."""
    return int((torch.tensor(free) * (1 - strength)).round().clamp_min(1))
