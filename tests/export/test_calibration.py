"""Fixed counts in the place of adaptive ones: costs by the model's own count, and the same mean cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from madtp_cli.costs import analytic
from madtp_cli.export.calibration import calibrate, kept_of, macs_of
from madtp_cli.export.schedule import Form
from madtp_cli.models.blip.export import nlvr
from tests.export.tiny_exports import SPEC, build, only, pairs

LENGTHS = [12, 9, 5, 11, 7, 12]


@pytest.mark.parametrize("change", [{}, {"tokens": "scheduled"}, {"method": "random"}, {"strength": 0.0}], ids=str)
def test_costs_are_the_models_own(change: dict[str, Any]) -> None:
    """From kept counts alone comes exactly what the packed model says of its pass."""
    model, batch = build("blip", "nlvr2", replace(SPEC, **change)), pairs(LENGTHS)
    with torch.inference_mode():
        out = model(batch.images, batch.text, batch.text_lengths, batch.image_index.tolist())
    found = macs_of(model, kept_of(model, nlvr.expect(model, batch)), LENGTHS)
    assert found.tolist() == analytic.total(model.macs(out)).tolist()


def test_fixed_counts_cost_what_adaptive_ones_cost_on_average() -> None:
    """Within 2% here, where one token is much; and the graph at those counts costs exactly what was promised."""
    model, batch = build("blip", "nlvr2"), pairs(LENGTHS)
    kept = kept_of(model, nlvr.expect(model, batch))
    quotas, ratio = calibrate(model, kept, LENGTHS)
    assert ratio == pytest.approx(1, abs=0.02)
    form = Form("static", text_tokens=12, quotas=quotas)
    (graph,) = nlvr.graphs(model, form)
    found = macs_of(model, kept_of(model, nlvr.run(only(graph), batch, form)), LENGTHS)
    wanted = macs_of(model, kept, LENGTHS)
    assert wanted.unique().numel() > 3
    assert (found.double().mean() / wanted.double().mean()).item() == pytest.approx(ratio)


def test_counts_never_grow_from_layer_to_layer() -> None:
    model, batch = build("blip", "nlvr2"), pairs(LENGTHS)
    quotas, _ = calibrate(model, kept_of(model, nlvr.expect(model, batch)), LENGTHS)
    assert set(quotas) == {"vision", "text"}
    for layers in quotas.values():
        counts = list(layers.values())
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] >= 1
