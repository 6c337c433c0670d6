"""What every task's model is: an image encoder and something that reads it, over packed tokens, pruned by one plan.

Shapes: I images, S samples (texts), T packed tokens, N tokens of one image, K alignment tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from madtp_cli.alignment import Alignment
from madtp_cli.costs import analytic
from madtp_cli.models.tower import LayerTrace, PruningPlan, TowerOutput, run_tower
from madtp_cli.tokens import Tokens, gather

ImageIndex = Sequence[int] | Sequence[Sequence[int]]  # the image of every text, or its images


@dataclass(frozen=True)
class Probe:
    """The attention that Q queries pay to one image each: probability [Q, H, N] (class token first), image row [Q]."""

    probability: Tensor
    image: Tensor


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a forward pass gives for S texts over I images, whatever the task.

    logits [R, n]: R distributions that a pruned model is compared with its dense self on; encoded [S, C] the states
    that logits come from; images the vision tower's tokens after its last norm; vision and text the traces of the
    towers; text_lengths [S] as given; image_index the image(s) of every text; aligned (images, text), each [S, K, d],
    where asked for; probes the attention from text to image, where asked for.
    """

    logits: Tensor
    encoded: Tensor
    images: Tokens
    vision: tuple[LayerTrace, ...]
    text: tuple[LayerTrace, ...] = ()
    text_lengths: Sequence[int]
    image_index: ImageIndex
    aligned: tuple[Tensor, Tensor] | None = None
    probes: tuple[Probe, ...] = ()


class PrunedModel(nn.Module):
    """Hold what all models share: how they prune (`plan`, `strength`; zero is the dense model) and what they cost.

    A subclass builds `vision_model` (embeddings, encoder.layers, post_layernorm), runs its own text side, and counts it
    in `_text_macs`.
    """

    family: ClassVar[str] = "blip"
    task: ClassVar[str]
    prunable: ClassVar[tuple[str, ...]] = ("vision", "text")
    """Towers that may prune; the others only take part in the alignment."""
    images_per_text: ClassVar[int] = 1
    vision_model: Any

    def __init__(
        self, config: Any, *, alignment: Alignment | None = None, plan: PruningPlan | None = None, strength: float = 0.0
    ) -> None:
        super().__init__()
        self.config = config
        self.plan = plan
        self.strength = strength
        self.alignment = alignment

    @property
    def image_tokens(self) -> int:
        """Tokens of one image before any pruning, class token included."""
        vision = self.config.vision_config
        return int((vision.image_size // vision.patch_size) ** 2 + 1)

    def encode_images(self, images: Tensor, *, learn: bool = False) -> tuple[Tokens, TowerOutput]:
        """Encode normalised images [I, 3, H, W]: the tokens after the last norm, and what the tower did."""
        vision = self.run_tower(
            "vision", self.vision_model.encoder.layers, self.vision_model.embeddings(images), None, learn=learn
        )
        return vision.tokens.with_x(self.vision_model.post_layernorm(vision.tokens.x)), vision

    def run_tower(
        self,
        tower: str,
        blocks: Any,
        tokens: Tokens,
        context: Any,
        *,
        learn: bool = False,
        prunes: bool = True,
        whole: bool = False,
    ) -> TowerOutput:
        """Run one tower as this model prunes."""
        return run_tower(
            tower,
            blocks,
            tokens,
            context,
            plan=self.plan if prunes else None,
            strength=self.strength,
            alignment=self.alignment,
            learn=learn,
            whole=whole,
        )

    def macs(self, output: Output) -> analytic.Macs:
        """Return the exact inference MACs of every sample with its own images, by module path: int64 [S] each."""
        return self.macs_of_counts(
            self._counts(output.vision),
            self._counts(output.text),
            output.images.spans.lengths,
            output.image_index,
            output.text_lengths,
        )

    def dense_macs(self, text_lengths: Sequence[int]) -> analytic.Macs:
        """Return what the unpruned model costs for texts of these lengths, by module path: int64 [S] each."""
        config = self.config
        image = analytic.layer_counts([self.image_tokens], [self.image_tokens])
        words = analytic.layer_counts(text_lengths, text_lengths)
        return self.macs_of_counts(
            [image] * config.vision_config.num_hidden_layers,
            [words] * config.text_config.num_hidden_layers,
            [self.image_tokens],
            [[0] * self.images_per_text] * len(text_lengths),
            text_lengths,
        )

    def dense_gmacs(self, text_lengths: Sequence[int]) -> float:
        """Return the unpruned model's mean cost for texts of these lengths, in 1e9 multiply-adds."""
        return analytic.total(self.dense_macs(text_lengths)).double().mean().item() / 1e9

    def macs_of_counts(
        self,
        vision: Sequence[analytic.LayerCounts],
        text: Sequence[analytic.LayerCounts],
        image_tokens: Sequence[int],
        image_index: ImageIndex,
        text_lengths: Sequence[int],
    ) -> analytic.Macs:
        """Count S samples by the tokens that entered and left every layer: of I images, then of the texts.

        image_tokens are those that left an image's last layer; int64 [S] each, by module path.
        """
        index = torch.tensor(image_index).view(len(text_lengths), -1)  # [S, images per text]
        macs = {path: cost[index].sum(1) for path, cost in self._image_macs(vision, image_tokens).items()}
        return macs | self._text_macs(text, torch.tensor(image_tokens)[index], torch.tensor(text_lengths))

    def _image_macs(self, counts: Sequence[analytic.LayerCounts], image_tokens: Sequence[int]) -> analytic.Macs:
        """Count encoding each of I images: int64 [I] each."""
        vision = self.config.vision_config
        embedding = analytic.patch_embedding(
            self.image_tokens - 1, vision.patch_size, vision.hidden_size, len(image_tokens)
        )
        shape = analytic.TowerShape("vision_model.encoder.layers", vision.hidden_size, vision.intermediate_size)
        layers = analytic.vision_layers(shape, counts, self._alignment_tokens)
        return {"vision_model.embeddings": embedding} | layers

    def _text_macs(
        self, counts: Sequence[analytic.LayerCounts], image_tokens: Tensor, text_lengths: Tensor
    ) -> analytic.Macs:
        """Count reading texts: `counts` of the text tower, image_tokens [S, images per text], text_lengths [S]."""
        raise NotImplementedError

    @property
    def _alignment_tokens(self) -> int:
        return len(self.alignment.tokens) if self.alignment is not None else 0

    def _counts(self, trace: Sequence[LayerTrace]) -> list[analytic.LayerCounts]:
        guided = self.plan is not None and "guidance" in self.plan.pruner.needs
        return [
            analytic.layer_counts(t.spans.lengths, t.leaving, prunes=t.prunes, guided=t.prunes and guided)
            for t in trace
        ]


def prunes(model: PrunedModel) -> bool:
    """Tell whether a model drops any tokens as it is set."""
    return model.plan is not None and model.strength > 0


def passed(
    images: Tokens, vision: TowerOutput, text: TowerOutput, text_lengths: Sequence[int], image_index: ImageIndex
) -> dict[str, Any]:
    """Return the fields of an Output that are the same for every task, from what both towers did.

    Each text's aligned features are paired with the mean of its images'.
    """
    aligned = None
    if vision.aligned is not None and text.aligned is not None:
        index = torch.tensor(image_index, device=vision.aligned.device).view(len(text.aligned), -1)
        aligned = gather(vision.aligned, index).mean(1), text.aligned
    return {
        "images": images,
        "vision": vision.trace,
        "text": text.trace,
        "text_lengths": text_lengths,
        "image_index": image_index,
        "aligned": aligned,
    }


def initialise(model: nn.Module) -> None:
    """Give a model that trains from scratch its random weights: maps scaled by fan-in, small embeddings."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.8 * module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)


def towers_of(config: Any) -> Mapping[str, tuple[int, int]]:
    """Name every tower with its number of layers and width."""
    return {
        name: (tower.num_hidden_layers, tower.hidden_size)
        for name, tower in (("vision", config.vision_config), ("text", config.text_config))
    }
