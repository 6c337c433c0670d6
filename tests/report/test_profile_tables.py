"""The tables of a profile, as text."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console, RenderableType

from madtp_cli.report.profile_tables import (
    Part,
    busy,
    composition_table,
    latency_table,
    modules_table,
    parts,
    passes_table,
    throughput_table,
    timed,
)
from madtp_cli.results import Gmacs, ModuleCost, PassCost, ProfileResult, Side

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


def render(content: RenderableType, width: int = 80, encoding: str = "utf-8") -> str:
    """Print as a pipe does: no terminal, no colour, some encoding."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    Console(file=stream, width=width, color_system=None).print(content)
    stream.flush()
    return raw.getvalue().decode(encoding)


def rows_of(content: RenderableType) -> list[list[str]]:
    return [line.split() for line in render(content).splitlines()]


def test_layers_are_summed_and_costless_parts_come_last() -> None:
    """A name that differs by its layer only is one part; norms, embeddings and alignment tokens are one line."""
    rounded = [Part(part.name, part.layers, round(part.gmacs, 9), part.params) for part in parts(MODULES)]
    assert rounded == [
        Part("vision_model.embeddings", 1, 0.01, 3000),
        Part("vision_model.encoder.layers.*.self_attn", 2, 0.15, 60_000),
        Part("vision_model.encoder.layers.*.pruning", 2, 0.003, 0),
        Part("text_encoder.encoder.layer.*.crossattention", 1, 0.037, 50_000),
        Part("parts without cost of their own", 1, 0.0, 8000),
    ]


def test_modules_add_up_to_the_total() -> None:
    """Shares are of the pruned cost; the last line is the sum."""
    lines = render(modules_table(profile())).splitlines()
    attention = next(line for line in lines if "self_attn" in line)
    assert attention.split() == ["vision_model.encoder.layers.*.self_attn", "x2", "0.1500", "75.0%", "60.00", "k"]
    assert lines[-1].split()[:2] == ["total", "0.2000"]
    assert "0.self_attn" in render(modules_table(profile(), every_layer=True))


def test_models_stand_together_by_batch() -> None:
    """Small batches first, each with the dense model above the pruned one and the baseline, as far as it was timed."""
    rows = list(timed(profile(baseline=replace(BASELINE, latency_ms={"1": 15.0}))))
    assert [(batch, name) for batch, name, _ in rows] == [
        *[("1", "dense"), ("1", "pruned"), ("1", "baseline")],
        *[("32", "dense"), ("32", "pruned")],
    ]


def test_latency_table_shows_time_beside_multiply_adds() -> None:
    """Median, slowest tenth and runs of every model; of those that are compared with dense the ratios as well."""
    rows = rows_of(latency_table(profile(baseline=BASELINE)))
    assert rows[0] == ["batch", "model", "p50", "p90", "runs", "time", "gmacs", "efficiency"]
    assert [row for row in rows if "ms" in row] == [
        ["1", "dense", "20.0", "ms", "21.0", "ms", "44"],
        ["pruned", "10.0", "ms", "12.0", "ms", "88", "x0.50", "x0.40", "0.83"],
        ["baseline", "15.0", "ms", "x0.75", "x0.50", "0.50"],
        ["32", "dense", "600", "ms", "620", "ms", "6"],
        ["pruned", "300", "ms", "310", "ms", "6", "x0.50", "x0.40", "0.83"],
        ["baseline", "12346", "ms", "x20.58", "x0.45", "-35.59"],
    ]


def test_without_a_saving_there_is_no_efficiency() -> None:
    """A baseline as dear as the dense model: two ratios, nothing to divide by."""
    dear = replace(BASELINE, macs_ratio={"1": 1.0, "32": 1.0}, efficiency={})
    assert ["baseline", "15.0", "ms", "x0.75", "x1.00"] in rows_of(latency_table(profile(baseline=dear)))


def test_throughput_table_has_samples_and_memory() -> None:
    """To three figures; what was not measured stays empty."""
    rows = rows_of(throughput_table(profile(baseline=BASELINE)))
    assert rows[0] == ["batch", "model", "samples/s", "memory"]
    assert rows[2:5] == [["1", "dense", "50.0", "1.28", "MiB"], ["pruned", "100", "1.79", "MiB"], ["baseline"]]
    assert ["32", "dense", "53.3", "2000", "MiB"] in rows


def test_a_dense_model_has_one_row_and_no_ratios() -> None:
    """Nothing pruned, nothing to compare: the columns of what is saved are not there."""
    none: dict[str, Any] = {"macs_ratio": {}, "time_ratio": {}, "efficiency": {}}
    dense = profile(gmacs=Gmacs(dense=0.5, pruned=0.5, reduction=0.0), **none)
    assert [(batch, name) for batch, name, _ in timed(dense)] == [("1", "dense"), ("32", "dense")]
    assert rows_of(latency_table(dense))[0] == ["batch", "model", "p50", "p90", "runs"]


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
    """--no-latency leaves empty tables, which nobody prints."""
    assert latency_table(profile(latency_ms={})).row_count == 0
    assert throughput_table(profile(latency_ms={})).row_count == 0


@pytest.mark.parametrize("table", [modules_table, latency_table, throughput_table])
def test_tables_fit_80_columns_and_plain_ascii(table: Any) -> None:
    """In a pipe without Unicode nothing is lost, wrapped or decorated."""
    text = render(table(profile(baseline=BASELINE)), encoding="ascii")
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text.isascii()
    assert "\x1b" not in text
    assert any(last in text for last in ("crossattention", "efficiency", "memory"))


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
