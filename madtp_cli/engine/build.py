"""From a recipe to plain objects: the only reader of a Recipe below the commands."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from madtp_cli.engine.auxiliary import AuxiliaryHeads
from madtp_cli.engine.build_data import facts
from madtp_cli.engine.fit import FitSettings
from madtp_cli.engine.losses import LossWeights
from madtp_cli.errors import RecipeError, SourceError, UsageError
from madtp_cli.models.base import PrunedModel, initialise, towers_of
from madtp_cli.models.blip import small_config
from madtp_cli.models.checkpoints import BUILTIN, MODELS, TEMPERATURE, Checkpoint, open_checkpoint
from madtp_cli.models.clip import small_clip_config
from madtp_cli.models.configs import default_config
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
    config, known = checkpoint.config, facts(recipe.data.name)
    words, size = len(known.vocabulary), recipe.data.image_size or known.image_size
    vocabulary, side = config.text_config.vocab_size, config.vision_config.image_size
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
    model = MODELS[recipe.model.family, recipe.task](fresh_config(recipe))
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
    shape: dict[str, Any] = recipe.model.architecture.model_dump()
    shared: dict[str, Any] = {"image_size": side, "vocab_size": len(words)}
    projection = shape.pop("projection")
    if recipe.model.family == "clip":
        shape.pop("merge_from")
        return small_clip_config(**shape, **shared, projection_dim=projection, eos_token_id=words["[SEP]"])
    return small_config(
        **shape,
        **shared,
        projection_width=projection,
        dec_token_id=words["[DEC]"],
        enc_token_id=words["[ENC]"],
        sep_token_id=words["[SEP]"],
        pad_token_id=words["[PAD]"],
    )


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
    prefix = "vision_model."
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
    text = checkpoint.config.text_config
    processor = Processor.from_folder(
        checkpoint.folder,
        family=checkpoint.family,
        task=checkpoint.task,
        image_size=checkpoint.config.vision_config.image_size,
        tokenizer=tokenizer,
        longest=text.max_position_embeddings,
    )
    check_tokenizer(processor, checkpoint.config, checkpoint.source)
    return processor


def load(
    path: str | Path, *, device: str = "cpu", dtype: torch.dtype | str | None = None
) -> tuple[PrunedModel, Processor]:
    """Open a checkpoint, wherever `open_checkpoint` finds it, as a ready model, in eval mode, and its processor."""
    where, kind = choose_device(device), _floating(dtype)
    checkpoint = open_checkpoint(str(path))
    return checkpoint.build().to(where, kind).eval(), processor_of(checkpoint)


def _floating(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Resolve a type of weights by its name, torch's or a recipe's; raises UsageError for any other."""
    if dtype is None:
        return None
    short = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    found = getattr(torch, short.get(dtype, dtype), None) if isinstance(dtype, str) else dtype
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    raise UsageError(f"dtype {dtype!r}: is no floating-point type; give torch.bfloat16, or a name such as 'bf16'")


def pruning_spec(recipe: Recipe, config: Any) -> PruningSpec:
    """Describe the recipe's pruning for a model of a configuration.

    Raises RecipeError for layers the model does not have, or widths that do not fit.
    """
    pruning, alignment = recipe.pruning, recipe.alignment
    if pruning.method == "none":
        return PruningSpec()
    towers = towers_of(config)
    prunable = MODELS[recipe.model.family, recipe.task].prunable
    if alignment.projection == "none" and "guidance" in PRUNERS[pruning.method].needs:
        for tower, (_, width) in towers.items():
            if width != alignment.dim:
                raise RecipeError(
                    f"{recipe.where('alignment.dim')}: alignment.dim is {alignment.dim} but the {tower} tower is "
                    f"{width} wide; with projection none they must be equal, try projection: shared"
                )
    guided = "guidance" in PRUNERS[pruning.method].needs
    chosen: Mapping[str, Any] = {"vision": pruning.layers.vision, "text": pruning.layers.text}
    return PruningSpec(
        method=pruning.method,
        variant=pruning.variant,
        tokens=pruning.tokens,
        temperature=pruning.temperature,
        strength=pruning.strength or 0.0,
        layers={
            tower: _layers(recipe, f"pruning.layers.{tower}", chosen[tower], layers)
            for tower, (layers, _) in towers.items()
            if tower in prunable
        },
        alignment_tokens=alignment.tokens if guided else 0,
        alignment_dim=alignment.dim if guided else 0,
        projection=alignment.projection,
    )


def _layers(recipe: Recipe, key: str, choice: Any, count: int) -> tuple[int, ...]:
    """Resolve a choice of layers; raises RecipeError, with its place in the recipe, beyond the last layer."""
    return resolve_layers(choice, count, f"{recipe.where(key)}: {key}")


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
    config = model.config
    patch, labelled = config.vision_config.patch_size, facts(recipe.data.name).labelled_patch
    if weights["patches"] and (model.plan is not None or patch != labelled):
        fault = (
            f"{recipe.data.name} labels patches of {labelled} pixels, and the model's have {patch}"
            if patch != labelled
            else "patches that were pruned have no state to label, and this recipe prunes"
        )
        where = recipe.where("training.auxiliary.patches")
        raise RecipeError(f"{where}: training.auxiliary.patches cannot be used: {fault}; set it to 0")
    return AuxiliaryHeads(config.vision_config.hidden_size, config.text_config.hidden_size, weights)


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


def choose_device(name: str) -> torch.device:
    """Resolve a --device; raises UsageError for one that this machine does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split()).split(". ")[0]
        raise UsageError(f"--device {name} cannot be used here: {reason}; try --device cpu") from None
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """Resolve `auto`: bf16 where the hardware multiplies in it, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    # AMX tiles make bf16 several times faster than fp32; plain AVX-512 bf16 does not pay in training.
    return "bf16" if device.type == "cpu" and torch.cpu._is_amx_tile_supported() else "fp32"


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
                update={tower: chosen or "none" for tower, chosen in spec.layers.items()}
            ),
        }
    )
    update: dict[str, Any] = {"pruning": pruning}
    if spec.alignment_tokens:
        update["alignment"] = recipe.alignment.model_copy(
            update={"tokens": spec.alignment_tokens, "dim": spec.alignment_dim, "projection": spec.projection}
        )
    return recipe.model_copy(update=update)


def identity_of(recipe: Recipe, command: Literal["prune", "finetune"]) -> str:
    """Return a digest of everything that a run's state depends on, for --resume."""
    ignored: dict[str, Any] = {"output": ""} if command == "prune" else {"output": "", "budget": None}
    reporting = {"log_every": 0, "save_every": None}
    ignored["training"] = recipe.training.model_copy(update=reporting)
    document = recipe.model_copy(update=ignored).to_yaml()
    return hashlib.sha256(document.encode()).hexdigest()[:16]
