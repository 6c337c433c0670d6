"""What `profile` measures: a model with its weights, with random ones or with none, and samples to measure it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from madtp_cli.data.batch import Split
from madtp_cli.data.sentences import VOCABULARY
from madtp_cli.engine.building.data import SHAPES_SPLITS, generated_split, open_splits
from madtp_cli.engine.building.model import (
    MOST_WORDS,
    fresh_processor,
    full_config,
    processor_of,
    pruning_spec,
    starting_checkpoint,
)
from madtp_cli.engine.building.own_recipe import own_recipe
from madtp_cli.engine.tasks.base import Normalisation
from madtp_cli.errors import SourceError, UsageError
from madtp_cli.models.base import PrunedModel, initialise
from madtp_cli.models.checkpoints import Checkpoint, open_checkpoint
from madtp_cli.models.family import family_of
from madtp_cli.models.processor import IMAGES, Processor
from madtp_cli.models.spec import PruningSpec
from madtp_cli.models.weights import read_json
from madtp_cli.recipe import Recipe

GENERATED = 2048  # samples of a generated split, over which those that are measured are spread


@dataclass(frozen=True)
class Subject:
    """A model to profile, the data it is profiled on, and the seed of whatever is random in it.

    Without data only the dense model's costs can be told; text_tokens is the length that texts are given where they are
    not the model's own data. `checkpoint` is where the weights come from, None if they are random or none.
    """

    model: PrunedModel
    data: Split[Any] | None
    seed: int | None
    text_tokens: int | None = None
    normalise: Normalisation = field(default_factory=Normalisation)
    checkpoint: str | None = None
    size_mib: float | None = None

    @property
    def weightless(self) -> bool:
        """Tell whether the model has shapes only and cannot run."""
        return next(self.model.parameters()).is_meta


def open_subject(
    checkpoint: str | None,
    recipe: Recipe | None,
    *,
    random_init: bool,
    runs: bool,
    seed: int | None,
    console: Console,
) -> Subject:
    """Open a checkpoint, or a recipe's model; `runs` tells whether it has to compute anything.

    Raises SourceError, RecipeError, UsageError for what cannot be profiled.
    """
    if recipe is None:
        assert checkpoint is not None
        opened = open_checkpoint(checkpoint)
        subject = _of_checkpoint(opened, seed, console)
        return replace(subject, checkpoint=checkpoint, size_mib=opened.size_mib)
    if seed is not None:
        recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": seed})})
    return _at_random(recipe, runs, console) if random_init else _of_recipe(recipe, console)


def usual_text_tokens(model: PrunedModel) -> int:
    """Return the length of a text in the published cost of the model's task, or what the model can read."""
    return min(family_of(model.family).calls[model.task].sample_tokens, model.limits.text_tokens)


def _of_checkpoint(opened: Checkpoint, seed: int | None, console: Console) -> Subject:
    """Take the validation split that a checkpoint was made on, generated data of its task if it does not say."""
    model = opened.build()
    if opened.folder is not None and (opened.folder / "recipe.yaml").is_file():
        recipe = own_recipe(opened)
        return _generated_data(model, recipe, opened.folder, seed) or _measured(
            model, recipe, lambda: processor_of(opened), seed, console
        )
    console.print(f"{opened.source} has no recipe.yaml: measured on samples of shapes")
    tokens = usual_text_tokens(model) if opened.limits.words > MOST_WORDS * len(VOCABULARY) else None
    return Subject(model, _generated(model), seed, tokens)


def _of_recipe(recipe: Recipe, console: Console) -> Subject:
    source = starting_checkpoint(recipe)
    if source is None:
        raise UsageError(
            f"{recipe.name} trains a model from scratch and names no checkpoint; profile it with --random-init"
        )
    model = source.build(_spec(recipe, source.config, console)).eval()
    processor = partial(processor_of, source, recipe.model.tokenizer)
    subject = _measured(model, recipe, processor, recipe.training.seed, console)
    return replace(subject, checkpoint=source.source, size_mib=source.size_mib)


def _at_random(recipe: Recipe, runs: bool, console: Console) -> Subject:
    """Build a recipe's model with random weights, or, if nothing has to run, with shapes only."""
    config = full_config(recipe)
    spec = _spec(recipe, config, console)
    runs = runs or bool(spec.method != "none" and spec.strength)
    torch.manual_seed(recipe.training.seed)
    with torch.device("cpu" if runs else "meta"):
        model = spec.model(recipe.model.family, recipe.task, config).eval()
    seed = recipe.training.seed
    if not runs and recipe.data.name != "shapes":
        console.print("no weights and no data are needed: costs are arithmetic, for texts of one length")
        return Subject(model, None, seed, usual_text_tokens(model))
    if runs:
        initialise(model)

    def processor() -> Processor:
        if recipe.data.name == "shapes":
            return fresh_processor(recipe)
        return Processor.from_folder(
            None,
            family=recipe.model.family,
            task=recipe.task,
            image_size=model.limits.image_size,
            tokenizer=recipe.model.tokenizer,
            longest=model.limits.text_tokens,
        )

    return _measured(model, recipe, processor, seed, console)


def _spec(recipe: Recipe, config: Any, console: Console) -> PruningSpec:
    spec = pruning_spec(recipe, config)
    if spec.method != "none" and not spec.strength:
        console.print("the recipe leaves pruning.strength to its budget, so the dense model is profiled")
    return spec


def _generated_data(model: PrunedModel, recipe: Recipe, folder: Path, seed: int | None) -> Subject | None:
    """Open generated data as the folder says to normalise them; None where the processor has to be asked.

    That imports much of transformers, which takes as long as half of a profile.
    """
    if recipe.data.name != "shapes" or not (folder / IMAGES).is_file():
        return None
    stored = read_json(folder / IMAGES)
    try:
        normalise = Normalisation(tuple(map(float, stored["image_mean"])), tuple(map(float, stored["image_std"])))
    except (KeyError, TypeError, ValueError):
        return None
    if (len(normalise.mean), len(normalise.std)) != (3, 3):
        return None
    return Subject(model, generated_split(recipe, "validation"), seed, normalise=normalise)


def _measured(
    model: PrunedModel, recipe: Recipe, processor: Callable[[], Processor], seed: int | None, console: Console
) -> Subject:
    """Take a recipe's validation split; where it is not there, generated data and texts of one length."""
    try:
        prepare = processor()
        data = open_splits(recipe, prepare).validation
        return Subject(model, data, seed, normalise=Normalisation(prepare.mean, prepare.std))
    except SourceError as error:
        if recipe.data.name == "shapes":
            raise
        console.print(
            f"{error}\nso this is measured on generated images of shapes and texts of one length; what a model prunes "
            "on them says little of its own data"
        )
    return Subject(model, _generated(model), seed, usual_text_tokens(model))


def _generated(model: PrunedModel) -> Split[Any]:
    made: Split[Any] = SHAPES_SPLITS[model.task]("validation", GENERATED)
    return made
