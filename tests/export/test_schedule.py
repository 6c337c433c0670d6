"""What is known of a layer's pruning before a graph runs, by hand arithmetic."""

from __future__ import annotations

from dataclasses import replace

from madtp_cli.export.padded import Cut
from madtp_cli.export.schedule import Form, cuts, is_adaptive, leaving_of
from tests.export.tiny_exports import SPEC, build

SHARES = replace(SPEC, tokens="scheduled", strength=0.5)


def test_images_of_a_scheduled_model_shrink_by_plan_in_any_mode() -> None:
    """17 tokens: 16 free, 8 kept, class token and the merged one: 10. Then 9 free, 4 kept (half to even): 6; 2: 4."""
    model = build("blip", "nlvr2", SHARES)
    expected = {
        0: Cut(quota=8, width=10, equal=True),
        1: Cut(quota=4, width=6, equal=True),
        2: Cut(quota=2, width=4, equal=True),
    }
    assert cuts(model, Form())["vision"] == expected
    assert cuts(model, Form("static", batch=1, text_tokens=9))["vision"] == expected


def test_texts_shrink_by_their_length() -> None:
    """Counted while the graph runs, or, in constant shapes, as the longest does: 9 tokens leave as 6, 6 as 4."""
    model = build("blip", "nlvr2", SHARES)
    assert cuts(model, Form())["text"] == {0: Cut(), 2: Cut()}
    static = cuts(model, Form("static", batch=1, text_tokens=9))["text"]
    assert static == {0: Cut(width=6), 2: Cut(width=4)}


def test_an_adaptive_model_is_counted_while_the_graph_runs() -> None:
    """One image per call needs no mask; a pair is two samples, which may differ."""
    assert is_adaptive(build("blip", "nlvr2"))
    assert cuts(build("blip", "nlvr2"), Form(batch=1))["vision"][0] == Cut()
    single = build("clip", "retrieval", replace(SPEC, layers={"vision": (0,)}))
    assert cuts(single, Form(batch=1))["vision"] == {0: Cut(equal=True)}
    assert cuts(single, Form())["vision"] == {0: Cut()}


def test_a_layer_that_can_drop_nothing_is_left_out() -> None:
    """5% of 16 tokens are one, which would only trade places with a merged one; and a dense model has no cuts."""
    model = build("blip", "nlvr2", replace(SHARES, strength=0.05))
    assert cuts(model, Form())["vision"] == {}
    for dense in (replace(SPEC, strength=0.0), replace(SPEC, method="none")):
        assert cuts(build("blip", "nlvr2", dense), Form()) == {"vision": {}, "text": {}}


def test_leaving_keeps_protected_tokens() -> None:
    """CLIP's texts have two: of 10 tokens 8 are free, 4 kept and one merged. A text of 3 stays whole."""
    model = build("clip", "retrieval", SHARES)
    vision, text = model.sites
    assert leaving_of(model, text, 10) == 7
    assert leaving_of(model, text, 3) == 3
    assert leaving_of(model, vision, 10, quota=3) == 5
    assert leaving_of(model, vision, 10, quota=8) == 10
