"""Runs of a model so small that it trains in a second: recipes, and what tests ask of the folders they leave."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from madtp_cli.data.batch import Batch, Split
from madtp_cli.engine import run
from madtp_cli.engine.building import data as build_data
from madtp_cli.engine.building.data import Splits
from madtp_cli.engine.training.step import StepOutput, TrainingStep
from madtp_cli.models.processor import Processor
from madtp_cli.recipe import Recipe, load_recipe
from madtp_cli.recipe_yaml import Override
from madtp_cli.results import PruneResult

DENSE = """\
version: 1
task: nlvr2
model:
  family: blip
  architecture:
    {vision_layers: 3, vision_width: 32, vision_heads: 2, patch_size: 16,
     text_layers: 2, text_width: 32, text_heads: 2, merge_from: 1}
data: {name: shapes, train_samples: 256, validation_samples: 64, test_samples: 96}
pruning: {method: none}
training: {steps: 6, batch_size: 16, learning_rate: 3e-3, precision: fp32, teacher: false, log_every: 2}
"""
PRUNE = """\
version: 1
task: nlvr2
model: {family: blip, checkpoint: CHECKPOINT}
data: {name: shapes, train_samples: 256, validation_samples: 64, test_samples: 96}
budget: {reduction: 0.3, tolerance: 0.05}
alignment: {tokens: 4, dim: 16, projection: per_layer}
training: {steps: 10, batch_size: 16, learning_rate: 1e-3, precision: fp32, log_every: 2, validate_every: 5}
"""
FOLDER = {
    *("README.md", "config.json", "metrics.jsonl", "model.safetensors", "preprocessor_config.json", "profile.json"),
    *("recipe.yaml", "report.html", "tokenizer.json", "tokenizer_config.json"),
}


def write_recipe(folder: Path, text: str, checkpoint: Path | None = None) -> Path:
    """Write a recipe named `tiny` that starts from a checkpoint."""
    path = folder / "tiny.yaml"
    path.write_text(text.replace("CHECKPOINT", str(checkpoint)), encoding="utf-8")
    return path


def tiny(folder: Path, text: str, *changes: str, checkpoint: Path | None = None) -> Recipe:
    """Load a recipe whose output is `<folder>/out`, with changes as by --set."""
    output = Override("--output", ("output",), str(folder / "out"))
    return load_recipe(write_recipe(folder, text, checkpoint), [*changes, output])


def train(recipe: Recipe, command: str = "prune", **options: Any) -> PruneResult:
    """Run a recipe to its end, with the options of the command."""
    defaults: dict[str, Any] = {
        "name": recipe.name,
        "resume": False,
        "dry_run": False,
        "overwrite": False,
        "device": "cpu",
        "console": Console(file=io.StringIO()),
        "verbosity": 0,
    }
    work = run.prune if command == "prune" else run.finetune
    return work(recipe, **{**defaults, **options})


def weights(folder: Path) -> dict[str, Tensor]:
    """Read a checkpoint's tensors."""
    return load_file(folder / "model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Tell whether two sets of tensors are equal bit by bit."""
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def names(folder: Path) -> set[str]:
    """List a folder, hidden files and all."""
    return {path.name for path in folder.iterdir()}


class Watched:
    """A split that tells who reads it."""

    def __init__(self, data: Split[Any], name: str, read: Callable[[str, int], None]) -> None:
        self._data, self._name, self._read = data, name, read

    def __len__(self) -> int:
        return len(self._data)

    def batch(self, start: int, size: int) -> Any:
        """Return samples, and tell the split and the first of them."""
        self._read(self._name, start)
        return self._data.batch(start, size)


def watch(patch: pytest.MonkeyPatch, read: Callable[[str, int], None]) -> None:
    """Have every run call `read(split, start)` for each batch it reads."""
    opened = build_data.open_splits

    def open_splits(recipe: Recipe, processor: Processor) -> Splits:
        splits = opened(recipe, processor)
        return Splits(lambda name: Watched(getattr(splits, name), name, read), lambda watched: splits.task)

    patch.setattr(run, "open_splits", open_splits)


def interrupt_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Press Ctrl-C while a training step, counted from 1, is taken."""
    steps, forward = count(1), TrainingStep.forward

    def pressed(self: TrainingStep, batch: Batch) -> StepOutput:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(self, batch)

    patch.setattr(TrainingStep, "forward", pressed)
