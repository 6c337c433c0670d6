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
from madtp_cli.export.schedule import Quotas, leaving_of, protected_of
from madtp_cli.models.base import PrunedModel

BISECTIONS = 24

Kept = Mapping[str, Tensor]
"""By tower the tokens that left every layer: `vision` [S, images per text, layers], and `text` [S, layers] if any."""


def kept_of(model: PrunedModel, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read off what a graph or the packed model kept."""
    vision = outputs["vision_kept"]
    kept = {"vision": vision.view(len(vision), model.images_per_text, -1)}
    return kept | ({"text": outputs["text_kept"]} if "text_kept" in outputs else {})


def macs_of(model: PrunedModel, kept: Kept, text_lengths: Sequence[int]) -> Tensor:
    """Return the cost of S samples that kept so many tokens, each with its own images: int64 [S] MACs."""
    vision = kept["vision"]
    samples, images, _ = vision.shape
    words = torch.tensor(text_lengths)
    text = kept.get("text")
    if text is None:
        text = words[:, None].expand(-1, model.config.text_config.num_hidden_layers)
    seen = vision.flatten(0, 1)  # [I, layers]
    counts = {
        "vision": _layer_counts(model, "vision", torch.full((len(seen),), model.image_tokens), seen),
        "text": _layer_counts(model, "text", words, text),
    }
    index = torch.arange(samples * images).view(samples, images)
    return analytic.total(
        model.macs_of_counts(counts["vision"], counts["text"], seen[:, -1].tolist(), index.tolist(), text_lengths)
    )


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
    for tower, layers in model.plan.layers.items():
        leaving = kept[tower].flatten(0, -2).double().quantile(share, dim=0).round().int().tolist() if layers else []
        found[tower] = {layer: max(1, leaving[layer] - protected_of(model, tower) - 1) for layer in sorted(layers)}
    return found


def _kept_at(model: PrunedModel, quotas: Quotas, kept: Kept, text_lengths: Sequence[int]) -> dict[str, Tensor]:
    """Return what the same samples keep at fixed quotas."""
    vision, text = kept["vision"], kept.get("text")
    image = torch.tensor(_leaving(model, "vision", quotas, model.image_tokens, vision.shape[-1]))
    found = {"vision": image.expand_as(vision)}
    if text is None:
        return found
    words = [_leaving(model, "text", quotas, length, text.shape[-1]) for length in text_lengths]
    return {**found, "text": torch.tensor(words)}


def _leaving(model: PrunedModel, tower: str, quotas: Quotas, entering: int, layers: int) -> list[int]:
    leaving = []
    for layer in range(layers):
        if layer in quotas.get(tower, {}):
            entering = leaving_of(model, tower, entering, quotas[tower][layer])
        leaving.append(entering)
    return leaving


def _layer_counts(model: PrunedModel, tower: str, entering: Tensor, leaving: Tensor) -> list[analytic.LayerCounts]:
    """Make the counts of every layer from those that entered the first, [S], and that left each, [S, layers]."""
    plan = model.plan
    pruned = plan.layers.get(tower, frozenset()) if plan is not None and model.strength > 0 else frozenset()
    guided = plan is not None and "guidance" in plan.pruner.needs
    counts = []
    for layer, left in enumerate(leaving.unbind(1)):
        counts.append(analytic.LayerCounts(entering, left, layer in pruned, layer in pruned and guided))
        entering = left
    return counts
