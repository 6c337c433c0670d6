"""NLVR2's graph in PyTorch against the packed model: the same tokens kept, the same answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from madtp_cli.export.graphs import is_kept
from madtp_cli.export.schedule import Form, cuts
from madtp_cli.models.blip.export import nlvr
from tests.export.tiny_exports import SPEC, build, only, pairs

METHODS: list[dict[str, Any]] = [
    {"tokens": "adaptive"},
    {"tokens": "adaptive", "strength": 0.6},
    {"tokens": "scheduled", "strength": 0.4},
    {"variant": "paper"},
    {"variant": "paper", "strength": 0.7},
    {"variant": "released"},
    {"variant": "released", "strength": 0.6, "temperature": 0.5},
    {"tokens": "scheduled", "variant": "paper"},
    {"projection": "per_layer"},
    {"method": "random", "strength": 0.4},
    {"strength": 0.0},
    {"method": "none"},
]


@pytest.mark.parametrize("lengths", [[7], [9, 1, 4]], ids=["one", "three"])
@pytest.mark.parametrize("change", METHODS, ids=str)
def test_the_graph_is_the_packed_model(change: dict[str, Any], lengths: list[int]) -> None:
    """Counts and places of every token equal the packed model's, logits to 1e-5, ragged texts and a lone [ENC] too."""
    model, batch = build("blip", "nlvr2", replace(SPEC, **change)), pairs(lengths)
    expected = nlvr.expect(model, batch)
    for form in (Form(), Form("static", text_tokens=12, quotas={})):
        if form.mode == "static" and change.get("tokens", "adaptive") == "adaptive" and "method" not in change:
            continue  # without counts, an adaptive model has no static form
        (graph,) = nlvr.graphs(model, form)
        found = nlvr.run(only(graph), batch, form)
        torch.testing.assert_close(found["logits"], expected["logits"], atol=1e-5, rtol=1e-5)
        for name in filter(is_kept, expected):
            width = expected[name].shape[-1]
            assert torch.equal(found[name][..., :width], expected[name]), name
            assert bool((found[name][..., width:] == -2).all())
    assert expected["logits"].std() > 0.05


def test_pruning_is_not_idle() -> None:
    """The tiny models of these tests lose tokens in both towers, samples unequally many where they adapt."""
    expected = nlvr.expect(build("blip", "nlvr2"), pairs([9, 12, 12]))
    kept = expected["vision_kept"]
    assert bool((kept[..., 0] < 17).all())
    assert len(set(kept[..., -1].flatten().tolist())) > 1
    assert bool((expected["text_kept"][:, -1] < torch.tensor([9, 12, 12])).all())


def test_static_quotas_decide_how_many_stay() -> None:
    """17 tokens with 9 and then 4 free ones kept are 11 and 6; a text of 5 that may keep 6 stays whole."""
    model = build("blip", "nlvr2")
    quotas = {"vision": {0: 9, 1: 4, 2: 4}, "text": {0: 6, 2: 6}}
    form = Form("static", text_tokens=12, quotas=quotas)
    assert [(cut.width, cut.quota) for cut in cuts(model, form)["vision"].values()] == [(11, 9), (6, 4)]
    (graph,) = nlvr.graphs(model, form)
    found = nlvr.run(only(graph), pairs([12, 5]), form)
    assert found["vision_kept"].unique(dim=0).tolist() == [[[11, 6, 6], [11, 6, 6]]]
    assert found["text_kept"].tolist() == [[8, 8, 8], [5, 5, 5]]
    assert found["text_positions"][1].tolist() == [0, 1, 2, 3, 4, -2, -2, -2]
