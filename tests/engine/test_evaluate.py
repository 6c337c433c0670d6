"""`evaluate` on a folder: the data it reads, the lines it writes, what it refuses."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from madtp_cli.attention import backend
from madtp_cli.data.samples import write_samples
from madtp_cli.data.shapes import ShapesPairs, accuracy
from madtp_cli.engine.evaluate import evaluate_checkpoint
from madtp_cli.engine.evaluation.evaluate import evaluate
from madtp_cli.engine.tasks.nlvr2 import Nlvr2
from madtp_cli.errors import RecipeError, SourceError, UsageError
from madtp_cli.models.checkpoints import open_checkpoint
from madtp_cli.recipe import load_recipe
from madtp_cli.results import EvaluateResult, PruneResult
from tests.models.released_states import released
from tests.tiny_published import write_tokenizer
from tests.tiny_runs import DENSE, PRUNE, names, tiny


def run(checkpoint: Path | str, **changes: Any) -> EvaluateResult:
    """Call as the command does, with its defaults."""
    options: dict[str, Any] = {
        "recipe": None,
        "split": "test",
        "limit": None,
        "batch_size": None,
        "predictions": None,
        "device": "cpu",
        "precision": None,
        "seed": None,
        "console": Console(file=io.StringIO()),
        "verbosity": 0,
    }
    return evaluate_checkpoint(str(checkpoint), **{**options, **changes})


@pytest.fixture
def copy(pruned: Path, tmp_path: Path) -> Path:
    """Copy the pruned checkpoint, to damage it."""
    return Path(shutil.copytree(pruned, tmp_path / "copy"))


def test_it_finds_what_the_run_found(pruned: Path) -> None:
    """Metrics and costs of the test split, as the run that wrote the folder reported them."""
    found = run(pruned)
    before = PruneResult.from_json((pruned / "profile.json").read_text(encoding="utf-8"))
    assert before.pruned is not None
    assert before.dense is not None
    assert found.metrics == pytest.approx(before.pruned.metrics)
    assert found.gmacs.pruned == pytest.approx(before.pruned.gmacs)
    assert found.gmacs.dense == pytest.approx(before.dense.gmacs)
    assert found.gmacs.reduction == pytest.approx(1 - found.gmacs.pruned / found.gmacs.dense)
    assert (found.command, found.checkpoint, found.split, found.samples) == ("evaluate", str(pruned), "test", 96)
    assert (found.device, found.dtype, found.seed, found.predictions) == ("cpu", "fp32", 42, None)
    assert (found.threads, found.attention_backend) == (torch.get_num_threads(), "auto")


def test_the_backend_in_force_goes_with_the_figures(pruned: Path) -> None:
    """Forced for the whole process, as --attention does."""
    with backend("padded"):
        assert run(pruned, limit=4).attention_backend == "padded"


def test_splits_limits_and_batches(pruned: Path) -> None:
    model = open_checkpoint(str(pruned)).build()
    expected = evaluate(model, Nlvr2(accuracy), ShapesPairs("validation", 64), batch_size=64, limit=20)
    found = run(pruned, split="val", limit=20, batch_size=7, seed=3)
    assert (found.split, found.samples, found.seed) == ("val", 20, 3)
    assert found.metrics == pytest.approx(expected.metrics)
    assert found.gmacs.pruned == pytest.approx(expected.cost.gmacs)


def test_another_recipe_names_other_data(pruned: Path, tmp_path: Path) -> None:
    recipe = tiny(tmp_path, DENSE, "data.seed=9", "data.test_samples=40")
    found = run(pruned, recipe=recipe)
    model = open_checkpoint(str(pruned)).build()
    assert found.samples == 40
    data = ShapesPairs("test", 40, seed=9)
    assert found.metrics == evaluate(model, Nlvr2(accuracy), data, batch_size=40, records=True).metrics


def test_precision_is_said_and_used(pruned: Path, tmp_path: Path) -> None:
    exact, rough = (tmp_path / name for name in ("exact.jsonl", "rough.jsonl"))
    run(pruned, predictions=exact)
    assert run(pruned, precision="bf16", predictions=rough).dtype == "bf16"
    assert exact.read_text(encoding="utf-8") != rough.read_text(encoding="utf-8")


# Predictions -------------------------------------------------------------------------------------------------


def test_predictions_are_one_line_per_sample(pruned: Path, tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    found = run(pruned, predictions=path)
    assert found.predictions == str(path)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    data = ShapesPairs("test", 96)
    labels = data.batch(0, 96).labels.tolist()
    assert [line["id"] for line in lines] == [f"shapes/test/{row}" for row in range(96)]
    right = [line["prediction"] is bool(label) for line, label in zip(lines, labels, strict=True)]
    assert sum(right) / 96 == pytest.approx(found.metrics["accuracy"])
    assert sum(line["gmacs"] for line in lines) / 96 == pytest.approx(found.gmacs.pruned)
    for line in lines:
        assert line.keys() == {"id", "prediction", "logits", "gmacs", "tokens_kept"}
        assert line["prediction"] is (line["logits"][1] > line["logits"][0])
        kept = line["tokens_kept"]
        assert {tower: len(layers) for tower, layers in kept.items()} == {
            "vision_left": 3,
            "vision_right": 3,
            "text": 2,
        }
        assert all(layers == sorted(layers, reverse=True) for layers in kept.values())
    # Sentences 0 to 7 are about the same two images.
    assert len({tuple(line["tokens_kept"]["vision_left"]) for line in lines[:8]}) == 1


def test_a_folder_is_no_file_for_predictions(pruned: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        run(pruned, predictions=tmp_path)
    assert str(caught.value) == f"--predictions {tmp_path}: is a folder; name a file in it"


def test_a_file_that_cannot_be_written_is_told(pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    path = tmp_path / "predictions.jsonl"
    with pytest.raises(UsageError) as caught:
        run(pruned, predictions=path)
    assert str(caught.value) == f"--predictions {path}: cannot be written: No space left on device"


# Folders that are not whole ----------------------------------------------------------------------------------


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no such checkpoint folder; give a folder that holds config.json and model"):
        run(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "recipe.yaml"])
def test_an_incomplete_checkpoint(name: str, copy: Path) -> None:
    (copy / name).unlink()
    with pytest.raises(SourceError) as caught:
        run(copy)
    assert str(caught.value).startswith(f"{copy / name}: no such file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_corrupt_checkpoint(name: str, copy: Path) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError) as caught:
        run(copy)
    assert str(caught.value).startswith(f"{copy / name}: cannot be read as ")
    assert "\n" not in str(caught.value)


def test_a_broken_recipe_is_told_with_its_line(copy: Path) -> None:
    path = copy / "recipe.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("task: nlvr2", "task: x"), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"recipe.yaml:3: task must be "):
        run(copy)


def test_without_its_recipe_another_one_does(copy: Path, tmp_path: Path) -> None:
    (copy / "recipe.yaml").unlink()
    assert run(copy, recipe=tiny(tmp_path, PRUNE, checkpoint=copy)).samples == 96
    assert names(tmp_path) == {"copy", "tiny.yaml"}


def test_a_file_takes_no_recipe_that_happens_to_lie_beside_it(copy: Path) -> None:
    """It may be of any run; the weights of the folder stand for the folder, and have it."""
    torch.save({"model": released("nlvr2", madtp=False)}, copy / "x.pth")
    with pytest.raises(SourceError) as caught:
        run(copy / "x.pth")
    assert str(caught.value) == (
        f"{copy / 'x.pth'}: is a file, which does not say its data; name its data with --recipe"
    )
    assert run(copy / "model.safetensors", limit=2).samples == 2


def test_a_recipe_for_another_task_is_refused(pruned: Path) -> None:
    """Its data could not be read, or worse, could."""
    with pytest.raises(SourceError) as caught:
        run(pruned, recipe=load_recipe("shapes_vqa"))
    assert str(caught.value) == f"{pruned}: is for nlvr2, but shapes_vqa is for vqa; name a recipe for it"


def test_a_file_of_weights_is_opened_as_the_recipe_says(tmp_path: Path) -> None:
    """Heads, a temperature and an image size that the file does not have: what the recipe gives reaches the model."""
    torch.save({"model": released("nlvr2")}, tmp_path / "x.pth")
    written = write_samples("nlvr2", "nlvr2", tmp_path / "data", 2)
    words = write_tokenizer(tmp_path / "words")
    recipe = load_recipe(
        "blip_nlvr2",
        [
            *(f"data.{key}={json.dumps(value)}" for key, value in written.items()),
            *("data.image_size=48", f"model.tokenizer={words}", "model.config.pruning_temperature=1"),
            *("model.config.vision_heads=2", "model.config.text_heads=2"),
        ],
    )
    console = Console(file=io.StringIO(), width=200)
    found = run(tmp_path / "x.pth", recipe=recipe, console=console)
    assert found.samples == 2
    assert found.gmacs.reduction > 0
    assert "image positions interpolated from 4x4 to 6x6 patches (48 pixels)" in console.file.getvalue()  # type: ignore[attr-defined]
