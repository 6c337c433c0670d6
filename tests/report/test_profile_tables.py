"""The tables of a profile, as text."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from madtp_cli.report.profile_tables import (
    Part,
    Speed,
    composition_table,
    latency_table,
    modules_table,
    parts,
    passes_table,
    speeds,
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


def profile(**changes: Any) -> ProfileResult:
    known: dict[str, Any] = {
        "command": "profile",
        "checkpoint": "runs/x",
        "gmacs": Gmacs(dense=0.5, pruned=0.2, reduction=0.6),
        "params": 121_000,
        "modules": MODULES,
        "latency_ms": {"32": 300.0, "1": 10.0},
        "latency_p90_ms": {"32": 310.0, "1": 12.0},
        "dense_latency_ms": {"32": 600.0, "1": 20.0},
    }
    return ProfileResult(**{**known, **changes})


def render(content: RenderableType, width: int = 80, encoding: str = "utf-8") -> str:
    """Print as a pipe does: no terminal, no colour, some encoding."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    Console(file=stream, width=width, color_system=None).print(content)
    stream.flush()
    return raw.getvalue().decode(encoding)


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


def test_efficiency_is_the_ratio_of_macs_over_the_ratio_of_times() -> None:
    """0.4 of the multiply-adds in half of the time: 80 % of what was saved arrives."""
    dense, pruned = list(speeds(profile()))[:2]
    assert dense == Speed("1", "dense", 20.0)
    assert (pruned.time_ratio, pruned.macs_ratio) == (0.5, 0.4)
    assert pruned.efficiency == pytest.approx(0.8)
    assert dense.efficiency is None


def test_latency_table_reads_by_batch() -> None:
    """Small batches first, dense above pruned, ratios beside each other."""
    rows = [line.split() for line in render(latency_table(profile())).splitlines() if " ms" in line]
    assert rows[0] == ["1", "dense", "20.0", "ms"]
    assert rows[1] == ["pruned", "10.0", "ms", "12.0", "ms", "x0.50", "x0.40", "80%"]
    assert rows[2][:2] == ["32", "dense"]


def test_a_slower_model_shows_it() -> None:
    """Multiply-adds that cost more time than they saved: a ratio above one and a low efficiency."""
    slow = next(speed for speed in speeds(profile(latency_ms={"1": 30.0})) if speed.model == "pruned")
    assert (slow.time_ratio, slow.macs_ratio) == (1.5, 0.4)
    text = render(latency_table(profile(latency_ms={"1": 30.0})))
    assert "x1.50" in text
    assert " 27%" in text


def test_a_dense_model_has_one_row_and_no_ratios() -> None:
    """Nothing pruned, nothing to compare."""
    dense = profile(gmacs=Gmacs(dense=0.5, pruned=0.5, reduction=0.0), dense_latency_ms={"1": 10.0, "32": 300.0})
    assert [(speed.batch, speed.model, speed.efficiency) for speed in speeds(dense)] == [
        ("1", "dense", None),
        ("32", "dense", None),
    ]


def test_the_baseline_stands_beside_it() -> None:
    """A baseline of the same run is compared with the dense model too."""
    baseline = Side(metrics={}, gmacs=0.25, params=1, latency_ms={"1": 15.0})
    rows = [speed for speed in speeds(profile(baseline=baseline)) if speed.model == "baseline"]
    assert [(speed.batch, speed.time_ratio, speed.macs_ratio) for speed in rows] == [("1", 0.75, 0.5)]


def test_without_latency_there_is_no_row() -> None:
    """--no-latency leaves an empty table, which nobody prints."""
    assert latency_table(profile(latency_ms={})).row_count == 0


@pytest.mark.parametrize("table", [modules_table, latency_table])
def test_tables_fit_80_columns_and_plain_ascii(table: Any) -> None:
    """In a pipe without Unicode nothing is lost, wrapped or decorated."""
    baseline = Side(metrics={}, gmacs=0.25, params=1, latency_ms={"1": 15.0, "32": 12345.6})
    text = render(table(profile(baseline=baseline)), encoding="ascii")
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text.isascii()
    assert "\x1b" not in text
    assert "crossattention" in text or "efficiency" in text


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
