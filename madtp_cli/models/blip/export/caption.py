"""BLIP for captions as two graphs: `model` sees an image, `decoder` writes about it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from madtp_cli.data.batch import Batch
from madtp_cli.export.graphs import Call, Graph, TaskExport, example_images, text_axes, traced
from madtp_cli.export.schedule import Form, cuts
from madtp_cli.models.blip.caption import BlipForCaption
from madtp_cli.models.blip.export.blocks import image_encoder
from madtp_cli.models.blip.export.decoder import decoder_graph, follow, openings, side_by_side

OUTPUTS = ("states", "states_lengths", "vision_kept", "vision_positions")


class CaptionGraph(nn.Module):
    """See images."""

    def __init__(self, model: BlipForCaption, form: Form) -> None:
        super().__init__()
        self.encoder = image_encoder(model, cuts(model, form)["vision"])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the states [B, m, C] of images [B, 3, H, W], and what was kept."""
        seen = self.encoder(images)
        return seen.tokens.x.float(), seen.tokens.lengths, seen.kept, seen.tokens.position


def graphs(model: BlipForCaption, form: Form) -> tuple[Graph, ...]:
    """Return two graphs: images -> OUTPUTS, and what writes about one image."""
    _, others = text_axes(model, form)
    images = {"images": example_images(model, form)}
    seen = Graph("model", CaptionGraph(model, form).eval(), images, OUTPUTS, {"images": others})
    return seen, decoder_graph(model, form, "vision")


def run(call: Call, batch: Batch, form: Form) -> dict[str, Tensor]:
    """Read how a batch's captions begin, over their images, which are normalised, through the graphs."""
    seen = call("model", {"images": batch.images[batch.image_index]})
    return {"logits": follow(call, seen, batch, form), **seen}


@torch.inference_mode()
def expect(model: BlipForCaption, batch: Batch) -> dict[str, Tensor]:
    """Do the same with the packed model."""
    texts = openings(batch)
    lengths = [len(ids) for ids in texts]
    out: Any = model(batch.images, torch.cat(texts), lengths, batch.image_index.tolist())
    logits = side_by_side(out.logits.split(lengths))
    return {"logits": logits, **traced("vision", out.traces["vision"], batch.image_index)}


EXPORT = TaskExport(graphs, run, expect)
