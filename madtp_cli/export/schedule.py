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
from madtp_cli.models.sites import Site
from madtp_cli.pruning import Madtp

Mode = Literal["dynamic", "static"]
Quotas = Mapping[str, Mapping[int, int]]
"""By site and layer, the free tokens that every sample keeps."""


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
    """Plan the cuts at a model's sites, by layer; a layer that can drop nothing has none."""
    found: dict[str, dict[int, Cut]] = {site.name: {} for site in model.sites}
    if not prunes(model) or model.plan is None:
        return found
    counted = is_adaptive(model) and form.mode == "dynamic"
    for site in model.sites:
        images = site.reads == "image"
        alone = images and form.batch == 1 and model.images_per_text == 1
        length = model.image_tokens if images else form.text_tokens
        for layer in sorted(model.plan.layers.get(site.name, ())):
            quota = form.quotas[site.name][layer] if is_adaptive(model) and not counted else None
            if counted or length is None:
                found[site.name][layer] = Cut(equal=alone)
                continue
            leaving = leaving_of(model, site, length, quota)
            if leaving < length:
                share = _share(length - site.protected, model.strength)
                known = share if quota is None and images else quota
                found[site.name][layer] = Cut(known, leaving, equal=images)
            length = leaving
    return found


def leaving_of(model: PrunedModel, site: Site, entering: int, quota: int | None = None) -> int:
    """Return how many of a sample's tokens leave a pruned layer that keeps `quota` free ones, or the model's share."""
    free = entering - site.protected
    kept = min(free, _share(free, model.strength) if quota is None else quota)
    # Less than two dropped tokens, or none kept: the sample stays as it is (pruning.base.fuse).
    return entering if free - kept < 2 or kept < 1 else kept + site.protected + 1


def _share(free: int, strength: float) -> int:
    """Round as pruning.base.keep_share does, in float32."""
    return int((torch.tensor(free) * (1 - strength)).round().clamp_min(1))
