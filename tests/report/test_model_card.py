"""Model cards: a header that parses, figures of both models, and nothing claimed that is not known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import yaml

from madtp_cli.report.model_card import model_card
from madtp_cli.results import Budget, LayerTokens, PruneResult, Side

RESULT = PruneResult(
    command="prune",
    device="cpu",
    dtype="float32",
    checkpoint="/home/somebody/runs/quickstart",
    budget=Budget(target_reduction=0.5, reached_reduction=0.5034, met=True),
    dense=Side(metrics={"accuracy": 0.974, "accuracy/both": 0.98}, gmacs=0.32, params=10, latency_ms={"1": 12.0}),
    pruned=Side(metrics={"accuracy": 0.961, "accuracy/both": 0.95}, gmacs=0.16, params=11, latency_ms={"1": 8.0}),
    layers=(
        LayerTokens(tower="vision", layer=0, tokens_mean=72.5, tokens_min=40, tokens_max=145),
        LayerTokens(tower="vision", layer=1, tokens_mean=36.25, tokens_min=8, tokens_max=72),
    ),
    versions={"madtp": "0.1.0", "torch": "2.13.0"},
)


def card(result: PruneResult = RESULT, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "base": "builtin:shapes_nlvr",
        "recipe_name": "quickstart",
        "data": "shapes, seed 0",
        "seed": 42,
        "seconds": 312,
        "hardware": "2 CPU cores",
        "limits": ["Knows generated scenes only."],
    }
    return model_card(result, **{**arguments, **changes})


def header(text: str) -> Any:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_header_is_what_model_hubs_read() -> None:
    assert header(card()) == {
        "license": "apache-2.0",
        "language": "en",
        "library_name": "madtp",
        "metrics": ["accuracy"],
        "tags": ["madtp", "vision-language", "token-pruning"],
    }


def test_only_what_comes_from_a_built_in_checkpoint_gets_a_licence_unasked() -> None:
    foreign = card(base="model_base_nlvr.pth")
    assert "license" not in header(foreign)
    assert "The licence of `model_base_nlvr.pth` applies." in foreign
    assert header(card(base="", license="mit"))["license"] == "mit"


def test_the_card_shows_both_models_and_how_to_load() -> None:
    found = card().splitlines()
    for line in (
        "# quickstart",
        "Budget met: cost reduced by 50.3%, target 50.0%. Accuracy 96.1% against 97.4% dense: -1.3 points.",
        "import madtp_cli",
        'model, processor = madtp_cli.load("quickstart")',
        "| | dense | compressed | change |",
        "| accuracy | 97.4% | 96.1% | -1.3 points |",
        "| accuracy, both | 98.0% | 95.0% | -3.0 points |",
        "| gmacs per sample | 0.3200 | 0.1600 | -50.0% |",
        "| latency, batch 1 | 12.0 ms | 8.00 ms | 1.50x faster |",
        "- vision: 72.5, 36.2",
        "- Made from: `builtin:shapes_nlvr`",
        "- Seed: 42",
        "- Time: 5 min 12 s on 2 CPU cores",
        "- Versions: madtp 0.1.0, torch 2.13.0",
        "- Knows generated scenes only.",
    ):
        assert line in found
    text = card()
    assert "1e9 multiply-adds of inference for one sample" in text
    assert "test split" in text
    assert "taken with: 2 CPU cores, cpu, float32." in text
    assert "/home/somebody" not in text


def test_a_missed_budget_stands_out() -> None:
    missed = Budget(target_reduction=0.8, reached_reduction=0.744, met=False)
    assert "**Budget missed: cost reduced by 74.4%, target 80.0%.** Accuracy" in card(replace(RESULT, budget=missed))


def test_a_dense_model_is_not_called_pruned() -> None:
    dense = replace(RESULT, command="finetune", budget=None, pruned=None, layers=())
    text = card(dense, base="", license="apache-2.0", limits=[])
    assert header(text)["tags"] == ["madtp", "vision-language"]
    assert "A dense vision-language transformer" in text
    assert "| accuracy, both | 98.0% |" in text
    assert "- Made from: nothing, trained from scratch" in text
    assert "- None stated." in text
    for word in ("Budget", "compressed", "tokens kept", "Licence"):
        assert word not in text


def test_a_recipe_names_a_model_that_was_not_saved() -> None:
    assert "# quickstart" in card(replace(RESULT, checkpoint=None)).splitlines()
