"""Try a recipe before its data, its weights or a GPU are there: one training step and one evaluation step.

The samples are generated, but written to disk in the data set's own file format and read back by its own reader; the
model has its full size. What comes out is a real checkpoint folder that knows nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from madtp_cli.data.samples import write_samples
from madtp_cli.data.sentences import TOKEN_IDS
from madtp_cli.engine.building.model import full_config
from madtp_cli.errors import SourceError
from madtp_cli.models.base import PrunedModel, initialise
from madtp_cli.models.checkpoints import TEMPERATURE, Checkpoint
from madtp_cli.models.configs import default_config
from madtp_cli.models.family import family_of, model_class
from madtp_cli.models.limits import limits_of
from madtp_cli.models.processor import Processor, check_tokenizer
from madtp_cli.models.spec import PruningSpec
from madtp_cli.recipe import Recipe
from madtp_cli.recipe_sections import DataSection

SAMPLES = 2
_TRAINING = {
    "steps": 1,
    "epochs": None,
    "batch_size": SAMPLES,
    "warmup_steps": 0,
    "validate_every": None,
    "save_every": None,
    "log_every": 1,
    "precision": "fp32",
}


def smoke_recipe(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe for two samples, which are written below `folder` unless the data are generated or one's own.

    An `output` that the recipe chose by itself gets `-smoke`, so that it is not in the way of the real run.
    """
    data = recipe.data
    if data.name == "shapes":
        few = {f"{split}_samples": SAMPLES for split in ("train", "validation", "test")}
        data = data.model_copy(update=few)
    elif data.name != "custom":
        written = write_samples(data.name, recipe.task, folder, SAMPLES)
        data = DataSection(**{**data.model_dump(exclude={*written, "max_broken"}, exclude_none=True), **written})
    update: dict[str, Any] = {
        "data": data,
        "training": recipe.training.model_copy(update=_TRAINING),
        "distillation": recipe.distillation.model_copy(update={"cache": False}),  # one step reads no sample twice
        "inference": recipe.inference.model_copy(update={"answer_list": None}),
    }
    return recipe.model_copy(update=update)


def random_checkpoint(recipe: Recipe) -> tuple[Checkpoint, Processor]:
    """Make up the recipe's checkpoint at its full size with random weights, and its processor.

    The tokenizer is the recipe's, or the published one if it can be had, else one of whole words; the model uses its
    special ids. Raises SourceError if the recipe names a tokenizer that cannot be had.
    """
    family, task = recipe.model.family, recipe.task
    config = full_config(recipe)
    limits = limits_of(config)
    size, longest = limits.image_size, limits.text_tokens
    named = recipe.model.tokenizer
    try:
        processor = Processor.from_folder(
            None, family=family, task=task, image_size=size, tokenizer=named, longest=longest
        )
        note = "random weights"
    except SourceError:
        if named is not None:
            raise  # what was asked for by name is not replaced
        processor = Processor.from_words(list(TOKEN_IDS), size, family=family, task=task, longest=longest)
        note = "random weights; its tokenizer is not here, so the words are those of the generated samples"
    overrides = {key: value for key, value in recipe.model.config.given().items() if key != TEMPERATURE}
    config = default_config(family, task, overrides | family_of(family).processing.settings(processor), size)
    check_tokenizer(processor, config, named or "")
    torch.manual_seed(recipe.training.seed)
    model: PrunedModel = model_class(family, task)(config)
    initialise(model)
    checkpoint = Checkpoint(
        folder=None,
        config=config,
        task=task,
        spec=PruningSpec(),
        budget={},
        state=model.state_dict(),
        family=family,
        source=recipe.model.checkpoint or "",
        notes=(note,),
    )
    return checkpoint, processor
