"""BLIP for VQA as two graphs: `model` reads a question over its image, `decoder` says what may follow in an answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from madtp_cli.data.batch import Batch
from madtp_cli.export.graphs import Call, Graph, TaskExport, example_images, example_text, pad_text, text_axes, traced
from madtp_cli.export.schedule import Form, cuts
from madtp_cli.models.blip.export.blocks import image_encoder, text_encoder
from madtp_cli.models.blip.export.decoder import decoder_graph, follow, openings, side_by_side
from madtp_cli.models.blip.vqa import BlipForVqa

OUTPUTS = (
    "states",
    "states_lengths",
    "vision_kept",
    "text_kept",
    "vision_positions",
    "text_positions",
)


class VqaGraph(nn.Module):
    """Read questions over their images."""

    def __init__(self, model: BlipForVqa, form: Form) -> None:
        super().__init__()
        planned = cuts(model, form)
        self.image = image_encoder(model, planned["vision"])
        self.text = text_encoder(model, model.text_encoder, planned["text"])

    def forward(self, images: Tensor, text: Tensor, text_lengths: Tensor) -> tuple[Tensor, ...]:
        """Return states [B, n, C] of questions [B, L] over images [B, 3, H, W], and what both towers kept."""
        seen = self.image(images)
        read = self.text(text, text_lengths, [seen.tokens])
        tokens = read.tokens
        return tokens.x.float(), tokens.lengths, seen.kept, read.kept, seen.tokens.position, tokens.position


def graphs(model: BlipForVqa, form: Form) -> tuple[Graph, ...]:
    """Return two graphs: images, text, text_lengths -> OUTPUTS, and what writes about one question."""
    texts, others = text_axes(model, form)
    read = Graph(
        "model",
        VqaGraph(model, form).eval(),
        {"images": example_images(model, form), **example_text(model, form)},
        OUTPUTS,
        {"images": others, "text": texts, "text_lengths": others},
    )
    return read, decoder_graph(model, form, "text")


def run(call: Call, batch: Batch, form: Form) -> dict[str, Tensor]:
    """Read a batch's questions over their images, which are normalised, and answers that begin as they do."""
    read = call("model", {"images": batch.images[batch.image_index], **pad_text(batch, form)})
    return {"logits": follow(call, read, batch, form), **read}


@torch.inference_mode()
def expect(model: BlipForVqa, batch: Batch) -> dict[str, Tensor]:
    """Do the same with the packed model."""
    # The last token of an answer is read by none, so one more is given.
    answers = [torch.cat([ids, ids[:1]]) for ids in openings(batch)]
    lengths = [len(ids) for ids in answers]
    out: Any = model(
        batch.images,
        batch.text,
        batch.text_lengths,
        batch.image_index.tolist(),
        answers=torch.cat(answers),
        answer_lengths=lengths,
        answer_index=range(len(answers)),
    )
    logits = side_by_side(out.logits.split([length - 1 for length in lengths]))
    return {
        "logits": logits,
        **traced("vision", out.traces["vision"], batch.image_index),
        **traced("text", out.traces["text"]),
    }


EXPORT = TaskExport(graphs, run, expect)
