"""From a recipe to the plain settings of a training run."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import torch

from madtp_cli.engine.building.data import facts
from madtp_cli.engine.building.device import choose_precision
from madtp_cli.engine.training.auxiliary import AuxiliaryHeads
from madtp_cli.engine.training.settings import FitSettings, LossWeights
from madtp_cli.errors import RecipeError
from madtp_cli.models.base import PrunedModel
from madtp_cli.recipe import Recipe

# A vocabulary of whole words fits a model that has at most this many times as many.
MOST_WORDS = 2


def loss_weights(recipe: Recipe) -> LossWeights:
    """Collect the weights of the loss."""
    distillation = recipe.distillation
    return LossWeights(
        alignment=recipe.alignment.weight,
        logits=distillation.logits,
        temperature=distillation.temperature,
        guidance=distillation.guidance,
        features=distillation.features,
    )


def auxiliary_heads(recipe: Recipe, model: PrunedModel) -> AuxiliaryHeads | None:
    """Build the training-only heads, if the recipe wants any.

    Raises RecipeError for patch labels on a model that prunes, or whose patches are not those of the labels.
    """
    weights = recipe.training.auxiliary.model_dump()
    if not any(weights.values()):
        return None
    labels = facts(recipe.data.name).labels.get(recipe.task, ())
    for name, weight in weights.items():
        if weight and name not in labels:
            where = recipe.where(f"training.auxiliary.{name}")
            raise RecipeError(
                f"{where}: training.auxiliary.{name} needs labels, and those of {recipe.data.name} for task "
                f"{recipe.task} are: {', '.join(labels) or 'none'}; set it to 0"
            )
    patch, labelled = model.limits.patch_size, facts(recipe.data.name).labelled_patch
    if weights["patches"] and (model.plan is not None or patch != labelled):
        fault = (
            f"{recipe.data.name} labels patches of {labelled} pixels, and the model's have {patch}"
            if patch != labelled
            else "patches that were pruned have no state to label, and this recipe prunes"
        )
        where = recipe.where("training.auxiliary.patches")
        raise RecipeError(f"{where}: training.auxiliary.patches cannot be used: {fault}; set it to 0")
    image, text = model.sites[0], model.sites[-1]
    if weights["image_counts"] and not image.prefix:
        where = recipe.where("training.auxiliary.image_counts")
        raise RecipeError(
            f"{where}: training.auxiliary.image_counts is learned by a class token, and {recipe.model.family} models "
            "have none; set it to 0"
        )
    return AuxiliaryHeads(image.width, text.width, weights)


def fit_settings(recipe: Recipe, device: torch.device, samples: int, *, resumable: bool = True) -> FitSettings:
    """Turn the recipe's training section into plain numbers, for a training split of so many samples."""
    training = recipe.training
    if training.batch_size > samples:
        hint = "lower it or raise data.train_samples" if recipe.data.name == "shapes" else "lower it"
        raise RecipeError(
            f"{recipe.where('training.batch_size')}: training.batch_size {training.batch_size} is more than the "
            f"{samples} training samples; {hint}"
        )
    precision = choose_precision(training.precision, device)
    if precision == "fp16" and device.type == "cpu":
        raise RecipeError(
            f"{recipe.where('training.precision')}: training.precision fp16 needs a GPU, got cpu; try bf16 or fp32"
        )
    steps = training.steps
    if steps is None:
        steps = max(1, round((training.epochs or 0) * (samples // training.batch_size)))
    if recipe.distillation.cache and steps * training.batch_size <= samples:
        raise RecipeError(
            f"{recipe.where('distillation.cache')}: distillation.cache keeps what the dense model says of a sample for "
            f"the next epoch, but {steps:,} steps of {training.batch_size} samples read none of the {samples:,} "
            "training samples twice; train longer, or set it to false"
        )
    return FitSettings(
        steps=steps,
        batch_size=training.batch_size,
        optimizer=training.optimizer,
        learning_rate=training.learning_rate,
        alignment_learning_rate=recipe.alignment.learning_rate or training.learning_rate,
        matrix_learning_rate=training.matrix_learning_rate or training.learning_rate,
        weight_decay=training.weight_decay,
        betas=training.betas,
        warmup_steps=training.warmup_steps,
        decay_from=training.decay_from,
        clip_norm=training.clip_norm,
        seed=training.seed,
        precision=precision,
        validate_every=training.validate_every or max(1, steps // 5),
        save_every=(training.save_every or max(1, steps // 5)) if resumable else None,
        log_every=training.log_every,
        validation_limit=training.validation_samples,
    )


def identity_of(recipe: Recipe, command: Literal["prune", "finetune"]) -> str:
    """Return a digest of everything that a run's state depends on, for --resume."""
    ignored: dict[str, Any] = {"output": ""} if command == "prune" else {"output": "", "budget": None}
    reporting = {"log_every": 0, "save_every": None}
    ignored["training"] = recipe.training.model_copy(update=reporting)
    document = recipe.model_copy(update=ignored).to_yaml()
    return hashlib.sha256(document.encode()).hexdigest()[:16]
