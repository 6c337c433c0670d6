"""The tables of a profile, as text."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console, RenderableType

from madtp_cli.report.profile_tables import (
    busy,
    composition_table,
    layers_table,
    passes_table,
    pictures_table,
    samples_table,
    speed_table,
    timed,
    tokens_table,
    tree_table,
)
from madtp_cli.results import (
    Gmacs,
    LayerTokens,
    ModuleCost,
    NamedProfile,
    PassCost,
    Picture,
    ProfileResult,
    SampleCost,
    Side,
)

MODULES = (
    ModuleCost(name="vision_model.embeddings", gmacs=0.01, params=3000),
    ModuleCost(name="vision_model.encoder.layers.0.self_attn", gmacs=0.1, params=30_000),
    ModuleCost(name="vision_model.encoder.layers.0.pruning", gmacs=0.002, params=0),
    ModuleCost(name="vision_model.encoder.layers.1.self_attn", gmacs=0.05, params=30_000),
    ModuleCost(name="vision_model.encoder.layers.1.pruning", gmacs=0.001, params=0),
    ModuleCost(name="text_encoder.encoder.layer.0.crossattention", gmacs=0.037, params=50_000),
    ModuleCost(name="vision_model.post_layernorm", gmacs=0.0, params=192),
    ModuleCost(name="alignment", gmacs=0.0, params=7808),
)


DENSE = Side(
    metrics={},
    gmacs=0.5,
    params=121_000,
    latency_ms={"32": 600.0, "1": 20.0},
    latency_p90_ms={"32": 620.0, "1": 21.0},
    latency_runs={"32": 6, "1": 44},
    samples_per_second={"32": 53.33, "1": 50.0},
    peak_mib={"32": 2000.0, "1": 1.279},
)
BASELINE = Side(
    metrics={},
    gmacs=0.25,
    params=1,
    latency_ms={"1": 15.0, "32": 12345.6},
    macs_ratio={"1": 0.5, "32": 0.45},
    time_ratio={"1": 0.75, "32": 20.576},
    efficiency={"1": 0.5, "32": -35.59},
)


def profile(**changes: Any) -> ProfileResult:
    known: dict[str, Any] = {
        "command": "profile",
        "checkpoint": "runs/x",
        "gmacs": Gmacs(dense=0.5, pruned=0.2, reduction=0.6),
        "params": 121_000,
        "modules": MODULES,
        "latency_ms": {"32": 300.0, "1": 10.0},
        "latency_p90_ms": {"32": 310.0, "1": 12.0},
        "latency_runs": {"32": 6, "1": 88},
        "samples_per_second": {"32": 106.67, "1": 100.0},
        "peak_mib": {"32": 1234.4, "1": 1.794},
        "macs_ratio": {"32": 0.4, "1": 0.4},
        "time_ratio": {"32": 0.5, "1": 0.5},
        "efficiency": {"32": 0.8333, "1": 0.8333},
        "dense": DENSE,
    }
    return ProfileResult(**{**known, **changes})


LAYERS = (
    LayerTokens(tower="vision", layer=0, tokens_mean=20.0, tokens_min=8, tokens_max=30, tokens_entered=40),
    LayerTokens(tower="vision", layer=1, tokens_mean=10.0, tokens_min=8, tokens_max=12, tokens_entered=40),
    LayerTokens(tower="text", layer=0, tokens_mean=9.0, tokens_min=4, tokens_max=12, tokens_entered=12),
)


def sample(index: int) -> SampleCost:
    """Make the cost of a sample that costs more by its number."""
    pruned = 0.1 + index / 1000
    return SampleCost(
        id=f"test/{index}",
        gmacs=Gmacs(dense=0.5, pruned=pruned, reduction=1 - pruned / 0.5),
        tokens_entered={"vision_left": 16, "text": 5},
        tokens_kept={"vision_left": (10, 6), "text": (5, 5)},
    )


def render(content: RenderableType, width: int = 80, encoding: str = "utf-8") -> str:
    """Print as a pipe does: no terminal, no colour, some encoding."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    Console(file=stream, width=width, color_system=None).print(content)
    stream.flush()
    return raw.getvalue().decode(encoding)


def rows_of(content: RenderableType) -> list[list[str]]:
    return [line.split() for line in render(content).splitlines()]


def test_the_tree_adds_up_from_part_to_model() -> None:
    """Layers are summed, each row is what the rows inside it are; what every layer of a stack has needs no count."""
    lines = render(tree_table(profile())).splitlines()
    assert lines[0].split() == ["part", "params", "gmacs", "share"]
    assert [re.sub("(?<=\\w) {2,}", "|", line.rstrip()) for line in lines[2:]] == [
        "model|121.0 k|0.2000|100.0%",
        "├── vision_model|63.19 k|0.1630|81.5%",
        "│   ├── embeddings|3.000 k|0.0100|5.0%",
        "│   ├── encoder.layers x2|60.00 k|0.1530|76.5%",
        "│   │   ├── self_attn|60.00 k|0.1500|75.0%",
        "│   │   └── pruning|-   0.0030|1.5%",
        "│   └── post_layernorm|192|-        -",
        "├── text_encoder|50.00 k|0.0370|18.5%",
        "│   └── encoder.layer|50.00 k|0.0370|18.5%",
        "│       └── crossattention|50.00 k|0.0370|18.5%",
        "└── alignment|7.808 k|-        -",
    ]


def test_the_tree_is_as_deep_as_asked() -> None:
    """Towers and heads; what they hold; or every layer on its own, with as many rows as the model has modules."""
    assert [row[1] for row in rows_of(tree_table(profile(), 1))[3:]] == ["vision_model", "text_encoder", "alignment"]
    assert len(rows_of(tree_table(profile(), 2))) == 3 + 3 + 4
    deep = render(tree_table(profile(), 4))
    assert "│   │   ├── 0 " in deep
    assert "│   │   └── 1 " in deep
    assert deep.count("self_attn") == 2
    assert "x1" not in deep


def test_a_tree_of_timed_parts_ends_with_the_rest() -> None:
    """Shares of time add up over layers, and what they leave to 1 is between the parts."""
    shares = (0.1, 0.2, None, 0.15, None, 0.25, 0.05, None)
    clocked = tuple(replace(module, time_share=share) for module, share in zip(MODULES, shares, strict=True))
    rows = rows_of(tree_table(profile(modules=clocked)))
    assert rows[0][-1] == "time"
    assert ["├──", "vision_model", "63.19", "k", "0.1630", "81.5%", "50.0%"] in rows
    assert ["│", "│", "├──", "self_attn", "60.00", "k", "0.1500", "75.0%", "35.0%"] in rows
    assert ["├──", "alignment", "7.808", "k", "-", "-", "-"] in rows
    assert rows[-1] == ["└──", "between", "the", "parts", "25.0%"]


def test_layers_have_their_tokens_and_their_cost() -> None:
    """Of each tower; the bar is full where all of the tokens that entered leave."""
    rows = rows_of(layers_table(profile(layers=LAYERS), 80))
    assert rows[0] == ["tokens", "kept", "after", "mean", "min", "max", "gmacs", "params"]
    assert rows[2] == ["vision", "layer", "0", "20.0", "8", "30", "━" * 8 + "─" * 4, "0.1020", "30.00", "k"]
    assert rows[-1] == ["text", "layer", "0", "9.0", "4", "12", "━" * 12 + "─" * 4, "0.0370", "50.00", "k"]


def test_a_decoder_that_no_sample_runs_is_no_layer_of_the_text_tower() -> None:
    """Its parameters are in the tree; the text tower's layer has its own only."""
    decoder = ModuleCost(name="text_decoder.bert.encoder.layer.0.attention", gmacs=0.0, params=1_000_000)
    assert rows_of(layers_table(profile(layers=LAYERS, modules=(*MODULES, decoder)), 80))[-1][-2:] == ["50.00", "k"]


def test_bars_of_kept_tokens_are_full_where_all_tokens_are_left() -> None:
    """Of 40 that entered, 20 on average and 30 at most are left: half of 34 signs, and three quarters."""
    (row,) = [row for row in rows_of(tokens_table(LAYERS, 80)) if row[:3] == ["vision", "layer", "0"]]
    assert row == ["vision", "layer", "0", "20.0", "8", "30", "━" * 17 + "─" * 9]


def test_samples_come_most_expensive_first() -> None:
    """With the share of each tower's tokens that leave a layer: 10 and 6 of 16 are half."""
    found = rows_of(samples_table(profile(samples=tuple(sample(index) for index in range(3)))))
    assert found[0] == ["sample", "gmacs", "reduction", "left", "text"]
    assert [row[0] for row in found[2:]] == ["test/2", "test/1", "test/0"]
    assert found[-1] == ["test/0", "0.1000", "80.0%", "50.0%", "100.0%"]


def test_of_many_samples_both_ends_are_shown() -> None:
    """Eight of each, the number of the others between them; or every one."""
    many = profile(samples=tuple(sample(index) for index in range(64)))
    found = rows_of(samples_table(many))
    assert [row[0] for row in found[2:]] == [f"test/{index}" for index in range(63, 55, -1)] + ["48"] + [
        f"test/{index}" for index in range(7, -1, -1)
    ]
    assert len(rows_of(samples_table(many, every=True))) == 66


def test_pictures_say_what_was_answered_and_what_it_cost() -> None:
    """The file's name without its folder; without a reference no column for it."""
    cost = Gmacs(dense=0.5, pruned=0.1, reduction=0.8)
    drawn = Picture(file="out/a.png", id="a", answer="true", reference="false", gmacs=cost)
    assert rows_of(pictures_table([drawn]))[-1] == ["a.png", "0.1000", "80.0%", "true", "false"]
    assert rows_of(pictures_table([replace(drawn, reference=None)]))[0] == ["picture", "gmacs", "reduction", "answer"]


def test_models_stand_together_by_batch() -> None:
    """Small batches first, each with the dense model above the pruned one and the baseline, as far as it was timed."""
    rows = list(timed(profile(baseline=replace(BASELINE, latency_ms={"1": 15.0}))))
    assert [(batch, name) for batch, name, _ in rows] == [
        *[("1", "dense"), ("1", "pruned"), ("1", "baseline")],
        *[("32", "dense"), ("32", "pruned")],
    ]


def test_the_speed_table_shows_time_beside_multiply_adds() -> None:
    """Median, slowest tenth, runs, samples per second and MiB of every model, to three figures; of those that are
    compared with dense the ratios as well; what was not measured stays empty.
    """
    rows = rows_of(speed_table(profile(baseline=BASELINE)))
    assert rows[0] == [
        *("batch", "model", "p50", "ms", "p90", "ms", "runs", "per", "s", "MiB", "time", "gmacs", "efficiency")
    ]
    assert [row for row in rows[2:] if row] == [
        ["1", "dense", "20.0", "21.0", "44", "50.0", "1.28"],
        ["pruned", "10.0", "12.0", "88", "100", "1.79", "x0.50", "x0.40", "0.83"],
        ["baseline", "15.0", "x0.75", "x0.50", "0.50"],
        ["32", "dense", "600", "620", "6", "53.3", "2000"],
        ["pruned", "300", "310", "6", "107", "1234", "x0.50", "x0.40", "0.83"],
        ["baseline", "12346", "x20.58", "x0.45", "-35.59"],
    ]


def test_several_checkpoints_are_called_by_their_names() -> None:
    """The first is no longer just the pruned one."""
    known = {field: getattr(profile(), field) for field in ("gmacs", "params", "latency_ms", "time_ratio")}
    other = NamedProfile(name="b", checkpoint="runs/b", **known)
    names = [name for _, name, _ in timed(profile(name="a", others=(other,)))]
    assert names == ["dense", "a", "b"] * 2


def test_without_a_saving_there_is_no_efficiency() -> None:
    """A baseline that costs what the dense model does: two ratios, nothing to divide by."""
    equal = replace(BASELINE, macs_ratio={"1": 1.0, "32": 1.0}, efficiency={})
    assert ["baseline", "15.0", "x0.75", "x1.00"] in rows_of(speed_table(profile(baseline=equal)))


def test_a_dense_model_has_one_row_and_no_ratios() -> None:
    """Nothing pruned, nothing to compare: the columns of what is saved are not there."""
    none: dict[str, Any] = {"macs_ratio": {}, "time_ratio": {}, "efficiency": {}}
    dense = profile(gmacs=Gmacs(dense=0.5, pruned=0.5, reduction=0.0), **none)
    assert [(batch, name) for batch, name, _ in timed(dense)] == [("1", "dense"), ("32", "dense")]
    assert rows_of(speed_table(dense))[0] == ["batch", "model", "p50", "ms", "p90", "ms", "runs", "per", "s", "MiB"]


def test_a_busy_machine_is_named() -> None:
    """Calls of the dense model do the same work: a slowest tenth far from the median is somebody else's doing."""
    assert busy(profile()) is None
    shaken = replace(DENSE, latency_p90_ms={"32": 620.0, "1": 36.0})
    assert busy(profile(dense=shaken)) == (
        "The machine was busy: at batch 1 one in ten of the dense model's calls took 1.8 times the median or longer. "
        "Take the ratios as rough."
    )
    # Samples that prune differently take different times.
    assert busy(profile(latency_p90_ms={"32": 900.0, "1": 90.0})) is None
    assert busy(profile(latency_ms={})) is None


def test_without_latency_there_is_no_row() -> None:
    """--no-latency leaves an empty table, which nobody prints."""
    assert speed_table(profile(latency_ms={})).row_count == 0


@pytest.mark.parametrize(
    ("table", "last"),
    [
        (lambda result: tree_table(result, 4, ascii_only=True), "`-- alignment"),
        (speed_table, "efficiency"),
        (lambda result: layers_table(result, 80, ascii_only=True), "text layer 0"),
        (lambda result: tokens_table(result.layers, 80, ascii_only=True), "###"),
        (samples_table, "left"),
    ],
)
def test_tables_fit_80_columns_and_plain_ascii(table: Any, last: str) -> None:
    """In a pipe without Unicode nothing is lost, wrapped or decorated."""
    full = profile(baseline=BASELINE, layers=LAYERS, samples=tuple(sample(index) for index in range(20)))
    text = render(table(full), encoding="ascii")
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text.isascii()
    assert "\x1b" not in text
    assert "?" not in text
    assert last in text


def _pass(name: str, dense: float, pruned: float, times: int = 1) -> PassCost:
    return PassCost(name=name, gmacs=Gmacs(dense=dense, pruned=pruned, reduction=1 - pruned / dense), times=times)


def test_a_composition_adds_up_to_the_constant() -> None:
    """Two images and a sentence, in all, as published, and how far apart they are."""
    composed = profile(
        gmacs=Gmacs(dense=132.5407, pruned=132.5407, reduction=0.0),
        convention="published",
        composition=(_pass("image", 55.539, 55.539, 2), _pass("sentence", 21.4627, 21.4627)),
        published_gmacs=132.54,
    )
    rows = [line.split() for line in render(composition_table(composed)).splitlines()]
    assert rows[0] == ["pass", "times", "gmacs", "in", "all"]
    assert ["image", "x2", "55.54", "111.1"] in rows
    assert ["sentence", "x1", "21.46", "21.46"] in rows
    assert rows[-3:] == [["total", "132.5"], ["as", "published", "132.54"], ["difference", "+0.00%"]]


def test_a_pruned_composition_has_both_costs_and_compares_the_dense_one() -> None:
    """What a pruned model costs is no constant of a paper; without an architecture of a paper nothing is compared."""
    known: dict[str, Any] = {
        "gmacs": Gmacs(dense=131.0, pruned=60.0, reduction=71 / 131),
        "composition": (_pass("image", 55.0, 25.0, 2), _pass("sentence", 21.0, 10.0)),
    }
    rows = [line.split() for line in render(composition_table(profile(**known, published_gmacs=132.54))).splitlines()]
    assert ["image", "x2", "55.00", "25.00", "50.00"] in rows
    assert rows[-4:-2] == [["total", "60.00"], ["without", "pruning", "131.0"]]
    assert rows[-1] == ["difference", "-1.16%"]
    assert "published" not in render(composition_table(profile(**known)))


def test_what_comes_on_top_is_listed_apart() -> None:
    """One line per pass, dense and pruned; no pass, no table."""
    rows = [line.split() for line in render(passes_table(profile(passes=(_pass("matching", 12.0, 5.0),)))).splitlines()]
    assert rows[0] == ["on", "top,", "each", "gmacs", "pruned"]
    assert rows[-1] == ["matching", "12.00", "5.000"]
    assert passes_table(profile()).row_count == 0
