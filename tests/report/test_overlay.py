"""Pictures of kept tokens: pixel by pixel for a panel, by its parts for a figure."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D

from madtp_cli.report.kept_tokens import KeptTokens, Sample, SiteView
from madtp_cli.report.overlay import kept_figure, panel, titled

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
LAYERS = (KeptTokens(1, (0, 1, 2, 3, 6), 1), KeptTokens(2, (0, 3, 6), 1))
PATCHES = SiteView(17, LAYERS)  # four patches a side
WORDS = SiteView(5, (KeptTokens(0, (0, 2, 4), 0),), "text")
SAMPLE = Sample(
    id="costs $5 and $6",
    images=(IMAGE, IMAGE),
    words=("[ENC]", "a", "red", "$circle$", "[SEP]"),
    answer="true",
    reference="false",
    right=False,
    gmacs=0.25,
    dense_gmacs=0.5,
    sites={"vision_left": PATCHES, "vision_right": PATCHES, "text": WORDS},
)


def texts(sample: Sample, **options: Any) -> list[str]:
    """List everything that is written in a figure."""
    figure = kept_figure(sample, **options)
    figure.savefig(io.BytesIO(), format="png")
    return [text.get_text() for text in figure.texts] + [axes.get_title(loc="left") for axes in figure.axes]


@pytest.mark.parametrize("layer", [0, 1])
def test_what_is_alone_shows_its_own_pixels_and_the_rest_does_not(layer: int) -> None:
    """At the image's own size a patch of 8 pixels is left as it was, or fades everywhere."""
    drawn = panel(IMAGE, PATCHES, LAYERS[layer], pixels=32)
    alone = {position - 1 for position in LAYERS[layer].alone} - {-1}
    for patch in range(16):
        row, column = (8 * place for place in divmod(patch, 4))
        here = (slice(row, row + 8), slice(column, column + 8))
        change = np.abs(drawn[here].astype(int) - IMAGE[here])
        if patch in alone:
            assert not change.any()
        else:
            assert change.mean() > 40
            assert len(np.unique(drawn[here].mean(-1) > 180)) == 2  # lines on a light ground


def test_a_panel_without_kept_tokens_is_the_image() -> None:
    assert (panel(IMAGE, PATCHES, pixels=32) == IMAGE).all()
    assert panel(IMAGE, PATCHES, pixels=100).shape == (100, 100, 3)
    assert panel(IMAGE, replace(PATCHES, tokens=26), pixels=99).shape == (100, 100, 3)  # 20 pixels for each patch


def test_a_figure_shows_every_image_layer_by_layer_and_the_words() -> None:
    """Two images, each before and after two layers; three words left in three runs, two gone between them."""
    figure = kept_figure(SAMPLE)
    assert len(figure.axes) == 2 * 3
    written = texts(SAMPLE)
    assert written.count("layer 1: 4 of 16 patches\nothers in 1 merged token") == 2
    assert written.count("layer 2: 2 of 16 patches\nothers in 1 merged token") == 2
    assert "text, layer 0: 3 of 5 words, the others dropped" in written
    for word in SAMPLE.words:
        assert word in written
    assert sum(isinstance(artist, Line2D) for artist in figure.get_children()) == 2
    assert written[:2] == [SAMPLE.id, titled(SAMPLE)]


def test_what_is_not_pruned_is_said() -> None:
    dense = {name: replace(view, layers=()) for name, view in SAMPLE.sites.items()}
    written = texts(replace(SAMPLE, sites=dense))
    assert "left image, not pruned" in written
    assert "text, not pruned" in written
    assert " ".join(SAMPLE.words) in written


def test_of_many_layers_a_few_are_shown() -> None:
    deep = SiteView(17, tuple(KeptTokens(layer, (0, 1), 1) for layer in range(12)))
    towers = {"vision": deep, "text": WORDS}
    written = texts(replace(SAMPLE, images=(IMAGE,), sites=towers), most_layers=3)
    assert [text.partition(":")[0] for text in written if text.startswith("layer")] == [
        "layer 0",
        "layer 6",
        "layer 11",
    ]


def test_many_words_are_broken_into_lines() -> None:
    """Nothing is written beyond the right edge."""
    many = ("word",) * 100
    figure = kept_figure(replace(SAMPLE, words=many, answer="long answer " * 20))
    renderer = FigureCanvasAgg(figure).get_renderer()
    right = max(text.get_window_extent(renderer).x1 for text in figure.texts)
    assert right < figure.bbox.x1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "answer: true, reference: false, wrong, 0.2500 gmacs (-50.0%)"),
        ({"right": True}, "answer: true, right, 0.2500 gmacs (-50.0%)"),
        ({"right": None, "reference": None}, "answer: true, 0.2500 gmacs (-50.0%)"),
        ({"right": None}, "answer: true, reference: false, 0.2500 gmacs (-50.0%)"),
        ({"answer": None, "reference": None, "right": None, "gmacs": 0.5}, "0.5000 gmacs"),
    ],
)
def test_an_answer_and_its_cost_are_said(change: dict[str, Any], text: str) -> None:
    assert titled(replace(SAMPLE, **change)) == text
