"""JSON documents: what CI scripts read."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, replace

import pytest
from pydantic import ValidationError

import madtp_cli
from madtp_cli.results import (
    Budget,
    EvaluateResult,
    Gmacs,
    LayerTokens,
    ModuleCost,
    Prediction,
    ProfileResult,
    PruneResult,
    RecipeEntry,
    RecipeListResult,
    RecipeResult,
    Result,
    Side,
    Threshold,
)

LAYER = LayerTokens(tower="vision", layer=3, tokens_mean=20.5, tokens_min=8, tokens_max=40)
SIDE = Side(metrics={"accuracy": 0.97}, gmacs=0.25, params=1_600_000, latency_ms={"1": 9.5, "32": 80.0}, size_mib=6.4)
GMACS = Gmacs(dense=0.25, pruned=0.125, reduction=0.5)
RESULTS: list[Result] = [
    PruneResult(
        command="prune",
        device="cpu",
        dtype="float32",
        seed=42,
        checkpoint="runs/quickstart",
        budget=Budget(target_reduction=0.5, reached_reduction=0.503, met=True, tolerance=0.01),
        dense=SIDE,
        pruned=replace(SIDE, gmacs=0.125),
        layers=(LAYER,),
        seconds=301.5,
    ),
    PruneResult(command="finetune", checkpoint=None, dry_run=True),
    EvaluateResult(
        command="evaluate", checkpoint="x", split="test", samples=4000, metrics={"accuracy": 0.9}, gmacs=GMACS
    ),
    ProfileResult(
        command="profile",
        checkpoint="x",
        gmacs=GMACS,
        params=3,
        modules=(ModuleCost(name="vision.0", gmacs=0.1, params=3),),
        layers=(LAYER,),
        latency_ms={"1": 9.5},
        latency_runs={"1": 88},
        macs_ratio={"1": 0.5},
        efficiency={"1": 0.8},
        tokens_kept={"vision": 0.5},
        dense=SIDE,
        uncounted=("aten::gelu",),
        baseline=SIDE,
        thresholds=(Threshold(expression="gmacs>27", value=0.125, hit=False),),
    ),
    RecipeListResult(command="recipes ls", recipes=(RecipeEntry(name="a", path="a.yaml", summary="A."),)),
    RecipeResult(command="recipes validate", path="a.yaml", valid=False, faults=("a.yaml:1: x",)),
]


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: f"{type(result).__name__}-{result.command}")
def test_a_document_is_read_back_equal(result: Result) -> None:
    assert type(result).from_json(result.to_json()) == result


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: f"{type(result).__name__}-{result.command}")
def test_every_document_says_who_made_it_first(result: Result) -> None:
    document = json.loads(result.to_json())
    assert list(document)[:6] == ["schema_version", "command", "versions", "device", "dtype", "seed"]
    assert document["schema_version"] == 1
    assert document["versions"]["madtp"] == madtp_cli.__version__
    assert {"python", "torch", "transformers"} <= set(document["versions"])


SPEED = {
    *("latency_ms", "latency_p90_ms", "latency_runs", "samples_per_second", "peak_mib"),
    *("macs_ratio", "time_ratio", "efficiency"),
}


def test_documented_names_are_there() -> None:
    prune, _, evaluate, profile, *_ = [json.loads(result.to_json()) for result in RESULTS]
    assert set(prune["budget"]) >= {"target_reduction", "reached_reduction", "met"}
    for side in (prune["dense"], prune["pruned"]):
        assert set(side) >= {"metrics", "gmacs", "params", "tokens_kept", *SPEED}
    assert set(prune) >= {"checkpoint", "seconds"}
    assert set(evaluate) >= {"split", "samples", "metrics"}
    assert set(evaluate["gmacs"]) == {"dense", "pruned", "reduction"}
    assert set(profile) >= {"gmacs", "params", "modules", "layers", "tokens_kept", "uncounted", "dense", *SPEED}
    assert set(profile["dense"]) == set(prune["dense"])
    assert set(profile["modules"][0]) == {"name", "gmacs", "params", "time_share"}
    assert set(profile["layers"][0]) == {
        *("tower", "layer", "tokens_mean", "tokens_min", "tokens_max", "tokens_entered")
    }


def test_records_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        GMACS.dense = 1.0  # type: ignore[misc]


def test_a_newer_document_is_read_without_what_is_new() -> None:
    document = json.loads(RESULTS[0].to_json())
    document["energy_joules"] = 3
    assert PruneResult.from_json(json.dumps(document)) == RESULTS[0]


@pytest.mark.parametrize("broken", ['{"command": "prune"}', "[]", "no json"])
def test_something_else_is_not_read(broken: str) -> None:
    with pytest.raises(ValidationError):  # a ValueError
        PruneResult.from_json(broken)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_json_cannot_hold_is_named(value: float) -> None:
    result = PruneResult(command="prune", checkpoint="x", dense=replace(SIDE, metrics={"accuracy": value}))
    with pytest.raises(ValueError) as error:
        result.to_json()
    assert str(error.value) == "JSON has no place for values that are not finite numbers: dense.metrics.accuracy"


def test_a_prediction_is_one_line() -> None:
    prediction = Prediction(
        id="shapes/test/0", prediction=True, logits=(-1.5, 2.5), gmacs=0.125, tokens_kept={"vision_left": (40, 20)}
    )
    line = prediction.to_json()
    assert "\n" not in line
    assert json.loads(line) == {
        "id": "shapes/test/0",
        "prediction": True,
        "logits": [-1.5, 2.5],
        "gmacs": 0.125,
        "tokens_kept": {"vision_left": [40, 20]},
    }
