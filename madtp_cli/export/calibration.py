"""Fixed token counts for an adaptive model that cost what its own counts cost on average.

A compiler that wants constant shapes cannot follow what is in an image. So every layer keeps a quantile of what it kept
on real samples, the same quantile in all layers: the one at which the mean cost comes out as before. Quantiles of what
leaves layer after layer never grow from one layer to the next, because no sample's tokens do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from madtp_cli.costs import analytic
from madtp_cli.export.schedule import Quotas, leaving_of
from madtp_cli.models.base import PrunedModel
from madtp_cli.models.sites import Site

BISECTIONS = 24

Kept = Mapping[str, Tensor]
"""By site the tokens that left every layer: of images [S, images per text, layers], of texts [S, layers]."""


def kept_of(model: PrunedModel, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read off what a graph or the packed model kept."""
    found = {site: outputs[f"{site.name}_kept"] for site in model.sites if f"{site.name}_kept" in outputs}
    return {
        site.name: kept.view(len(kept), model.images_per_text, -1) if site.reads == "image" else kept
        for site, kept in found.items()
    }


def macs_of(model: PrunedModel, kept: Kept, text_lengths: Sequence[int]) -> Tensor:
    """Return the cost of S samples that kept so many tokens, each with its own images: int64 [S] MACs."""
    samples, images = len(text_lengths), model.images_per_text
    counts, left = {}, [model.image_tokens] * samples * images
    for site in model.sites:
        alone = site.reads == "image"
        entering = torch.tensor(model.dense_tokens(site, text_lengths)).expand(samples * (images if alone else 1))
        leaving = kept[site.name].flatten(0, -2) if site.name in kept else entering[:, None].expand(-1, site.layers)
        counts[site.name] = _layer_counts(model, site.name, entering, leaving)
        if alone:
            left = leaving[:, -1].tolist()
    index = torch.arange(samples * images).view(samples, images)
    return analytic.total(model.macs_of_counts(counts, left, index.tolist(), text_lengths))


def calibrate(model: PrunedModel, kept: Kept, text_lengths: Sequence[int]) -> tuple[Quotas, float]:
    """Choose what every layer keeps; returns the quotas and their mean cost over that of what was kept."""
    wanted = macs_of(model, kept, text_lengths).double().mean().item()
    low, high = 0.0, 1.0
    best: tuple[float, Quotas, float] | None = None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        quotas = _quotas(model, kept, middle)
        ratio = (
            macs_of(model, _kept_at(model, quotas, kept, text_lengths), text_lengths).double().mean().item() / wanted
        )
        low, high = (low, middle) if ratio > 1 else (middle, high)
        if best is None or abs(ratio - 1) < best[0]:
            best = abs(ratio - 1), quotas, ratio
    assert best is not None
    return best[1], best[2]


def _quotas(model: PrunedModel, kept: Kept, share: float) -> Quotas:
    """Take a quantile of what left every pruned layer, as free tokens: without protected ones and the merged one."""
    assert model.plan is not None
    found: dict[str, dict[int, int]] = {}
    for site in model.sites:
        layers = sorted(model.plan.layers.get(site.name, ()))
        left = kept[site.name].flatten(0, -2).double().quantile(share, dim=0).round().int().tolist() if layers else []
        found[site.name] = {layer: max(1, left[layer] - site.protected - 1) for layer in layers}
    return found


def _kept_at(model: PrunedModel, quotas: Quotas, kept: Kept, text_lengths: Sequence[int]) -> dict[str, Tensor]:
    """Return what the same samples keep at fixed quotas."""
    found = {}
    for site in (site for site in model.sites if site.name in kept):
        own = kept[site.name]
        entering = model.dense_tokens(site, text_lengths)
        leaving = torch.tensor([_leaving(model, site, quotas, tokens, own.shape[-1]) for tokens in entering])
        found[site.name] = leaving.expand_as(own) if site.reads == "image" else leaving
    return found


def _leaving(model: PrunedModel, site: Site, quotas: Quotas, entering: int, layers: int) -> list[int]:
    leaving = []
    for layer in range(layers):
        if layer in quotas.get(site.name, {}):
            entering = leaving_of(model, site, entering, quotas[site.name][layer])
        leaving.append(entering)
    return leaving


def _layer_counts(model: PrunedModel, site: str, entering: Tensor, leaving: Tensor) -> list[analytic.LayerCounts]:
    """Make the counts of every layer from those that entered the first, [S], and that left each, [S, layers]."""
    plan = model.plan
    pruned = plan.layers.get(site, frozenset()) if plan is not None and model.strength > 0 else frozenset()
    guided = plan is not None and "guidance" in plan.pruner.needs
    counts = []
    for layer, left in enumerate(leaving.unbind(1)):
        counts.append(analytic.LayerCounts(entering, left, layer in pruned, layer in pruned and guided))
        entering = left
    return counts
