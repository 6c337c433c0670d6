"""Model cards: a header that the hub reads, figures of both models, and nothing claimed that is not known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from madtp_cli.models.family import family_of
from madtp_cli.models.spec import PruningSpec
from madtp_cli.report.model_card import Origin, model_card
from madtp_cli.results import Budget, LayerTokens, PruneResult, Side
from tests.models.kinds import kinds

RESULT = PruneResult(
    command="prune",
    device="cpu",
    dtype="fp32",
    seed=42,
    seconds=312,
    samples=4000,
    training_precision="bf16",
    processor="A Processor 9000",
    threads=2,
    attention_backend="auto",
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
SPEC = PruningSpec(
    method="madtp", tokens="adaptive", strength=0.25, layers={"vision": (0, 1, 2, 5), "text": ()}, alignment_tokens=4
)
ORIGIN = Origin(
    base="builtin:shapes_nlvr",
    recipe_name="quickstart",
    family="blip",
    task="nlvr2",
    data="shapes",
    spec=SPEC,
    kind="visual-reasoning",
    limits=("Knows generated scenes only.",),
)
DENSE = replace(RESULT, command="finetune", budget=None, pruned=None, layers=())


def card(result: PruneResult = RESULT, **changes: Any) -> str:
    return model_card(result, replace(ORIGIN, **changes))


def header(text: str) -> Any:
    return yaml.safe_load(text.split("---\n")[1])


# The header --------------------------------------------------------------------------------------------------


def test_the_header_is_what_model_hubs_read() -> None:
    assert header(card()) == {
        "license": "apache-2.0",
        "language": "en",
        "library_name": "madtp",
        "metrics": ["accuracy"],
        "tags": ["madtp", "vision-language", "token-pruning", "blip", "nlvr2"],
        "model-index": [
            {
                "name": "quickstart",
                "results": [
                    {
                        "task": {"type": "visual-reasoning"},
                        "dataset": {"type": "shapes", "name": "shapes", "split": "test"},
                        "metrics": [{"type": "accuracy", "value": 0.961, "name": "Accuracy"}],
                    }
                ],
            }
        ],
    }


def test_what_is_on_the_hub_is_named_as_the_hub_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base model and data by their ids, the revision apart; what lies here is no id."""
    found = header(
        card(base="openai/clip@v1", pipeline="zero-shot-image-classification", data="custom", source="me/pairs")
    )
    assert found["base_model"] == "openai/clip"
    assert found["base_model_relation"] == "finetune"
    assert found["datasets"] == ["me/pairs"]
    assert found["pipeline_tag"] == "zero-shot-image-classification"
    assert found["model-index"][0]["results"][0]["dataset"] == {"type": "me/pairs", "name": "custom", "split": "test"}
    (tmp_path / "mine" / "pairs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    found = header(card(base="mine/model", data="custom", source="mine/pairs"))
    assert not {"base_model", "datasets"} & set(found)


@pytest.mark.parametrize(("family", "task"), kinds())
def test_the_hubs_own_reader_takes_it(family: str, task: str) -> None:
    """Of every task; it raises on results without a task, a data set or a metric. Oracle: what it read."""
    metrics = {"tr@1": 0.8812345, "mean": 0.9} if task == "retrieval" else {"accuracy": 0.961}
    result = replace(RESULT, pruned=replace(RESULT.pruned, metrics={**metrics, "accuracy/both": 0.5}))  # type: ignore[type-var]
    kind, pipeline = family_of(family).cards[task]
    text = card(result, family=family, task=task, kind=kind, pipeline=pipeline)
    read: Any = ModelCard(text, ignore_metadata_errors=False).data
    assert [found.metric_value for found in read.eval_results] == [round(value, 4) for value in metrics.values()]
    assert read.metrics == (["recall"] if task == "retrieval" else ["accuracy"])
    assert {family, task} <= set(read.tags)


def test_only_what_comes_from_a_built_in_checkpoint_gets_a_licence_unasked() -> None:
    foreign = card(base="/home/somebody/model_base_nlvr.pth")
    assert "license" not in header(foreign)
    assert "The licence of what it was made from (`model_base_nlvr.pth`) applies." in foreign
    assert "/home/somebody" not in foreign
    assert header(card(base="", license="mit"))["license"] == "mit"


# The text ----------------------------------------------------------------------------------------------------


def test_the_card_shows_both_models_and_how_to_load() -> None:
    found = card().splitlines()
    for line in (
        "# quickstart",
        "Budget met: cost reduced by 50.3%, target 50.0%. Accuracy 96.1% against 97.4% dense: -1.3 points.",
        "import madtp_cli",
        'model, processor = madtp_cli.load("quickstart")  # the path of this folder, or its id on the Hugging Face hub',
        "| | dense | compressed | change |",
        "| accuracy | 97.4% | 96.1% | -1.3 points |",
        "| accuracy, both | 98.0% | 95.0% | -3.0 points |",
        "| gmacs per sample | 0.3200 | 0.1600 | -50.0% |",
        "| latency, batch 1 | 12.0 ms | 8.00 ms | 1.50x faster |",
        "- vision: 72.5, 36.2",
        "- Made from: `builtin:shapes_nlvr`",
        "- Pruning: madtp (normalised, adaptive, strength 0.2500) in layers: vision 0-2 5",
        "- Data: shapes",
        "- Seed: 42",
        "- Time: 5 min 12 s on A Processor 9000, trained in bf16",
        "- Versions: madtp 0.1.0, torch 2.13.0",
        "madtp prune --recipe quickstart/recipe.yaml --output quickstart-again",
        "- Knows generated scenes only.",
    ):
        assert line in found
    text = card()
    assert "1e9 multiply-adds of inference for one sample" in text
    assert "Metrics are those of the 4,000 samples of the test split, read once, after training." in text
    assert "taken with: A Processor 9000, 2 threads, cpu, fp32, attention backend auto." in text
    assert "on others it keeps other numbers of tokens, so measure there." in text
    assert "/home/somebody" not in text


def test_what_is_not_known_is_not_said() -> None:
    """A result of an older madtp, a GPU, a model whose threads mean nothing."""
    older = replace(RESULT, processor=None, threads=None, attention_backend=None, samples=None, training_precision=None)
    assert "Metrics are those of the test split, read once" in card(older)
    assert "taken with: cpu, fp32." in card(older)
    gpu = replace(RESULT, device="cuda:0", processor="GPU", attention_backend="varlen")
    assert "taken with: GPU, cuda:0, fp32, attention backend varlen." in card(gpu)


def test_the_report_is_named_where_there_is_one() -> None:
    assert "](report.html)" in card(report=True)
    assert "report.html" not in card()


def test_images_that_were_left_out_are_counted() -> None:
    text = card(replace(RESULT, broken_images={"train": ("a.png",), "test": ("b.png", "c.png")}))
    assert "3 images were missing or unreadable; their samples were left out." in text


def test_times_of_a_busy_machine_are_said_to_be() -> None:
    """Oracle: the slowest tenth took twice the median."""
    assert RESULT.dense is not None
    busy = replace(RESULT, dense=replace(RESULT.dense, latency_p90_ms={"1": 24.0}))
    assert "The machine was busy: at batch 1 one in ten of the dense model's calls took 2.0 times" in card(busy)
    assert "busy" not in card()


def test_a_missed_budget_stands_out() -> None:
    missed = Budget(target_reduction=0.8, reached_reduction=0.744, met=False)
    text = card(replace(RESULT, budget=missed))
    assert "**Budget missed: cost reduced by 74.4%, target 80.0%.** Accuracy" in text
    assert "- The budget was missed" in text


def test_a_smoke_run_claims_nothing() -> None:
    text = card(replace(RESULT, smoke=True))
    assert "**A smoke run: one step on two samples. No figure here means anything.**" in text
    assert "Budget met" not in text
    assert "model-index" not in header(text)


def test_a_dense_model_is_not_called_pruned() -> None:
    text = card(DENSE, base="", license="apache-2.0", spec=PruningSpec())
    assert header(text)["tags"] == ["madtp", "vision-language", "blip", "nlvr2"]
    assert "A dense vision-language transformer" in text
    assert "| accuracy, both | 98.0% |" in text
    assert "- Made from: nothing, trained from scratch" in text
    assert "- Pruning: none" in text
    for word in ("Budget", "compressed", "tokens kept", "Licence", "Pruned further"):
        assert word not in text


def test_data_of_ones_own_are_named_without_their_folder() -> None:
    text = card(data="custom", source="/home/somebody/pairs.parquet")
    assert "- Data: custom from `pairs.parquet`" in text
    assert "/home/somebody" not in text


def test_a_recipe_names_a_model_that_was_not_saved() -> None:
    assert "# quickstart" in card(replace(RESULT, checkpoint=None)).splitlines()
