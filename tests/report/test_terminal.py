"""Reports in the terminal: the lines people look for, whole, at every width, and plain text in a pipe."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from madtp_cli.report.profile_report import print_profile
from madtp_cli.report.terminal import print_evaluation, print_run_report, show
from madtp_cli.results import (
    Budget,
    EvaluateResult,
    Gmacs,
    LayerTokens,
    ModuleCost,
    ProfileResult,
    PruneResult,
    RecipeListResult,
    Side,
)

LAYERS = (
    LayerTokens(tower="vision", layer=0, tokens_mean=72.5, tokens_min=40, tokens_max=145),
    LayerTokens(tower="vision", layer=1, tokens_mean=36.25, tokens_min=8, tokens_max=72),
    LayerTokens(tower="text", layer=0, tokens_mean=9.0, tokens_min=4, tokens_max=12),
)
RUN = PruneResult(
    command="prune",
    device="cpu",
    dtype="float32",
    seed=42,
    checkpoint="runs/quick start",
    budget=Budget(target_reduction=0.5, reached_reduction=0.5034, met=True, tolerance=0.01),
    dense=Side(
        metrics={"accuracy": 0.974, "accuracy/both": 0.98},
        gmacs=0.3212,
        params=1_960_000,
        latency_ms={"1": 12.13, "32": 180.3},
        size_mib=7.61,
    ),
    pruned=Side(
        metrics={"accuracy": 0.961, "accuracy/both": 0.95},
        gmacs=0.1596,
        params=2_040_000,
        latency_ms={"1": 8.3, "32": 88.1},
        size_mib=7.9,
    ),
    layers=LAYERS,
    seconds=312,
)
COMMAND = (
    "madtp evaluate 'runs/quick start' --split test --batch-size 32 --predictions 'runs/quick start/predictions.jsonl'"
)
EVALUATION = EvaluateResult(
    command="evaluate",
    device="cpu",
    dtype="float32",
    seed=0,
    checkpoint="runs/[a]",
    split="test",
    samples=4000,
    metrics={"accuracy": 0.961, "accuracy/both": 0.95},
    gmacs=Gmacs(dense=0.32, pruned=0.16, reduction=0.5),
    predictions="p.jsonl",
)
PROFILE = ProfileResult(
    command="profile",
    device="cpu",
    dtype="float32",
    checkpoint="runs/a",
    gmacs=Gmacs(dense=0.32, pruned=0.16, reduction=0.5),
    params=2_040_000,
    modules=(
        ModuleCost(name="vision", gmacs=0.12, params=1_400_000),
        ModuleCost(name="text", gmacs=0.04, params=640_000),
    ),
    layers=LAYERS,
    latency_ms={"1": 8.3, "32": 88.1},
    latency_p90_ms={"1": 9.1},
    latency_runs={"1": 88},
    samples_per_second={"1": 120.5},
    peak_mib={"1": 1.79},
    macs_ratio={"1": 0.5, "32": 0.5},
    time_ratio={"1": 0.6667},
    efficiency={"1": 0.6667},
    tokens_kept={"vision": 0.375, "text": 1.0},
    dense=Side(metrics={}, gmacs=0.32, params=2_040_000, latency_ms={"1": 12.45}, latency_p90_ms={"1": 24.9}),
    threads=2,
    uncounted=("aten::foo",),
    attention_backend="segments",
    batch_size=1,
    text_tokens=12,
)


def console(width: int = 80, terminal: bool = False, encoding: str = "utf-8") -> Console:
    """Return a console that writes to memory, with colours on a terminal only."""
    return Console(
        file=io.TextIOWrapper(io.BytesIO(), encoding=encoding),
        width=width,
        force_terminal=terminal,
        color_system="standard" if terminal else "auto",
        _environ={},
    )


def printed(target: Console) -> str:
    assert isinstance(target.file, io.TextIOWrapper)
    target.file.flush()
    buffer = target.file.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode(target.encoding)


def lines(target: Console) -> list[str]:
    return [line.rstrip() for line in printed(target).splitlines()]


def words(target: Console) -> list[list[str]]:
    return [line.split() for line in lines(target)]


@pytest.mark.parametrize("width", [80, 120])
def test_the_run_report_has_every_line_whole(width: int) -> None:
    target = console(width)
    print_run_report(target, RUN, next_command=COMMAND)
    found = lines(target)
    assert found[1] == "Budget met: cost reduced by 50.3%, target 50.0% (tolerance 1.0 points)."
    assert found[2] == "Accuracy 96.1% against 97.4% dense: -1.3 points."
    rows = words(target)
    assert ["dense", "compressed", "change"] in rows
    assert ["accuracy", "97.4%", "96.1%", "-1.3", "points"] in rows
    assert ["both", "98.0%", "95.0%", "-3.0", "points"] in rows
    assert ["gmacs", "per", "sample", "0.3212", "0.1596", "-50.3%"] in rows
    assert ["latency,", "batch", "32", "180", "ms", "88.1", "ms", "2.05x", "faster"] in rows
    assert ["parameters", "1.960", "M", "2.040", "M", "+4.1%"] in rows
    assert ["checkpoint", "7.61", "MiB", "7.90", "MiB", "+3.8%"] in rows
    assert found[-4] == "checkpoint  runs/quick start"
    assert found[-3] == "model card  runs/quick start/README.md"
    assert found[-2] == "run         5 min 12 s on cpu, float32, seed 42"
    assert found[-1] == f"next        {COMMAND}"
    assert max(len(line) for line in found[:-1]) <= width


def test_a_run_on_a_busy_machine_says_so() -> None:
    """Oracle: batch 1's slowest tenth took twice the median; without such times nothing is said."""
    assert RUN.dense is not None
    target, plain = console(width=120), console(width=120)
    busy = replace(RUN, dense=replace(RUN.dense, latency_p90_ms={"1": 24.26, "32": 190.0}))
    print_run_report(target, busy, next_command="")
    print_run_report(plain, RUN, next_command="")
    assert "The machine was busy: at batch 1 one in ten" in printed(target)
    assert "busy" not in printed(plain)


def test_the_bars_of_kept_tokens_run_to_the_mean_and_thinner_to_the_largest() -> None:
    target = console(80)
    print_run_report(target, RUN, next_command="")
    bars = {line[:14]: line.split()[-1] for line in lines(target) if " layer " in line}
    assert bars["vision layer 0"] == "━" * 17 + "─" * 17
    assert bars["vision layer 1"] == "━" * 8 + "─" * 9
    assert bars["text layer 0  "] == "━" * 26 + "─" * 8
    assert ["vision", "layer", "1", "36.2", "8", "72", "━" * 8 + "─" * 9] in words(target)


def test_a_pipe_gets_no_escape_codes_and_a_terminal_without_colours_none_either() -> None:
    pipe = console()
    print_run_report(pipe, RUN, next_command=COMMAND)
    assert "\x1b" not in printed(pipe)
    colourless = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    print_run_report(colourless, RUN, next_command=COMMAND)
    assert isinstance(colourless.file, io.StringIO)
    assert "\x1b" not in colourless.file.getvalue()


def test_a_terminal_shows_the_verdict_in_colour() -> None:
    for met, code in ((True, "\x1b[1;32m"), (False, "\x1b[1;31m")):
        target = console(terminal=True)
        budget = Budget(target_reduction=0.5, reached_reduction=0.44, met=met)
        print_run_report(target, replace(RUN, budget=budget), next_command="")
        assert f"{code}Budget {'met' if met else 'missed'}: cost reduced by 44.0%, target 50.0%." in printed(target)


def test_an_encoding_without_lines_and_umlauts_still_gets_a_report() -> None:
    target = console(encoding="ascii")
    print_run_report(target, replace(RUN, checkpoint="runs/größe"), next_command="madtp evaluate runs/größe")
    found = lines(target)
    assert found[-1] == "next        madtp evaluate runs/gr\\xf6\\xdfe"
    assert any(line.endswith("#" * 17 + "-" * 17) for line in found)


def test_families_can_be_left_out() -> None:
    target = console()
    print_run_report(target, RUN, next_command="", families=False)
    assert "both" not in printed(target)
    assert "next" not in printed(target)


def test_a_dense_run_shows_one_column_and_no_budget() -> None:
    target = console()
    print_run_report(target, replace(RUN, budget=None, pruned=None, layers=()), next_command="")
    rows = words(target)
    assert ["value"] in rows
    assert ["accuracy", "97.4%"] in rows
    assert "Accuracy 97.4%." in lines(target)
    assert "compressed" not in printed(target)
    assert "Budget" not in printed(target)


def test_a_dry_run_says_so_and_names_no_checkpoint() -> None:
    target = console()
    show(replace(RUN, dry_run=True, checkpoint=None, dense=None, pruned=None, budget=None, layers=()), target)
    found = lines(target)
    assert found[1] == "Dry run: nothing was trained, nothing was written."
    assert not any(line.startswith(("checkpoint", "model card", "next")) for line in found)


def test_the_next_command_can_be_pasted() -> None:
    target = console()
    show(RUN, target)
    assert lines(target)[-1] == "next        madtp evaluate 'runs/quick start'"


def test_an_evaluation_gives_its_standard_error_and_cost() -> None:
    target = console()
    print_evaluation(target, EVALUATION)
    found = lines(target)
    assert found[1:4] == [
        "runs/[a] on 4,000 samples of the test split",
        "Accuracy 96.1% (standard error 0.3 points).",
        "0.1600 gmacs per sample, 0.3200 without pruning (-50.0%).",
    ]
    assert ["both", "95.0%"] in words(target)
    assert found[-2:] == ["predictions p.jsonl", "run         on cpu, float32, seed 0"]
    show(replace(EVALUATION, attention_backend="padded", threads=2), target)
    assert lines(target)[-1] == "run         attention padded on cpu, 2 threads, float32, seed 0"


def test_a_dense_evaluation_says_that_nothing_is_pruned() -> None:
    target = console()
    show(replace(EVALUATION, gmacs=Gmacs(dense=0.32, pruned=0.32, reduction=0.0)), target)
    assert "0.3200 gmacs per sample, nothing pruned." in lines(target)


def test_a_profile_shows_parts_latencies_and_what_was_not_counted() -> None:
    target = console()
    print_profile(target, replace(PROFILE, baseline=Side(metrics={}, gmacs=0.2, params=1)))
    found, rows = lines(target), words(target)
    assert found[1] == "runs/a: 2.040 M parameters"
    assert ["├──", "vision", "1.400", "M", "0.1200", "75.0%"] in rows
    assert ["1", "dense", "12.4", "24.9"] in rows
    assert ["pruned", "8.30", "9.10", "88", "120", "1.79", "x0.67", "x0.50", "0.67"] in rows
    assert "The machine was busy: at batch 1 one in ten of the dense model's calls took 2.0" in found
    assert ["32", "pruned", "88.1", "x0.50"] in rows
    assert "Baseline: 0.2000 gmacs per sample; this one costs 0.1600 (-20.0%)." in found
    assert "Not counted: aten::foo" in found
    assert found[-3:] == [
        "kept        37.5% of vision tokens, 100.0% of text tokens, mean over layers",
        "counted     by analytic, text tokens 12",
        "run         attention segments on cpu, 2 threads, float32",
    ]


def test_a_profile_without_latencies_has_no_such_table() -> None:
    target = console()
    show(replace(PROFILE, latency_ms={}, dense=None), target)
    assert not any("p50" in row for row in words(target))
    assert "busy" not in printed(target)


def test_a_result_without_a_report_is_an_error() -> None:
    with pytest.raises(TypeError, match="no report for RecipeListResult"):
        show(RecipeListResult(command="recipes ls", recipes=()), console())
