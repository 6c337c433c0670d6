"""From a recipe to plain objects: the only reader of a Recipe below the commands."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from madtp_cli.data import scenes, sentences, shapes
from madtp_cli.engine.auxiliary import AuxiliaryHeads
from madtp_cli.engine.evaluate import PairData
from madtp_cli.engine.fit import FitSettings, Metric
from madtp_cli.engine.losses import LossWeights
from madtp_cli.errors import RecipeError, SourceError, UsageError
from madtp_cli.models.checkpoints import Checkpoint, open_checkpoint
from madtp_cli.models.nlvr import BlipForNlvr, initialise, small_config
from madtp_cli.models.processor import PairProcessor
from madtp_cli.models.spec import PruningSpec
from madtp_cli.pruning import PRUNERS
from madtp_cli.recipe import Recipe, resolve_layers


@dataclass(frozen=True)
class DataSet:
    """A data set: how to open a split, its metric, its words, the side of the patches it has labels for, and
    what a model made on it cannot do.
    """

    split: Callable[..., PairData]
    metric: Metric
    vocabulary: tuple[str, ...]
    labelled_patch: int
    limits: tuple[str, ...]


DATASETS: Mapping[str, DataSet] = {
    "shapes": DataSet(
        shapes.ShapesPairs,
        shapes.accuracy,
        tuple(sentences.VOCABULARY),
        scenes.PATCH_SIZE,
        (
            "Trained and measured on generated scenes of coloured shapes: it knows nothing of photographs.",
            "English sentences of the 61 words in its vocabulary only.",
        ),
    ),
}


@dataclass(frozen=True)
class Splits:
    """The three splits of a run and the metric they are judged by."""

    train: PairData
    validation: PairData
    test: PairData
    metric: Metric

    def named(self, name: str) -> PairData:
        """Return `validation` (or `val`) or `test`."""
        return self.test if name == "test" else self.validation


def open_splits(recipe: Recipe) -> Splits:
    """Open the recipe's data."""
    data = recipe.data
    dataset = DATASETS[data.name]

    def split(name: str, samples: int) -> PairData:
        return dataset.split(name, samples, seed=data.seed, image_size=data.image_size)

    return Splits(
        train=split("train", data.train_samples),
        validation=split("validation", data.validation_samples),
        test=split("test", data.test_samples),
        metric=dataset.metric,
    )


def starting_checkpoint(recipe: Recipe) -> Checkpoint | None:
    """Open the checkpoint a recipe starts from; None if it trains from scratch."""
    return open_checkpoint(recipe.model.checkpoint) if recipe.model.checkpoint else None


def check_fits(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Refuse data that a checkpoint's model cannot read; raises SourceError."""
    config, data = checkpoint.config, recipe.data
    words, size = len(DATASETS[data.name].vocabulary), config.vision_config.image_size
    if config.text_config.vocab_size < words or size != data.image_size:
        raise SourceError(
            f"{checkpoint.folder}: its model reads {config.text_config.vocab_size} words and images of {size} pixels, "
            f"but {data.name} has {words} words and {data.image_size} pixels: it was made for other data, try another "
            "checkpoint or --recipe"
        )


def fresh_model(recipe: Recipe) -> BlipForNlvr:
    """Build the recipe's architecture with random weights, from its seed."""
    assert recipe.model.architecture is not None
    torch.manual_seed(recipe.training.seed)
    config = small_config(
        image_size=recipe.data.image_size,
        vocab_size=len(DATASETS[recipe.data.name].vocabulary),
        **recipe.model.architecture.model_dump(),
    )
    model = BlipForNlvr(config)
    initialise(model)
    return model


def fresh_processor(recipe: Recipe) -> PairProcessor:
    """Make the processor of a model that is trained from scratch on the recipe's data."""
    return PairProcessor.from_words(DATASETS[recipe.data.name].vocabulary, recipe.data.image_size)


def load(
    path: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None
) -> tuple[BlipForNlvr, PairProcessor]:
    """Open a checkpoint folder or `builtin:NAME` as a ready model, in eval mode, and its processor."""
    checkpoint = open_checkpoint(str(path))
    model = checkpoint.build().to(choose_device(device), dtype)
    return model.eval(), PairProcessor.from_folder(checkpoint.folder)


def pruning_spec(recipe: Recipe, towers: Mapping[str, tuple[int, int]]) -> PruningSpec:
    """Describe the recipe's pruning for towers {name: (layers, width)}.

    Raises RecipeError for layers the model does not have, or widths that do not fit.
    """
    pruning, alignment = recipe.pruning, recipe.alignment
    if pruning.method == "none":
        return PruningSpec()
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


def auxiliary_heads(recipe: Recipe, model: BlipForNlvr) -> AuxiliaryHeads | None:
    """Build the training-only heads, if the recipe wants any.

    Raises RecipeError for patch labels on a model that prunes, or whose patches are not those of the labels.
    """
    weights = recipe.training.auxiliary.model_dump()
    if not any(weights.values()):
        return None
    config = model.config
    patch, labelled = config.vision_config.patch_size, DATASETS[recipe.data.name].labelled_patch
    if weights["patches"] and (model.plan is not None or patch != labelled):
        fault = (
            f"{recipe.data.name} labels patches of {labelled} pixels, and the model's have {patch}"
            if patch != labelled
            else "patches that were pruned have no state to label, and this recipe prunes"
        )
        where = recipe.where("training.auxiliary.patches")
        raise RecipeError(f"{where}: training.auxiliary.patches cannot be used: {fault}; set it to 0")
    return AuxiliaryHeads(config.vision_config.hidden_size, config.text_config.hidden_size, weights)


def fit_settings(recipe: Recipe, device: torch.device) -> FitSettings:
    """Turn the recipe's training section into plain numbers."""
    training = recipe.training
    samples = recipe.data.train_samples
    if training.batch_size > samples:
        raise RecipeError(
            f"{recipe.where('training.batch_size')}: training.batch_size {training.batch_size} is more than the "
            f"{samples} training samples; lower it or raise data.train_samples"
        )
    precision = choose_precision(training.precision, device)
    if precision == "fp16" and device.type == "cpu":
        raise RecipeError(
            f"{recipe.where('training.precision')}: training.precision fp16 needs a GPU, got cpu; try bf16 or fp32"
        )
    steps = training.steps
    if steps is None:
        steps = max(1, round((training.epochs or 0) * (samples // training.batch_size)))
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
        save_every=training.save_every or max(1, steps // 5),
        log_every=training.log_every,
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
