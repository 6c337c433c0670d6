"""The sections of a recipe, as strict frozen models: what may be set, and what each setting means."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, create_model, model_validator

from madtp_cli.families import FAMILIES, site_names
from madtp_cli.recipe_types import (
    BelowOne,
    Count,
    FamilyName,
    Layers,
    NotNegative,
    Positive,
    Section,
    Share,
    Text,
    Whole,
    refuse,
)
from madtp_cli.recipe_yaml import KeyPath


def _one_of(section: str, one: str, other: str, values: tuple[Any, Any]) -> list[tuple[KeyPath, str]]:
    if (values[0] is None) == (values[1] is None):
        got = "neither" if values[0] is None else "both"
        place: KeyPath = () if values[0] is None else (other,)
        return [(place, f"{section} needs exactly one of {one} and {other}, got {got}")]
    return []


class ArchitectureSection(Section):
    """The shape of a model that is trained from scratch."""

    vision_layers: Count = Field(12, description="transformer layers over the image patches")
    vision_width: Count = Field(96, description="width of the vision tower")
    vision_heads: Count = Field(3, description="attention heads of the vision tower")
    patch_size: Count = Field(8, description="side of a patch in pixels")
    text_layers: Count = Field(3, description="transformer layers over the words, each reading both images")
    text_width: Count = Field(96, description="width of the text tower")
    text_heads: Count = Field(3, description="attention heads of the text tower")
    mlp_ratio: Count = Field(4, description="width of an MLP over the width of its tower")
    merge_from: Whole = Field(6, description="first text layer (from 0) that merges the two images by a linear map")
    projection: Count = Field(64, description="width of the space in which retrieval compares images and texts")

    @model_validator(mode="after")
    def _check(self) -> ArchitectureSection:
        faults: list[tuple[KeyPath, str]] = []
        for tower, width, heads in (
            ("vision", self.vision_width, self.vision_heads),
            ("text", self.text_width, self.text_heads),
        ):
            if width % heads:
                text = f"model.architecture.{tower}_width {width} is not a multiple of {tower}_heads {heads}"
                faults.append(((f"{tower}_width",), text))
        refuse(faults)
        return self


class ConfigSection(Section):
    """What the shapes of a checkpoint's tensors cannot tell; null takes what its configuration says, or the default."""

    vision_heads: Count | None = Field(None, description="attention heads of the vision tower; width / 64 by default")
    text_heads: Count | None = Field(None, description="attention heads of the text tower; width / 64 by default")
    activation: Literal["gelu", "quick_gelu"] | None = Field(None, description="activation of the MLPs")
    merge_from: Whole | None = Field(None, description="first text layer that merges two images")
    pad_token_id: Whole | None = Field(None, description="id of padding")
    cls_token_id: Whole | None = Field(None, description="id of [CLS]")
    sep_token_id: Whole | None = Field(None, description="id of [SEP]")
    dec_token_id: Whole | None = Field(None, description="id of [DEC], which opens what a decoder writes")
    enc_token_id: Whole | None = Field(None, description="id of [ENC], which opens a text that reads an image")
    eos_token_id: Whole | None = Field(None, description="id of CLIP's end of text")
    vision_layer_norm_eps: Positive | None = Field(None, description="epsilon of the vision tower's norms")
    text_layer_norm_eps: Positive | None = Field(None, description="epsilon of the text tower's norms")
    pruning_temperature: NotNegative | None = Field(
        None, description="temperature of a checkpoint of the released code, which does not store it"
    )

    def given(self) -> dict[str, Any]:
        """Return what is set."""
        return self.model_dump(exclude_none=True)


class ModelSection(Section):
    """Which model is trained or pruned."""

    family: FamilyName = Field(description=f"family of the model, {' or '.join(FAMILIES)}")
    checkpoint: Text | None = Field(
        None,
        description="a local folder or file, a hub id, an https address or builtin:NAME; null trains from scratch",
    )
    architecture: ArchitectureSection | None = Field(None, description="shape of a model from scratch")
    config: ConfigSection = Field(ConfigSection(), description="what a checkpoint's tensors cannot tell")
    tokenizer: Text | None = Field(
        None, description="folder or hub id of a tokenizer; null takes the checkpoint's own, or the published one"
    )
    vision_from: Text | None = Field(
        None, description="a checkpoint whose vision tower a model from scratch starts with"
    )

    @model_validator(mode="after")
    def _check(self) -> ModelSection:
        faults: list[tuple[KeyPath, str]] = []
        if self.checkpoint is None and self.architecture is None:
            text = "model.checkpoint is missing; name a checkpoint, or give model.architecture to train from scratch"
            faults.append(((), text))
        if self.checkpoint is not None and self.architecture is not None:
            text = "model.architecture is for training from scratch, the checkpoint brings its own; remove one"
            faults.append((("architecture",), text))
        if self.checkpoint is not None and self.vision_from is not None:
            text = "model.vision_from is for training from scratch, the checkpoint brings its own; remove one"
            faults.append((("vision_from",), text))
        refuse(faults)
        return self


Files = Text | Annotated[tuple[Text, ...], Field(strict=False, min_length=1)]


class SplitFiles(Section):
    """A file for each split, or several that are read as one."""

    train: Files = Field(description="file of the training split")
    validation: Files | None = Field(
        None, description="file of the validation split, which chooses weights; null holds data.validation_share out"
    )
    test: Files = Field(description="file of the test split, read once")


class SplitSizes(Section):
    """How many samples each split has."""

    train: Count | None = Field(None, description="samples of the training split")
    validation: Count | None = Field(None, description="samples of the validation split")
    test: Count | None = Field(None, description="samples of the test split")


class SplitNames(Section):
    """What a data set of one's own calls its splits."""

    train: Text = Field("train", description="name of the training split")
    validation: Text | None = Field(
        "validation", description="name of the validation split; null holds data.validation_share of the images out"
    )
    test: Text = Field("test", description="name of the test split")


class DataSection(Section):
    """Which data are read; docs/data.md has the files of every data set."""

    name: Literal["shapes", "nlvr2", "nlvr_v1", "vqav2", "coco", "flickr30k", "custom"] = Field(
        description="data set; shapes is generated, custom has columns of your own"
    )
    image_size: Count | None = Field(
        None, description="side of an image in pixels; null takes what the model was made for"
    )
    seed: Whole = Field(0, description="seed of generated data, and of the order of the others")
    train_samples: Count = Field(200_000, description="generated data: samples in the training split")
    validation_samples: Count = Field(2_000, description="generated data: samples in the validation split")
    test_samples: Count = Field(4_000, description="generated data: samples in the test split")
    images: Text | None = Field(None, description="folder that the names of images start from")
    annotations: Text | SplitFiles | None = Field(None, description="annotations: one file, or one for each split")
    questions: SplitFiles | None = Field(None, description="vqav2: questions of each split")
    source: Text | None = Field(None, description="custom: hub id, folder or file")
    config: Text | None = Field(None, description="custom: configuration of a hub data set that has several")
    columns: dict[str, str] | None = Field(
        None, description="custom: which column holds what; by default those of the same name"
    )
    validation_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.02, description="share of the training images held out where no validation file is named"
    )
    splits: SplitNames = Field(SplitNames(), description="custom: names of the splits")
    streaming: bool = Field(False, description="custom: read over the network while training")
    stream_samples: SplitSizes | None = Field(
        None, description="custom: samples of the splits, where a stream does not say"
    )
    genome_images: Text | None = Field(None, description="vqav2: folder of Visual Genome's images, for BLIP's lists")
    max_broken: Whole = Field(0, description="images that may be missing or unreadable; they are left out and named")

    @model_validator(mode="after")
    def _check(self) -> DataSection:
        needed = {
            "shapes": (),
            "vqav2": ("questions", "images"),
            "custom": ("source",),
        }.get(self.name, ("annotations", "images"))
        missing = [key for key in needed if not getattr(self, key)]
        faults: list[tuple[KeyPath, str]] = [
            ((), f"data.{key} is missing; {self.name} needs it: docs/data.md") for key in missing
        ]
        if isinstance(self.annotations, str) and self.name in ("nlvr2", "nlvr_v1"):
            text = (
                f"data.annotations must name a file for each split (train, validation, test), got one for {self.name}"
            )
            faults.append((("annotations",), text))
        refuse(faults)
        return self


class InferenceSection(Section):
    """How answers are found where a model writes or ranks; the values are the published ones."""

    k_test: Count = Field(128, description="candidates that are compared in full: answers, or partners in retrieval")
    answers: Literal["rank", "generate"] = Field("rank", description="vqa: rank a list of answers, or write freely")
    answer_list: Text | None = Field(
        None, description="vqa: JSON list of answers to rank; null takes those of the training split"
    )
    beams: Count = Field(3, description="beams of what is written")
    min_length: Count | None = Field(None, description="fewest tokens written; null: 5 for captions, 1 for answers")
    max_length: Count | None = Field(None, description="most tokens written; null: 20 for captions, 10 for answers")
    prompt: str = Field("a picture of", description="how captions open; not learned, not part of the answer")


class BudgetSection(Section):
    """What the pruned model may cost; exactly one of reduction and gmacs."""

    reduction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="share of the dense model's multiply-adds that is saved"
    )
    gmacs: Positive | None = Field(None, description="1e9 multiply-adds of one sample")
    calibration_samples: Count | None = Field(
        None, description="validation samples that the strength is calibrated on, several times; null takes all"
    )
    tolerance: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.01, description="how far the reached reduction may be from the target"
    )

    @model_validator(mode="after")
    def _check(self) -> BudgetSection:
        refuse(_one_of("budget", "reduction", "gmacs", (self.reduction, self.gmacs)))
        return self


_EXAMPLES = {"text": "[1, 2] or 0-2"}  # most text towers are small


class _LayersSection(Section):
    def of(self, site: str) -> Any:
        """Return which layers of a site prune, as the recipe says it."""
        return getattr(self, site)


_LAYERS: dict[str, Any] = {
    site: (
        Layers,
        Field("all", description=f"{site} layers that prune: all, none, {_EXAMPLES.get(site, '[4, 7, 10] or 3-11')}"),
    )
    for site in site_names()
}
LayersSection: Any = create_model(
    "LayersSection",
    __base__=_LayersSection,
    __doc__="Which layers (from 0) of each tower prune.",
    __module__=__name__,
    **_LAYERS,
)


class PruningSection(Section):
    """How tokens are chosen."""

    method: Literal["madtp", "random", "none"] = Field("madtp", description="how tokens are scored")
    variant: Literal["normalised", "paper", "released"] = Field(
        "normalised", description="scores of madtp on one scale; as published; as published with the batch maximum"
    )
    tokens: Literal["adaptive", "scheduled"] = Field(
        "adaptive", description="a threshold per sample, or one share per layer for every sample"
    )
    temperature: NotNegative = Field(1.0, description="sharpness of the threshold's weights; 0 prunes nothing")
    strength: BelowOne | None = Field(
        None, description="how much is pruned, 0 nothing; null lets the budget's controller find it"
    )
    layers: LayersSection = Field(LayersSection(), description="which layers prune")


class AlignmentSection(Section):
    """The alignment module that guides the pruning."""

    tokens: Count = Field(100, description="learnable alignment tokens")
    dim: Count = Field(768, description="width of the alignment space")
    weight: NotNegative = Field(0.1, description="weight of the alignment loss")
    projection: Literal["shared", "per_layer", "none"] = Field(
        "shared", description="maps into the alignment space: one per tower, one per layer, none"
    )
    learning_rate: Positive | None = Field(None, description="its own learning rate; null uses training's")


class DistillationSection(Section):
    """What is learned from the dense model; weights of losses."""

    logits: NotNegative = Field(1.0, description="weight of the KL to the dense model's answers")
    temperature: Positive = Field(2.0, description="softening of both answers")
    guidance: NotNegative = Field(1.0, description="weight of the KL from the dense text-to-image attention")
    features: NotNegative = Field(0.0, description="weight of the distance to the dense model's features")
    cache: bool = Field(
        False, description="ask the dense model once about each sample, and keep what it says on disk while training"
    )


class AuxiliarySection(Section):
    """Weights of losses on labels that only generated data have; they leave nothing in the model."""

    text_counts: NotNegative = Field(0.0, description="count of the sentence's first noun phrase, from the text state")
    patches: NotNegative = Field(0.0, description="shape and colour of every patch")
    image_counts: NotNegative = Field(0.0, description="counts per shape and colour, from the class token")


class TrainingSection(Section):
    """How the model is trained; exactly one of epochs and steps."""

    epochs: Positive | None = Field(None, description="passes over the training split")
    steps: Whole | None = Field(None, description="optimiser steps; 0 only calibrates the strength")
    batch_size: Count = Field(16, description="sentences per step")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="adamw; or muon for the blocks' matrices beside adamw for the rest, to train from scratch"
    )
    learning_rate: Positive = Field(3e-6, description="peak learning rate")
    matrix_learning_rate: Positive | None = Field(None, description="peak of muon's part; null uses learning_rate")
    weight_decay: NotNegative = Field(0.05, description="AdamW weight decay")
    betas: Annotated[tuple[BelowOne, BelowOne], Field(strict=False)] = Field((0.9, 0.98), description="AdamW betas")
    warmup_steps: Whole = Field(0, description="steps in which the learning rate rises from 0")
    decay_from: Share = Field(0.0, description="share of training after which the cosine decay starts")
    clip_norm: Positive = Field(1.0, description="largest norm of the gradient")
    ramp: Share = Field(0.3, description="share of training in which the budget rises from 0 to its value")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="precision of the computation")
    save_precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="precision of the weights on disk; below fp32 they are rounded before they are measured"
    )
    seed: Whole = Field(42, description="seed of weights, order and everything else random")
    validate_every: Count | None = Field(None, description="steps between validations; null chooses")
    validation_samples: Count | None = Field(
        None, description="samples of the validation split that choose weights during training; null takes all"
    )
    save_every: Count | None = Field(None, description="steps between saved states; null chooses")
    log_every: Count = Field(20, description="steps between lines of the log")
    label_smoothing: BelowOne = Field(0.0, description="smoothing of the words that a decoder learns")
    auxiliary: AuxiliarySection = Field(AuxiliarySection(), description="training-only losses")
    teacher: bool = Field(True, description="distil from the dense checkpoint")

    @model_validator(mode="after")
    def _check(self) -> TrainingSection:
        refuse(_one_of("training", "epochs", "steps", (self.epochs, self.steps)))
        return self
