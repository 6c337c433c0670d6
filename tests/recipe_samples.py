"""A small valid recipe, and what is wrong with variants of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from madtp_cli.errors import RecipeError
from madtp_cli.recipe import load_recipe
from madtp_cli.recipe_yaml import Override

GOOD = """\
version: 1
task: nlvr2
model:
  family: blip
  checkpoint: some/folder
data:
  name: shapes
budget:
  reduction: 0.5
pruning:
  layers:
    vision: all
training:
  steps: 100
"""


def write(folder: Path, text: str) -> Path:
    """Write a recipe file; its name is `mine`."""
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def faults(path: Path, *overrides: str | Override) -> list[str]:
    """Return the faults of a recipe, without its folder."""
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return [fault.replace(f"{path.parent}{os.sep}", "") for fault in error.value.faults]


def changed(old: str, new: str) -> str:
    """Return the recipe with one text replaced."""
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)
