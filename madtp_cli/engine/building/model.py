"""From a recipe to plain objects: the only reader of a Recipe below the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from madtp_cli.engine.building.data import facts
from madtp_cli.engine.building.device import choose_device, floating
from madtp_cli.errors import RecipeError, SourceError
from madtp_cli.models.base import PrunedModel, initialise
from madtp_cli.models.checkpoints import BUILTIN, TEMPERATURE, Checkpoint, open_checkpoint
from madtp_cli.models.configs import default_config
from madtp_cli.models.family import family_of, model_class
from madtp_cli.models.filling import is_finite
from madtp_cli.models.processor import Processor, check_tokenizer
from madtp_cli.models.spec import PruningSpec
from madtp_cli.pruning import PRUNERS
from madtp_cli.recipe import Recipe, resolve_layers

# A vocabulary of whole words fits a model that has at most this many times as many.
MOST_WORDS = 2


def starting_checkpoint(recipe: Recipe) -> Checkpoint | None:
    """Open the checkpoint a recipe starts from, for its task and image size; None if it trains from scratch."""
    source = recipe.model.checkpoint
    return open_for(source, recipe, task=recipe.task) if source else None


def open_for(source: str, recipe: Recipe, *, task: str | None = None) -> Checkpoint:
    """Open a checkpoint with what a recipe says about it: `model.config`, and the size of its images.

    `task` starts another task than the checkpoint's own. Raises RecipeError for one of another family.
    """
    config = recipe.model.config.given()
    if recipe.data.image_size is not None and recipe.data.name != "shapes":
        config["image_size"] = recipe.data.image_size
    opened = open_checkpoint(source, config=config, task=task)
    if opened.family != recipe.model.family:
        raise RecipeError(
            f"{recipe.where('model.family')}: model.family is {recipe.model.family}, but {source} is a checkpoint "
            f"of {opened.family}; set it to {opened.family}"
        )
    return opened


def check_fits(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Refuse data that a checkpoint's model cannot read; raises SourceError."""
    limits, known = checkpoint.limits, facts(recipe.data.name)
    words, size = len(known.vocabulary), recipe.data.image_size or known.image_size
    vocabulary, side = limits.words, limits.image_size
    if vocabulary < words or (size is not None and side != size) or (words and vocabulary > MOST_WORDS * words):
        raise SourceError(
            f"{checkpoint.source}: its model reads {vocabulary} words and images of {side} pixels, "
            f"but {recipe.data.name} has {words} words and {size} pixels: it was made for other data, try another "
            "checkpoint or --recipe"
        )


def fresh_model(recipe: Recipe) -> PrunedModel:
    """Build the recipe's architecture with random weights, from its seed, or with another checkpoint's vision tower."""
    assert recipe.model.architecture is not None
    torch.manual_seed(recipe.training.seed)
    model = model_class(recipe.model.family, recipe.task)(fresh_config(recipe))
    initialise(model)
    if recipe.model.vision_from is not None:
        take_vision(model, open_checkpoint(recipe.model.vision_from))
    return model


def fresh_config(recipe: Recipe) -> Any:
    """Describe the recipe's architecture; raises RecipeError if its patches do not fill an image."""
    assert recipe.model.architecture is not None
    known = facts(recipe.data.name)
    patch, side = recipe.model.architecture.patch_size, recipe.data.image_size or known.image_size or 0
    if side % patch:
        where = recipe.where("model.architecture.patch_size")
        raise RecipeError(f"{where}: images of {side} pixels are not a multiple of patch_size {patch}")
    words = {word: number for number, word in enumerate(known.vocabulary)}
    shape = recipe.model.architecture.model_dump()
    return family_of(recipe.model.family).configuration.small(shape, side, words)


def full_config(recipe: Recipe) -> Any:
    """Describe the recipe's model without its weights: from scratch, a checkpoint at hand, or the published one."""
    model = recipe.model
    if model.architecture is not None:
        return fresh_config(recipe)
    assert model.checkpoint is not None
    if model.checkpoint.startswith(BUILTIN) or Path(model.checkpoint).exists():
        source = starting_checkpoint(recipe)
        assert source is not None
        return source.config
    overrides = {key: value for key, value in model.config.given().items() if key != TEMPERATURE}
    return default_config(model.family, recipe.task, overrides, recipe.data.image_size)


def take_vision(model: PrunedModel, source: Checkpoint) -> None:
    """Copy another checkpoint's vision tower; raises SourceError if it is not the same."""
    prefix = f"{model.image_encoder}."
    own = {key: value for key, value in model.state_dict().items() if key.startswith(prefix)}
    given = {key: value for key, value in source.state.items() if key.startswith(prefix)}
    unfit = [key for key in own if key not in given or given[key].shape != own[key].shape] + [
        key for key in given if key not in own
    ]
    if broken := [key for key, value in given.items() if not is_finite(value)]:
        raise SourceError(f"{source.source}: NaN or infinite weights in its vision tower, first {broken[0]}")
    if unfit:
        raise SourceError(
            f"{source.source}: its vision tower is not that of model.architecture: {len(unfit)} tensors differ, the "
            f"first is {unfit[0]}; give the architecture the same vision settings"
        )
    model.load_state_dict(given, strict=False)


def fresh_processor(recipe: Recipe) -> Processor:
    """Make the processor of a model that is trained from scratch on the recipe's data."""
    known = facts(recipe.data.name)
    size = recipe.data.image_size or known.image_size or 0
    return Processor.from_words(known.vocabulary, size, family=recipe.model.family, task=recipe.task)


def processor_of(checkpoint: Checkpoint, tokenizer: str | None = None) -> Processor:
    """Open the processor of a checkpoint; raises SourceError for a tokenizer that is not its model's."""
    limits = checkpoint.limits
    processor = Processor.from_folder(
        checkpoint.folder,
        family=checkpoint.family,
        task=checkpoint.task,
        image_size=limits.image_size,
        tokenizer=tokenizer,
        longest=limits.text_tokens,
    )
    check_tokenizer(processor, checkpoint.config, checkpoint.source)
    return processor


def load(
    path: str | Path, *, device: str = "cpu", dtype: torch.dtype | str | None = None
) -> tuple[PrunedModel, Processor]:
    """Open a checkpoint, wherever `open_checkpoint` finds it, as a ready model, in eval mode, and its processor."""
    where, kind = choose_device(device), floating(dtype)
    checkpoint = open_checkpoint(str(path))
    return checkpoint.build().to(where, kind).eval(), processor_of(checkpoint)


def pruning_spec(recipe: Recipe, config: Any) -> PruningSpec:
    """Describe the recipe's pruning for a model of a configuration.

    Raises RecipeError for layers the model does not have, or widths that do not fit.
    """
    pruning, alignment = recipe.pruning, recipe.alignment
    if pruning.method == "none":
        return PruningSpec()
    sites, needs = model_class(recipe.model.family, recipe.task).sites_of(config), PRUNERS[pruning.method].needs
    guided = "guidance" in needs
    if alignment.projection == "none" and guided:
        for site in sites:
            if site.width != alignment.dim:
                raise RecipeError(
                    f"{recipe.where('alignment.dim')}: alignment.dim is {alignment.dim} but the {site.name} tower is "
                    f"{site.width} wide; with projection none they must be equal, try projection: shared"
                )
    layers = {
        site.name: _layers(recipe, f"pruning.layers.{site.name}", pruning.layers.of(site.name), site.layers)
        for site in sites
        if site.prunes
    }
    for site in sites:
        if layers.get(site.name) and (lacking := sorted(needs - site.offers)):
            raise RecipeError(
                f"{recipe.where('pruning.method')}: pruning.method {pruning.method} needs {' and '.join(lacking)}, "
                f"which {recipe.model.family} models do not have at the site {site.name}; try another method, or "
                f"pruning.layers.{site.name}: none"
            )
    return PruningSpec(
        method=pruning.method,
        variant=pruning.variant,
        tokens=pruning.tokens,
        temperature=pruning.temperature,
        strength=pruning.strength or 0.0,
        layers=layers,
        alignment_tokens=alignment.tokens if guided else 0,
        alignment_dim=alignment.dim if guided else 0,
        projection=alignment.projection,
    )


def _layers(recipe: Recipe, key: str, choice: Any, count: int) -> tuple[int, ...]:
    """Resolve a choice of layers; raises RecipeError, with its place in the recipe, beyond the last layer."""
    return resolve_layers(choice, count, f"{recipe.where(key)}: {key}")


def with_pruning_of(recipe: Recipe, spec: PruningSpec) -> Recipe:
    """Return the recipe with the pruning and alignment of a checkpoint in place of its own."""
    pruning = recipe.pruning.model_copy(
        update={
            "method": spec.method,
            "variant": spec.variant,
            "tokens": spec.tokens,
            "temperature": spec.temperature,
            "strength": spec.strength,
            "layers": recipe.pruning.layers.model_copy(
                update={site: chosen or "none" for site, chosen in spec.layers.items()}
            ),
        }
    )
    update: dict[str, Any] = {"pruning": pruning}
    if spec.alignment_tokens:
        update["alignment"] = recipe.alignment.model_copy(
            update={"tokens": spec.alignment_tokens, "dim": spec.alignment_dim, "projection": spec.projection}
        )
    return recipe.model_copy(update=update)
