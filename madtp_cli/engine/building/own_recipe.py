"""The recipe that a checkpoint folder brings along."""

from __future__ import annotations

from collections.abc import Sequence

from madtp_cli.errors import SourceError
from madtp_cli.models.checkpoints import Checkpoint
from madtp_cli.recipe import Recipe, load_recipe
from madtp_cli.recipe_yaml import Override


def own_recipe(checkpoint: Checkpoint, changes: Sequence[str | Override] = ()) -> Recipe:
    """Read the recipe that lies in a checkpoint folder; raises SourceError if there is none."""
    if checkpoint.folder is None:
        raise SourceError(f"{checkpoint.source}: is a file, which does not say its data; name its data with --recipe")
    path = checkpoint.folder / "recipe.yaml"
    if not path.is_file():
        raise SourceError(f"{path}: no such file, so the checkpoint's data are unknown; name them with --recipe")
    return load_recipe(path, changes)
