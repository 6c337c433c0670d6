"""`--fail-if`: its grammar, the names it knows, and what a hit is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from madtp_cli.commands.fail_if import Condition, check, check_each, parse, parse_all
from madtp_cli.errors import UsageError
from madtp_cli.results import Gmacs, ProfileResult

DOCUMENT: dict[str, Any] = {
    "schema_version": 1,
    "seed": 42,
    "gmacs": {"dense": 55.5, "pruned": 26.5, "reduction": 0.52},
    "params": 1000,
    "modules": [{"name": "x", "gmacs": 1.0}],
    "latency_ms": {"1": 9.0, "32": 80.0},
    "latency_p90_ms": {"1": 12.0},
    "dense_latency_ms": {},
    "efficiency": {"1": 0.2, "32": 0.93},
    "peak_mib": {"32": 37.2},
    "tokens_kept": {"vision": 0.56},
    "dense": {"latency_ms": {"32": 150.0}},
    "baseline": None,
}


def value(name: str) -> float:
    (threshold,) = check([parse(f"{name}>0")], DOCUMENT)
    return threshold.value


@pytest.mark.parametrize(
    ("text", "name", "symbol", "limit"),
    [
        ("gmacs>27", "gmacs", ">", 27.0),
        (" gmacs.dense >= 2.5e1 ", "gmacs.dense", ">=", 25.0),
        ("latency_ms.32<.5", "latency_ms.32", "<", 0.5),
        ("params!=-3", "params", "!=", -3.0),
        ("reduction<=1.", "reduction", "<=", 1.0),
        ("params==+4", "params", "==", 4.0),
    ],
)
def test_a_condition_is_a_name_an_operator_and_a_number(text: str, name: str, symbol: str, limit: float) -> None:
    assert parse(text) == Condition(text, name, symbol, limit)


@pytest.mark.parametrize(
    "text", ["", "gmacs", "gmacs>", ">27", "27<gmacs", "gmacs=27", "gmacs>27G", "gmacs>nan", "a b>1"]
)
def test_anything_else_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(text)
    assert str(error.value) == (
        f"--fail-if {text!r}: expected a name, one of >= <= == != > < and a number, such as 'gmacs>27'"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gmacs", 26.5),
        ("gmacs.pruned", 26.5),
        ("gmacs.dense", 55.5),
        ("gmacs.reduction", 0.52),
        ("reduction", 0.52),
        ("params", 1000.0),
        ("latency_ms.1", 9.0),
        ("latency_ms.32", 80.0),
        ("efficiency.32", 0.93),
        ("tokens_kept.vision", 0.56),
        ("dense.latency_ms.32", 150.0),
        ("latency_p90_ms", 12.0),  # one batch size was measured: it needs no name
    ],
)
def test_names(name: str, expected: float) -> None:
    assert value(name) == expected


@pytest.mark.parametrize(
    ("text", "hit"),
    [
        ("gmacs>26.5", False),
        ("gmacs>=26.5", True),
        ("gmacs<26.5", False),
        ("gmacs<=26.5", True),
        ("gmacs==26.5", True),
        ("gmacs!=26.5", False),
        ("gmacs>26", True),
        ("gmacs<27", True),
    ],
)
def test_a_hit_is_a_condition_that_holds(text: str, hit: bool) -> None:
    (threshold,) = check([parse(text)], DOCUMENT)
    assert (threshold.expression, threshold.value, threshold.hit) == (text, 26.5, hit)


def test_all_conditions_are_evaluated() -> None:
    checked = check(parse_all(["gmacs>1", "gmacs>100", "params>1"]), DOCUMENT)
    assert [threshold.hit for threshold in checked] == [True, False, True]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gmac", "gmac is not measured; did you mean gmacs?"),
        (
            "seed",
            "seed is not measured; there are gmacs, reduction, params, size_mib, tokens_kept, baseline, latency_ms, "
            "latency_p90_ms, latency_runs, samples_per_second, peak_mib, macs_ratio, time_ratio, efficiency, dense, "
            "dense_latency_ms",
        ),
    ],
)
def test_an_unknown_name_is_refused_before_anything_is_measured(name: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_all([f"{name}>1"])
    assert str(error.value) == f"--fail-if '{name}>1': {message}"


@pytest.mark.parametrize(
    "name", ["latency_ms.1", "efficiency.8", "peak_mib", "dense.latency_ms.1", "baseline.time_ratio.1"]
)
def test_a_latency_needs_the_latency(name: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_all(["gmacs>1", f"{name}>3"], latency=False)
    assert str(error.value) == f"--fail-if '{name}>3': needs the latency; remove --no-latency"


def test_every_name_in_the_docs_is_one() -> None:
    """The table of docs/costs.md: each is accepted before anything is measured, and read from a profile's document."""
    page = (Path(__file__).parents[2] / "docs/costs.md").read_text(encoding="utf-8")
    table = page.partition("| figure | what it is | name |\n|---|---|---|\n")[2].partition("\n\n")[0]
    names = [name for row in table.splitlines() for name in re.findall(r"`([\w.]+)`", row.split(" | ")[-1])]
    assert len(names) == 10
    by_size = {name: {"8": 0.5} for name in names if "." not in name}
    gmacs = Gmacs(dense=1.0, pruned=0.5, reduction=0.5)
    profile = ProfileResult(command="profile", checkpoint=None, gmacs=gmacs, params=1, modules=())
    kept = {"vision": 0.5, "text": 0.5}
    document = {**profile.to_dict(), **by_size, "tokens_kept": kept}
    assert set(by_size) <= set(profile.to_dict())
    conditions = parse_all([f"{name}.8>0" if name in by_size else f"{name}>0" for name in names])
    assert [threshold.value for threshold in check(conditions, document)] == [0.5] * len(names)


def test_what_is_counted_needs_no_latency() -> None:
    names = ["gmacs", "reduction", "tokens_kept.vision", "baseline.gmacs"]
    assert [each.name for each in parse_all([f"{name}>1" for name in names], latency=False)] == names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("latency_ms", "latency_ms is several, name one: latency_ms.1, latency_ms.32"),
        ("gmacs.prund", "gmacs.prund is not measured; did you mean gmacs.pruned?"),
        (
            "baseline",
            "baseline is not measured; there are gmacs.dense, gmacs.pruned, gmacs.reduction, params, "
            "tokens_kept.vision, latency_ms.1, "
            "latency_ms.32, latency_p90_ms.1, peak_mib.32, efficiency.1, efficiency.32, dense.latency_ms.32, reduction",
        ),
    ],
)
def test_a_name_that_was_not_measured_lists_what_was(name: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        value(name)
    assert str(error.value) == f"--fail-if '{name}>0': {message}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efficiency.16", "batch size 16 is not timed, only 1, 32; add --batch-size 16"),
        ("dense.latency_ms.4", "batch size 4 is not timed, only 1, 32; add --batch-size 4"),
        ("efficiency", "efficiency is several, name one: efficiency.1, efficiency.32"),
        ("gmacs.prund", "gmacs.prund is not measured; did you mean gmacs.pruned?"),
        ("tokens_kept.txt", "tokens_kept.txt is not measured; did you mean tokens_kept.text?"),
        ("tokens_kept", "tokens_kept is several, name one: tokens_kept.vision, tokens_kept.text"),
        ("baseline.gmacs", "there is no baseline; name one with --baseline"),
    ],
)
def test_what_will_not_be_measured_is_refused_before(name: str, message: str) -> None:
    """With the batch sizes and the baseline known, a name that no profile can have costs no measurement."""
    with pytest.raises(UsageError) as error:
        parse_all(["gmacs>1", f"{name}<1"], sizes=[1, 32], baseline=False)
    assert str(error.value) == f"--fail-if '{name}<1': {message}"


@pytest.mark.parametrize(
    "name",
    [
        *("gmacs", "gmacs.dense", "reduction", "params", "size_mib", "tokens_kept.vision", "efficiency.32"),
        *("latency_ms.1", "dense.latency_ms.32", "dense.gmacs", "dense_latency_ms.1", "baseline.efficiency.1"),
        *("baseline.gmacs", "baseline.size_mib", "baseline.tokens_kept.text"),
    ],
)
def test_what_may_be_measured_is_not_refused(name: str) -> None:
    assert [each.name for each in parse_all([f"{name}<1"], sizes=[1, 32])] == [name]


def test_one_batch_size_needs_no_name() -> None:
    assert parse_all(["latency_ms<9"], sizes=[1])[0].name == "latency_ms"


def test_several_checkpoints_are_all_held_to_a_condition() -> None:
    """Every one has its line, in the order of conditions; who has no such figure is left out."""
    dense = {**DOCUMENT, "gmacs": {"dense": 55.5, "pruned": 55.5, "reduction": 0.0}, "efficiency": {}}
    checked = check_each(parse_all(["gmacs>30", "efficiency.32<0.95"]), {"a": DOCUMENT, "b": dense})
    assert [(each.name, each.checkpoint, each.value, each.limit, each.hit) for each in checked] == [
        ("gmacs", "a", 26.5, 30.0, False),
        ("gmacs", "b", 55.5, 30.0, True),
        ("efficiency.32", "a", 0.93, 0.95, True),
    ]


def test_a_condition_that_no_checkpoint_answers_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match=r"peak_mib\.1 is not measured"):
        check_each(parse_all(["peak_mib.1>1"]), {"a": DOCUMENT, "b": DOCUMENT})
