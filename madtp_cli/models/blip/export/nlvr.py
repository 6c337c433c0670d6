"""BLIP for NLVR2 as one graph, `model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from madtp_cli.data.batch import Batch, PairBatch
from madtp_cli.export.graphs import (
    Call,
    Graph,
    TaskExport,
    example_images,
    example_text,
    pad_text,
    text_axes,
    traced,
)
from madtp_cli.export.schedule import Form, cuts
from madtp_cli.models.blip.export.blocks import image_encoder, text_encoder
from madtp_cli.models.blip.nlvr import BlipForNlvr

OUTPUTS = ("logits", "vision_kept", "text_kept", "vision_positions", "text_positions")


class NlvrGraph(nn.Module):
    """Judge sentences over pairs of images."""

    def __init__(self, model: BlipForNlvr, form: Form) -> None:
        super().__init__()
        planned = cuts(model, form)
        self.image = image_encoder(model, planned["vision"])
        self.text = text_encoder(model, model.text_encoder, planned["text"])
        self.head = model.cls_head

    def forward(self, images: Tensor, text: Tensor, text_lengths: Tensor) -> tuple[Tensor, ...]:
        """Return logits [B, 2] for images [B, 2, 3, H, W] and texts [B, L], and what both towers kept."""
        seen = self.image(images.flatten(0, 1))
        read = self.text(text, text_lengths, seen.tokens.apart(2))
        pairs = (-1, 2)
        return (
            self.head(read.tokens.x[:, 0]).float(),
            seen.kept.unflatten(0, pairs),
            read.kept,
            seen.tokens.position.unflatten(0, pairs),
            read.tokens.position,
        )


def graphs(model: BlipForNlvr, form: Form) -> tuple[Graph, ...]:
    """Return the one graph: images, text, text_lengths -> OUTPUTS."""
    texts, others = text_axes(model, form)
    return (
        Graph(
            "model",
            NlvrGraph(model, form).eval(),
            {"images": example_images(model, form), **example_text(model, form)},
            OUTPUTS,
            {"images": others, "text": texts, "text_lengths": others},
        ),
    )


def run(call: Call, batch: Batch, form: Form) -> dict[str, Tensor]:
    """Judge a batch, whose images are normalised, through its graph."""
    return call("model", {"images": batch.images[batch.image_index], **pad_text(batch, form)})


@torch.inference_mode()
def expect(model: BlipForNlvr, batch: Batch) -> dict[str, Tensor]:
    """Judge a batch, whose images are normalised, with the packed model."""
    out = model(batch.images, batch.text, batch.text_lengths, batch.image_index.tolist())
    seen = traced("vision", out.traces["vision"], batch.image_index)
    return {"logits": out.logits, **seen, **traced("text", out.traces["text"])}


def accuracy(samples: Sequence[Batch], outputs: Mapping[str, Tensor]) -> float:
    """Return the share of sentences judged rightly."""
    labels = torch.cat([sample.labels for sample in samples if isinstance(sample, PairBatch)])
    return (outputs["logits"].argmax(-1) == labels).double().mean().item()


EXPORT = TaskExport(graphs, run, expect, ("accuracy", accuracy))
