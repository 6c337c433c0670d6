"""CLIP for retrieval as two graphs, `image` and `text`, which know nothing of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from madtp_cli.data.batch import Batch
from madtp_cli.export.encoders import ImageEncoder, TextEncoder, cut_patches, embed_words, place_patches
from madtp_cli.export.graphs import (
    Call,
    Graph,
    TaskExport,
    example_images,
    example_text,
    pad_text,
    recall,
    text_axes,
    traced,
)
from madtp_cli.export.padded import Cut, PaddedBatch, split_heads
from madtp_cli.export.schedule import Form, cuts
from madtp_cli.export.towers import Attended, BlockForm, Tower, self_attend
from madtp_cli.models.clip.model import ClipForRetrieval
from madtp_cli.models.image_text import TEXT, VISION

IMAGE_OUTPUTS = ("image_embeds", "vision_kept", "vision_positions")
TEXT_OUTPUTS = ("text_embeds", "text_kept", "text_positions")


def _embed_images(embeddings: Any, images: Tensor) -> PaddedBatch:
    patches = cut_patches(embeddings.patch_embedding, images)
    return place_patches(patches, embeddings.class_embedding.view(1, 1, -1), embeddings.position_embedding.weight)


def _embed_text(embeddings: Any, ids: Tensor, lengths: Tensor) -> PaddedBatch:
    x = embed_words(embeddings.token_embedding, embeddings.position_embedding, ids)
    return PaddedBatch.of_lengths(x, lengths, ends=True, causal=True)


def _attend(block: Any, tokens: PaddedBatch, statistics: bool) -> Attended:
    attention, x = block.self_attn, block.layer_norm1(tokens.flat)
    maps = (attention.q_proj, attention.k_proj, attention.v_proj)
    out, found = self_attend((split_heads(each(x), attention.heads, tokens) for each in maps), tokens, statistics)
    return tokens.with_flat(tokens.flat + attention.out_proj(out)), found


def _finish(block: Any, tokens: PaddedBatch, sides: Sequence[PaddedBatch]) -> PaddedBatch:
    return tokens.with_flat(tokens.flat + block.mlp(block.layer_norm2(tokens.flat)))


BLOCK = BlockForm(_attend, _finish)


def _image_encoder(model: ClipForRetrieval, cut: Mapping[int, Cut]) -> ImageEncoder:
    vision: Any = model.vision_model
    tower = Tower(model, VISION, list(vision.encoder.layers), cut, BLOCK)
    return ImageEncoder(vision, tower, _embed_images, vision.pre_layrnorm)


def _text_encoder(model: ClipForRetrieval, cut: Mapping[int, Cut]) -> TextEncoder:
    text: Any = model.text_model
    tower = Tower(model, TEXT, list(text.encoder.layers), cut, BLOCK)
    return TextEncoder(text.embeddings, tower, _embed_text, text.final_layer_norm)


class ImageGraph(nn.Module):
    """Encode images as vectors of length one."""

    def __init__(self, model: ClipForRetrieval, form: Form) -> None:
        super().__init__()
        self.encoder = _image_encoder(model, cuts(model, form)["vision"])
        self.projection = model.visual_projection

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return vectors [B, d] for images [B, 3, H, W], and what was kept."""
        seen = self.encoder(images)
        embeds = normalize(self.projection(seen.tokens.x[:, 0]).float(), dim=-1)
        return embeds, seen.kept, seen.tokens.position


class TextGraph(nn.Module):
    """Encode texts as vectors of length one."""

    def __init__(self, model: ClipForRetrieval, form: Form) -> None:
        super().__init__()
        self.encoder = _text_encoder(model, cuts(model, form)["text"])
        self.projection = model.text_projection

    def forward(self, text: Tensor, text_lengths: Tensor) -> tuple[Tensor, ...]:
        """Return vectors [B, d] for texts [B, L], each ending with its EOT, and what was kept."""
        read = self.encoder(text, text_lengths)
        embeds = normalize(self.projection(_last(read.tokens)).float(), dim=-1)
        return embeds, read.kept, read.tokens.position


def _last(tokens: PaddedBatch) -> Tensor:
    """Return the last token of every sample, [B, C]."""
    index = (tokens.lengths - 1)[:, None, None].expand(-1, -1, tokens.x.shape[2])
    return tokens.x.gather(1, index).squeeze(1)


def graphs(model: ClipForRetrieval, form: Form) -> tuple[Graph, ...]:
    """Return two graphs: images -> IMAGE_OUTPUTS, and text, text_lengths -> TEXT_OUTPUTS."""
    texts, others = text_axes(model, form)
    images = {"images": example_images(model, form)}
    return (
        Graph("image", ImageGraph(model, form).eval(), images, IMAGE_OUTPUTS, {"images": others}),
        Graph(
            "text",
            TextGraph(model, form).eval(),
            example_text(model, form),
            TEXT_OUTPUTS,
            {"text": texts, "text_lengths": others},
        ),
    )


def run(call: Call, batch: Batch, form: Form) -> dict[str, Tensor]:
    """Embed a batch, whose images are normalised, through the graphs: texts, and the image of each."""
    seen = call("image", {"images": batch.images[batch.image_index]})
    return seen | call("text", pad_text(batch, form))


@torch.inference_mode()
def expect(model: ClipForRetrieval, batch: Batch) -> dict[str, Tensor]:
    """Embed a batch, whose images are normalised, with the packed model."""
    out: Any = model(batch.images, batch.text, batch.text_lengths, batch.image_index.tolist())
    embeds = {"image_embeds": out.image_embeds[batch.image_index], "text_embeds": out.text_embeds}
    return embeds | traced("vision", out.traces["vision"], batch.image_index) | traced("text", out.traces["text"])


EXPORTS: Mapping[str, TaskExport] = {"retrieval": TaskExport(graphs, run, expect, ("image recall@1", recall))}
