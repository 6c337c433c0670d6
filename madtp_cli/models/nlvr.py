"""BLIP for NLVR2: is a sentence true of a pair of images?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.models.blip.configuration_blip import BlipConfig

from madtp_cli.alignment import Alignment
from madtp_cli.costs import analytic
from madtp_cli.models.blip import Side, TextContext, TwinTextModel, VisionModel
from madtp_cli.models.tower import LayerTrace, PruningPlan, run_tower
from madtp_cli.tokens import Spans, Tokens

MERGE_FROM = 6  # BLIP's text encoder joins the two images by a merge layer from this layer on


@dataclass(frozen=True)
class NlvrOutput:
    """What a forward pass gives for S sentences over I images.

    logits [S, 2] (false, true); encoded [S, C] the [ENC] states; images the vision tower's tokens; vision and text the
    traces of the towers; aligned (images [I, K, d], text [S, K, d]) where asked for; enc_attention per text layer the
    [ENC] token's attention to the left and the right image, each [S, H, N], where asked for.
    """

    logits: Tensor
    encoded: Tensor
    images: Tokens
    vision: tuple[LayerTrace, ...]
    text: tuple[LayerTrace, ...]
    aligned: tuple[Tensor, Tensor] | None
    enc_attention: tuple[tuple[Tensor, Tensor], ...]


class BlipForNlvr(nn.Module):
    """The image encoder, the twin text encoder and a two-way head, over packed tokens.

    `plan` and `strength` say how it prunes; a strength of zero is the dense model.
    """

    def __init__(
        self,
        config: BlipConfig,
        *,
        alignment: Alignment | None = None,
        plan: PruningPlan | None = None,
        strength: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.plan = plan
        self.strength = strength
        self.vision_model = VisionModel(config.vision_config)
        self.text_encoder = TwinTextModel(config.text_config, getattr(config.text_config, "merge_from", MERGE_FROM))
        width = config.text_config.hidden_size
        self.cls_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
        self.alignment = alignment

    def forward(
        self,
        images: Tensor,
        text: Tensor,
        text_lengths: Sequence[int],
        image_index: Sequence[tuple[int, int]],
        *,
        learn: bool = False,
        probe: bool = False,
    ) -> NlvrOutput:
        """Judge sentences over normalised images [I, 3, H, W].

        text [T] holds the sentences' ids end to end, each opening with [ENC]; image_index names every sentence's left
        and right image. `learn` computes what the alignment losses need, `probe` the attention of [ENC].
        """
        tokens = self.vision_model.embeddings(images)
        vision = run_tower(
            "vision",
            self.vision_model.encoder.layers,  # type: ignore[arg-type]  # a ModuleList of VisionBlock
            tokens,
            None,
            plan=self.plan,
            strength=self.strength,
            alignment=self.alignment,
            learn=learn,
        )
        seen = vision.tokens.with_x(self.vision_model.post_layernorm(vision.tokens.x))
        left, right = (Side.of(seen, [pair[side] for pair in image_index]) for side in (0, 1))
        context = TextContext((left, right), [] if probe else None)
        words = run_tower(
            "text",
            self.text_encoder.encoder.layer,  # type: ignore[arg-type]  # a ModuleList of TwinTextBlock
            self.text_encoder.embeddings(text, Spans.of(text_lengths), seen.x.dtype),
            context,
            plan=self.plan,
            strength=self.strength,
            alignment=self.alignment,
            learn=learn,
        )
        encoded = words.tokens.first()
        aligned = None
        if vision.aligned is not None and words.aligned is not None:
            aligned = (vision.aligned, words.aligned)
        return NlvrOutput(
            logits=self.cls_head(encoded).float(),
            encoded=encoded,
            images=seen,
            vision=vision.trace,
            text=words.trace,
            aligned=aligned,
            enc_attention=tuple(context.probe or ()),
        )

    def macs(self, output: NlvrOutput, image_index: Sequence[tuple[int, int]]) -> analytic.Macs:
        """Return the exact inference MACs of every sentence with its own two images, by module path: int64 [S] each."""
        return self._macs(
            self._counts(output.vision), self._counts(output.text), output.images.spans.lengths, image_index
        )

    def dense_macs(self, text_lengths: Sequence[int]) -> analytic.Macs:
        """Return what the unpruned model costs for sentences of these lengths, by module path: int64 [S] each."""
        vision, text = self.config.vision_config, self.config.text_config
        image = (vision.image_size // vision.patch_size) ** 2 + 1
        one = analytic.layer_counts([image], [image])
        words = analytic.layer_counts(text_lengths, text_lengths)
        return self._macs(
            [one] * vision.num_hidden_layers, [words] * text.num_hidden_layers, [image], [(0, 0)] * len(text_lengths)
        )

    def dense_gmacs(self, text_lengths: Sequence[int]) -> float:
        """Return the unpruned model's mean cost for sentences of these lengths, in 1e9 multiply-adds."""
        return analytic.total(self.dense_macs(text_lengths)).double().mean().item() / 1e9

    def _macs(
        self,
        vision_counts: Sequence[analytic.LayerCounts],
        text_counts: Sequence[analytic.LayerCounts],
        image_tokens: Sequence[int],
        image_index: Sequence[tuple[int, int]],
    ) -> analytic.Macs:
        vision, text = self.config.vision_config, self.config.text_config
        alignment_tokens = len(self.alignment.tokens) if self.alignment is not None else 0
        patches = (vision.image_size // vision.patch_size) ** 2
        per_image = {
            "vision_model.embeddings": analytic.patch_embedding(
                patches, vision.patch_size, vision.hidden_size, len(image_tokens)
            )
        }
        shape = analytic.TowerShape("vision_model.encoder.layers", vision.hidden_size, vision.intermediate_size)
        per_image |= analytic.vision_layers(shape, vision_counts, alignment_tokens)
        left, right = torch.tensor(image_index).unbind(1)
        macs = {path: cost[left] + cost[right] for path, cost in per_image.items()}
        seen = torch.tensor(image_tokens)
        macs |= analytic.twin_text_layers(
            analytic.TowerShape("text_encoder.encoder.layer", text.hidden_size, text.intermediate_size),
            text_counts,
            (seen[left], seen[right]),
            image_width=text.encoder_hidden_size,
            merge_from=getattr(text, "merge_from", MERGE_FROM),
            alignment_tokens=alignment_tokens,
        )
        macs["cls_head"] = torch.full((len(image_index),), text.hidden_size**2 + 2 * text.hidden_size)
        return macs

    def _counts(self, trace: Sequence[LayerTrace]) -> list[analytic.LayerCounts]:
        uses_guidance = self.plan is not None and "guidance" in self.plan.pruner.needs
        return [
            analytic.layer_counts(t.spans.lengths, t.leaving, prunes=t.prunes, guided=t.prunes and uses_guidance)
            for t in trace
        ]


def initialise(model: nn.Module) -> None:
    """Give a model that trains from scratch its random weights: maps scaled by fan-in, small embeddings."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.8 * module.in_features**-0.5)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)


def small_config(
    *,
    image_size: int,
    vocab_size: int,
    vision_layers: int = 12,
    vision_width: int = 96,
    vision_heads: int = 3,
    patch_size: int = 8,
    text_layers: int = 3,
    text_width: int = 96,
    text_heads: int = 3,
    mlp_ratio: int = 4,
    merge_from: int = MERGE_FROM,
) -> BlipConfig:
    """Describe a BLIP-NLVR of any size from plain numbers."""
    return BlipConfig(
        vision_config={
            "hidden_size": vision_width,
            "intermediate_size": mlp_ratio * vision_width,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": vision_heads,
            "image_size": image_size,
            "patch_size": patch_size,
            "layer_norm_eps": 1e-6,
        },
        text_config={
            "hidden_size": text_width,
            "encoder_hidden_size": vision_width,
            "intermediate_size": mlp_ratio * text_width,
            "num_hidden_layers": text_layers,
            "num_attention_heads": text_heads,
            "vocab_size": vocab_size,
            "max_position_embeddings": 64,
            "bos_token_id": None,
            "sep_token_id": None,
            "layer_norm_eps": 1e-12,
            "merge_from": merge_from,
        },
    )
