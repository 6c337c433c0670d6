"""CLIP for retrieval as two graphs, `image` and `text`, which know nothing of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from madtp_cli.data.batch import Batch, RetrievalBatch
from madtp_cli.export.encoders import ImageEncoder, TextEncoder
from madtp_cli.export.graphs import Call, Graph, TaskExport, example_images, example_text, pad_text, text_axes, traced
from madtp_cli.export.padded import PaddedBatch
from madtp_cli.export.schedule import Form, cuts
from madtp_cli.models.clip.model import ClipForRetrieval

IMAGE_OUTPUTS = ("image_embeds", "vision_kept", "vision_positions")
TEXT_OUTPUTS = ("text_embeds", "text_kept", "text_positions")


class ImageGraph(nn.Module):
    """Encode images as vectors of length one."""

    def __init__(self, model: ClipForRetrieval, form: Form) -> None:
        super().__init__()
        self.encoder = ImageEncoder(model, cuts(model, form)["vision"])
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
        self.encoder = TextEncoder(model, model.text_model, cuts(model, form)["text"])
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
    return embeds | traced("vision", out.vision, batch.image_index) | traced("text", out.text)


def recall(samples: Sequence[Batch], outputs: Mapping[str, Tensor]) -> float:
    """Return the share of texts whose own image is the most similar of all, an image that comes twice counting once."""
    names = [name for sample in samples if isinstance(sample, RetrievalBatch) for name in sample.image_ids]
    best = (outputs["text_embeds"] @ outputs["image_embeds"].T).argmax(1).tolist()
    return sum(names[image] == name for image, name in zip(best, names, strict=True)) / len(names)


EXPORT = TaskExport(graphs, run, expect, ("image recall@1", recall))
