"""The models that are timed, at full size with random weights, and what they are given: speed depends on neither."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from benchmarks.speed import hugging_face, padded
from madtp_cli.errors import RecipeError, UsageError
from madtp_cli.models.base import PrunedModel
from madtp_cli.models.configs import default_config
from madtp_cli.models.family import family_of, model_class
from madtp_cli.models.spec import PruningSpec
from madtp_cli.recipe import resolve_layers
from madtp_cli.recipe_sections import LayersSection

Call = Callable[[], Any]

ALIGNMENT_TOKENS, ALIGNMENT_DIM = 100, 768  # as in the recipes
ALL_LAYERS = LayersSection()


@dataclass(frozen=True)
class Subject:
    """A model to time: how it is printed, its place among the models, and which of its layers prune."""

    title: str
    family: str
    task: str
    layers: LayersSection = ALL_LAYERS

    @property
    def words(self) -> int:
        """Tokens of every sentence: those of the published cost."""
        return family_of(self.family).calls[self.task].sample_tokens


SUBJECTS: Mapping[str, Subject] = {
    "blip-nlvr2": Subject("BLIP-B NLVR2 @384", "blip", "nlvr2"),
    "clip-l14": Subject("CLIP ViT-L/14 @336", "clip", "retrieval"),
}


@dataclass(frozen=True)
class Inputs:
    """Samples of one length: images [I, 3, H, W] and sentences [S, L], the images of each side by side."""

    images: Tensor
    ids: Tensor

    def packed(self) -> dict[str, Any]:
        """Return what our models take."""
        sentences, words = self.ids.shape
        each = len(self.images) // sentences
        return {
            "images": self.images,
            "text": self.ids.flatten(),
            "text_lengths": [words] * sentences,
            "image_index": [[each * row, each * row + 1] for row in range(sentences)]
            if each == 2
            else list(range(sentences)),
        }


def pruning(config: Any, family: str, task: str, layers: LayersSection) -> PruningSpec:
    """Prune in the given layers, by MADTP's scores, to shares that the strength alone decides.

    Raises UsageError for a layer that a tower does not have.
    """
    try:
        chosen = {
            site.name: resolve_layers(layers.of(site.name), site.layers, f"--{site.name}-layers")
            for site in model_class(family, task).sites_of(config)
        }
    except RecipeError as error:
        raise UsageError(str(error)) from None
    return PruningSpec(
        method="madtp",
        tokens="scheduled",
        layers=chosen,
        alignment_tokens=ALIGNMENT_TOKENS,
        alignment_dim=ALIGNMENT_DIM,
        projection="per_layer" if family == "clip" else "shared",
    )


def build(subject: Subject, config: Any = None) -> PrunedModel:
    """Build a subject, at full size unless a configuration says otherwise; dense, for its strength is 0."""
    config = default_config(subject.family, subject.task) if config is None else config
    spec = pruning(config, subject.family, subject.task, subject.layers)
    with init_empty_weights():  # drawing them as if to train takes longer than all that is measured
        model = spec.model(subject.family, subject.task, config)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    return model.eval()  # which folds the alignment anew


def draw(model: PrunedModel, samples: int, words: int) -> Inputs:
    """Draw images and sentences; a sentence of CLIP ends with its EOT, which is nowhere else."""
    generator = torch.Generator().manual_seed(samples)
    side, text = model.config.vision_config.image_size, model.config.text_config
    images = torch.randn(samples * model.images_per_text, 3, side, side, generator=generator)
    ids = torch.randint(text.vocab_size - 2, (samples, words), generator=generator)
    if model.family == "clip":
        ids[:, -1] = text.eos_token_id
    parameter = next(model.parameters())
    return Inputs(images.to(parameter.device, parameter.dtype), ids.to(parameter.device))


def references(model: PrunedModel, inputs: Inputs) -> dict[str, Call]:
    """Build transformers' models and the padded reference with the weights of ours, as calls that return logits."""
    twins: dict[str, Any] = {"HF eager": hugging_face.build(model, "eager")}
    if model.family == "clip":  # transformers' BLIP has no other attention
        twins["HF SDPA"] = hugging_face.build(model, "sdpa")
    twins["padded SDPA"] = padded.build(model)
    return {name: _call(twin, inputs) for name, twin in twins.items()}


def _call(twin: Any, inputs: Inputs) -> Call:
    return lambda: twin(inputs.images, inputs.ids)


@torch.inference_mode()
def check(model: PrunedModel, inputs: Inputs, tolerance: float = 1e-3) -> None:
    """Raise AssertionError unless all references give our logits, up to a share of the largest."""
    ours = model(**inputs.packed()).logits
    for name, call in references(model, inputs).items():
        off = ((call() - ours).abs().max() / ours.abs().max()).item()
        if not off <= tolerance:
            raise AssertionError(
                f"{name} gives other logits than ours: {off:.2g} of the largest off; nothing was timed"
            )
