"""report.html: read with a parser, as a browser without network and a reader without eyes would."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from madtp_cli.report.comparison import budget_line, headline
from madtp_cli.report.html import report
from madtp_cli.report.kept_tokens import KeptTokens, SiteView
from madtp_cli.report.overlay import titled
from tests.report.stories import LOG, RESULT, SAMPLE, STORY

VOID = {"meta", "link", "img", "br"}
HEADINGS = [
    "Load it",
    "What it costs and how good it is",
    "Training",
    "Where tokens are lost",
    "What samples cost",
    "What is kept",
    "How it was measured",
]


class Page(HTMLParser):
    """What a page holds: elements with their attributes, text by the element it is in; raises where tags cross."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(document)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def said(self, *tags: str) -> list[str]:
        """List the texts directly in some elements, or in any."""
        return [text for tag, text in self.texts if not tags or tag in tags]

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


DOCUMENT = report(STORY)
PAGE = Page(DOCUMENT)


def test_it_asks_nothing_of_anybody() -> None:
    """No script, no import, nothing that is fetched but data in the page itself, and a policy that says so."""
    assert not PAGE.named("script")
    assert not [name for _, attributes in PAGE.elements for name in attributes if name.startswith("on")]
    for _, attributes in PAGE.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    assert "@import" not in DOCUMENT
    assert "url(http" not in DOCUMENT
    assert "http://" not in DOCUMENT.replace("http-equiv", "")
    assert "https://" not in DOCUMENT
    policies = [meta["content"] or "" for meta in PAGE.named("meta") if meta.get("http-equiv")]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_it_tells_in_order_what_is_asked() -> None:
    assert PAGE.said("h1") == ["quick & small"]
    assert PAGE.said("h2") == HEADINGS
    assert PAGE.said("title") == ["quick & small: madtp report"]


def test_the_verdict_says_what_the_terminal_says() -> None:
    assert RESULT.budget is not None
    assert PAGE.said("p")[1:3] == [budget_line(RESULT.budget), headline(RESULT)]
    assert PAGE.said("dd")[:10] == [
        *("-50.0%", "0.1600 against 0.3200 gmacs per sample"),
        *("-2.3 points", "95.1% against 97.4%"),
        *("1.50x faster", "8.00 ms against 12.0 ms"),
        *("2.00x faster", "90.0 ms against 180 ms"),
        *("met", "reduced by 50.0%, target 50.0%"),
    ]


def test_it_can_be_loaded_by_what_it_says() -> None:
    assert 'import madtp_cli\n\nmodel, processor = madtp_cli.load("quick & small")' in PAGE.said("code")
    assert "madtp evaluate 'quick & small'\nmadtp profile 'quick & small'" in PAGE.said("code")


def test_tables_have_headers_for_those_who_hear_them() -> None:
    assert all(header.get("scope") in ("row", "col") for header in PAGE.named("th"))
    assert len(PAGE.named("caption")) == len(PAGE.named("table")) == 2
    assert {"dense", "compressed", "change", "<both>", "98.0%"} <= set(PAGE.said("th", "td"))


def test_every_picture_says_what_it_shows() -> None:
    """Three samples of two images, each seen before and after two layers."""
    shown = [image["alt"] for image in PAGE.named("img")]
    assert len(shown) == 3 * 2 * 3
    assert shown[:3] == [
        "left image",
        "left image, layer 0: 4 of 16 patches, the others in 1 merged token",
        "left image, layer 1: 2 of 16 patches, the others in 1 merged token",
    ]
    assert [figure["aria-label"] for figure in PAGE.named("figure") if "role" in figure] == [
        "Loss, by part",
        "Measured cost against target",
        "Pruning strength",
        "Accuracy against cost, over training",
        "Tokens kept, vision",
        "Test samples by their cost",
    ]


def test_words_that_are_gone_are_struck_out() -> None:
    assert PAGE.said("del") == ["a", "red", "[SEP]"] * 3
    assert "text, layer 0: 2 of 5 words, the others in 1 merged token" in PAGE.said("span")
    assert titled(SAMPLE) in PAGE.said("p")
    assert PAGE.said("h3")[-4:] == ["The cheapest samples", "Right answers", "Wrong answers", "Limits"]


def test_how_it_was_measured_is_said() -> None:
    said = dict(zip(PAGE.said("dt"), PAGE.said("dd")[1::2], strict=False))
    assert said.keys() >= {"Cost", "Budget"}
    values = PAGE.said("dd")
    for value in (
        "A processor, cpu, 2 threads, fp32",
        "on 40 test samples",
        "the median (p50) time of one batch of validation samples, over 12 calls or more",
        "madtp 1.2.3, torch 4.5.6",
        "shapes, 40 test",
        "7",
    ):
        assert value in values
    assert "task: nlvr2  # <mine>" in PAGE.said("code")
    assert "test: 2 images left out" in PAGE.said("p")
    assert PAGE.said("li") == ["It knows nothing of photographs."]


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"pruned": None, "budget": None}, ["What samples cost"]),
        ({"dense": None, "pruned": None, "budget": None, "layers": ()}, ["Where tokens are lost", "What samples cost"]),
    ],
    ids=["dense only", "nothing measured"],
)
def test_what_is_not_known_is_left_out(change: dict[str, Any], missing: list[str]) -> None:
    """A dense model is told of without pruning: its cost, its metrics, its loss."""
    log = [{**entry, "gmacs": None, "strength": None} for entry in LOG]
    whole = {name: SiteView(view.tokens, (), view.reads) for name, view in SAMPLE.sites.items()}
    examples = {"Right answers": [replace(SAMPLE, sites=whole)]}
    page = Page(
        report(
            replace(STORY, result=replace(RESULT, **change), log=log, kept={}, gmacs=[], extremes={}, examples=examples)
        )
    )
    assert page.said("h2") == [heading for heading in HEADINGS if heading not in missing]
    assert "A checkpoint trained with madtp." in page.said("p")
    assert "text, not pruned" in page.said("span")
    if "layers" not in change:
        assert "Nothing is pruned: all tokens leave every layer." in page.said("p")
        assert page.said("dd")[:2] == ["0.3200", "gmacs per sample"]


def test_a_smoke_run_says_that_it_means_nothing() -> None:
    page = Page(report(replace(STORY, result=replace(RESULT, smoke=True))))
    assert "A smoke run of two samples and one step: the path works, figures mean nothing." in page.said("p")
    assert "Budget" not in page.said("dt")


def test_a_busy_machine_is_said() -> None:
    assert RESULT.dense is not None
    scattered = replace(RESULT, dense=replace(RESULT.dense, latency_p90_ms={"1": 24.0, "32": 190.0}))
    assert any(
        text.startswith("The machine was busy") for text in Page(report(replace(STORY, result=scattered))).said("p")
    )
    assert not any(text.startswith("The machine was busy") for text in PAGE.said("p"))


def test_a_missed_budget_is_marked() -> None:
    assert RESULT.budget is not None
    missed = replace(RESULT, budget=replace(RESULT.budget, met=False))
    page = Page(report(replace(STORY, result=missed)))
    assert "verdict bad" in [paragraph.get("class") for paragraph in page.named("p")]
    assert "missed" in page.said("dd")


def test_of_many_layers_a_few_are_shown() -> None:
    deep = SiteView(17, tuple(KeptTokens(layer, (0, 1), 1) for layer in range(12)))
    sites = {"vision_left": deep, "vision_right": deep, "text": replace(deep, reads="text")}
    page = Page(report(replace(STORY, examples={"Examples": [replace(SAMPLE, sites=sites)]}, extremes={})))
    assert len(page.named("img")) == 2 * (1 + 4)
