"""The whole path for the other tasks and CLIP: train from scratch, prune, evaluate, load; and take a run up again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

import madtp_cli
from madtp_cli.cli import app
from madtp_cli.data.batch import Batch
from madtp_cli.engine.building.data import open_splits
from madtp_cli.engine.tasks.base import inputs_of
from madtp_cli.engine.training.fit import BEST
from madtp_cli.errors import Interrupted
from madtp_cli.models.checkpoints import open_checkpoint
from madtp_cli.recipe import Recipe, load_recipe
from madtp_cli.results import PruneResult
from tests.engine.test_evaluate import run as evaluate
from tests.tiny_runs import FOLDER, interrupt_at, names, same, tiny, train, weights

pytestmark = pytest.mark.usefixtures("untimed")

DENSE = """\
version: 1
task: TASK
model:
  family: FAMILY
  architecture:
    {vision_layers: 2, vision_width: 32, vision_heads: 2, patch_size: 16,
     text_layers: 2, text_width: 32, text_heads: 2, projection: 12}
data: {name: shapes, train_samples: 64, validation_samples: 24, test_samples: 24}
pruning: {method: none}
training: {steps: 4, batch_size: 8, learning_rate: 3e-3, precision: fp32, teacher: false, log_every: 2}
inference: {INFERENCE}
"""
PRUNE = """\
version: 1
task: TASK
model: {family: FAMILY, checkpoint: CHECKPOINT}
data: {name: shapes, train_samples: 64, validation_samples: 24, test_samples: 24}
budget: {reduction: 0.2, tolerance: 0.08}
alignment: {tokens: 4, dim: 16, projection: per_layer}
training: {steps: 6, batch_size: 8, learning_rate: 1e-3, precision: fp32, log_every: 2, validate_every: 3}
inference: {INFERENCE}
"""
KINDS = [("blip", "vqa"), ("blip", "caption"), ("blip", "retrieval"), ("clip", "retrieval")]
INFERENCE = {
    ("blip", "vqa"): "k_test: 4",
    ("blip", "caption"): "beams: 2, min_length: 1, max_length: 6",
    ("blip", "retrieval"): "k_test: 4",
}
METRICS = {"vqa": "accuracy", "caption": "accuracy", "retrieval": "mean"}
LOSSES = {
    ("blip", "vqa"): {"task"},
    ("blip", "caption"): {"task"},
    ("blip", "retrieval"): {"task", "matching"},
    ("clip", "retrieval"): {"task"},
}


@pytest.fixture(scope="module", params=KINDS, ids=["-".join(kind) for kind in KINDS])
def kind(request: pytest.FixtureRequest) -> Any:
    """Name family and task."""
    return request.param


@pytest.fixture(scope="module")
def trained(kind: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Train a tiny model of the task from scratch, and prune it: both folders."""
    folders = [tmp_path_factory.mktemp(name) for name in ("dense", "pruned")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "madtp_cli.engine.finishing.finish.compare_latency", lambda models, data, normalise, **options: {}
        )
        train(tiny(folders[0], of(DENSE, kind)), "finetune")
        train(tiny(folders[1], of(PRUNE, kind), checkpoint=folders[0] / "out"))
    return folders[0] / "out", folders[1] / "out"


def of(text: str, kind: tuple[str, str]) -> str:
    """Fill a recipe in."""
    return text.replace("FAMILY", kind[0]).replace("TASK", kind[1]).replace("INFERENCE", INFERENCE.get(kind, ""))


def result_of(folder: Path) -> PruneResult:
    return PruneResult.from_json((folder / "profile.json").read_text(encoding="utf-8"))


def batch_of(folder: Path, size: int = 6) -> tuple[Recipe, Any, Batch]:
    """Read the first test samples of a checkpoint, with its recipe and processor."""
    recipe = load_recipe(folder / "recipe.yaml")
    _, processor = madtp_cli.load(folder)
    batch: Batch = open_splits(recipe, processor).test.batch(0, size)
    return recipe, processor, batch


def test_the_run_leaves_a_folder_that_says_what_it_measured(kind: tuple[str, str], trained: tuple[Path, Path]) -> None:
    """The budget is met on the test split; costs, scores and the log are those of the task."""
    for folder in trained:
        assert names(folder) == FOLDER | ({"answers.json"} if kind[1] == "vqa" else set())
    dense, pruned = (result_of(folder) for folder in trained)
    assert dense.dense is not None
    assert pruned.dense is not None
    assert pruned.pruned is not None
    assert pruned.budget is not None
    assert pruned.budget.met
    assert pruned.dense.metrics == pytest.approx(dense.dense.metrics)
    assert METRICS[kind[1]] in pruned.pruned.metrics
    assert pruned.pruned.gmacs == pytest.approx((1 - pruned.budget.reached_reduction) * pruned.dense.gmacs)
    towers = {"vision"} if kind[1] == "caption" else {"vision", "text"}
    assert {layer.tower for layer in pruned.layers} >= towers
    log = [json.loads(line) for line in (trained[1] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    parts = {"alignment", "logits", "guidance", "total"}
    assert [entry["losses"].keys() for entry in log if "losses" in entry] == [LOSSES[kind] | parts] * 3
    assert [set(entry["validation"]) for entry in log if "losses" not in entry] == [{METRICS[kind[1]], "reduction"}] * 2
    config = json.loads((trained[1] / "config.json").read_text(encoding="utf-8"))
    assert (config["madtp"]["family"], config["madtp"]["task"]) == kind
    assert config["madtp"]["layers"].keys() == towers
    assert f"{kind[1]}" in (trained[1] / "recipe.yaml").read_text(encoding="utf-8")


def test_a_fresh_evaluation_finds_the_same(kind: tuple[str, str], trained: tuple[Path, Path], tmp_path: Path) -> None:
    """In other batches; with one line of predictions for every sample, whose costs average to the folder's."""
    path = tmp_path / "predictions.jsonl"
    found, before = evaluate(trained[1], batch_size=7, predictions=path), result_of(trained[1])
    assert before.pruned is not None
    assert found.metrics == pytest.approx(before.pruned.metrics)
    assert found.gmacs.pruned == pytest.approx(before.pruned.gmacs)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == list(batch_of(trained[1], 24)[2].ids)
    assert sum(line["gmacs"] for line in lines) / 24 == pytest.approx(found.gmacs.pruned)
    towers = {"vision"} if kind[1] == "caption" else {"vision", "text"}
    assert all(line["tokens_kept"].keys() >= towers for line in lines)
    assert all(isinstance(line["prediction"], str) for line in lines)
    shown = CliRunner().invoke(app, ["evaluate", str(trained[1])])
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert f"{100 * found.metrics[METRICS[kind[1]]]:.1f}%" in shown.stdout


def test_the_loaded_model_takes_what_its_processor_gives(kind: tuple[str, str], trained: tuple[Path, Path]) -> None:
    """A user's images and texts give the logits and embeddings that the engine's own batches give."""
    recipe, processor, batch = batch_of(trained[1])
    model, _ = madtp_cli.load(trained[1])
    texts = [processor.tokenizer.decode(ids, skip_special_tokens=True) for ids in batch.text.split(batch.text_lengths)]
    images = [Image.fromarray(batch.images[row].permute(1, 2, 0).numpy()) for row in batch.image_index.tolist()]
    with torch.inference_mode():
        found = model(**processor(images, texts))
        expected = model(inputs_of(batch, open_splits(recipe, processor).task.normalise, torch.device("cpu")))
    torch.testing.assert_close(found.encoded, expected.encoded, atol=1e-4, rtol=0)
    assert [layer.leaving for layer in found.traces["text"]] == [layer.leaving for layer in expected.traces["text"]]
    assert sum(found.traces["vision"][-1].leaving) < 37 * len(images)


def test_recovery_holds_the_strength(kind: tuple[str, str], trained: tuple[Path, Path], tmp_path: Path) -> None:
    """finetune goes on with the pruned folder as it prunes."""
    result = train(tiny(tmp_path, of(PRUNE, kind), "training.steps=1", checkpoint=trained[1]), "finetune")
    before, after = (open_checkpoint(str(folder)).spec for folder in (trained[1], tmp_path / "out"))
    assert after == before
    assert result.budget is None
    assert not same(weights(tmp_path / "out"), weights(trained[1]))


# Stopped and resumed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["vqa", "caption", "retrieval"])
def test_an_interrupted_run_ends_as_the_uninterrupted_one(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are equal bit by bit: the state has a decoder's head as its words, and the draw of wrong pairs."""
    recipe = of(DENSE, ("blip", task))
    for name in ("whole", "halves"):
        (tmp_path / name).mkdir()
    train(tiny(tmp_path / "whole", recipe), "finetune")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(Interrupted):
            train(tiny(tmp_path / "halves", recipe), "finetune")
    train(tiny(tmp_path / "halves", recipe), "finetune", resume=True)
    one, other = (weights(tmp_path / name / "out") for name in ("whole", "halves"))
    assert same(one, other)
    assert task == "retrieval" or "text_decoder.bert.embeddings.word_embeddings.weight" in one
    assert not any("cls.predictions.decoder" in key for key in one)  # written once


def test_the_best_weights_of_a_decoder_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation likes the first half of the training best: the folder has the weights of that step, tied as ever."""
    scores = iter([0.9, 0.1])
    kept: list[Any] = []

    def scored(*arguments: Any) -> dict[str, float]:
        return {"accuracy": next(scores, 0.5)}

    monkeypatch.setattr("madtp_cli.data.shapes_single.captioned", scored)
    publish = "madtp_cli.engine.training.output.OutputFolder.publish"

    def keep(self: Any, write: Any) -> None:
        with safe_open(self.work / BEST, "pt") as file:
            kept.append(file.metadata()["step"])
        kept.append(load_file(self.work / BEST))
        self.final.mkdir()
        write(self.final)

    monkeypatch.setattr(publish, keep)
    train(tiny(tmp_path, of(DENSE, ("blip", "caption")), "training.validate_every=2"), "finetune")
    step, best = kept
    assert step == "2"
    written = weights(tmp_path / "out")
    assert all(written[key].equal(value) for key, value in best.items() if key in written)
    left_out = best.keys() - written.keys()
    words = best["text_decoder.bert.embeddings.word_embeddings.weight"]
    assert all(best[key].equal(words) for key in left_out if key.endswith("decoder.weight"))
    model = open_checkpoint(str(tmp_path / "out")).build()
    head: Any = model.get_parameter("text_decoder.cls.predictions.decoder.weight")
    assert head is model.get_parameter("text_decoder.bert.embeddings.word_embeddings.weight")
