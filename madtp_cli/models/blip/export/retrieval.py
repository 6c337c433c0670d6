"""BLIP for retrieval as three graphs: `image` and `text` alone, and `match`, which reads a text over an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from madtp_cli.data.batch import Batch
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
from madtp_cli.export.padded import PaddedBatch
from madtp_cli.export.schedule import Form, cuts
from madtp_cli.models.blip.export.blocks import image_encoder, text_encoder
from madtp_cli.models.blip.export.decoder import example_states, states_axes
from madtp_cli.models.blip.retrieval import BlipForRetrieval
from madtp_cli.models.configs import special_id

IMAGE_OUTPUTS = ("image_embeds", "states", "states_lengths", "vision_kept", "vision_positions")
TEXT_OUTPUTS = ("text_embeds", "text_kept", "text_positions")
MATCH_OUTPUTS = ("match_logits", "match_kept", "match_positions")


class ImageGraph(nn.Module):
    """Encode images as vectors of length one, and as the tokens that `match` reads."""

    def __init__(self, model: BlipForRetrieval, form: Form) -> None:
        super().__init__()
        self.encoder = image_encoder(model, cuts(model, form)["vision"])
        self.projection = model.vision_proj

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return vectors [B, d] and states [B, m, C] of images [B, 3, H, W], and what was kept."""
        seen = self.encoder(images)
        tokens = seen.tokens
        embeds = normalize(self.projection(tokens.x[:, 0]).float(), dim=-1)
        return embeds, tokens.x.float(), tokens.lengths, seen.kept, tokens.position


class TextGraph(nn.Module):
    """Encode texts as vectors of length one."""

    def __init__(self, model: BlipForRetrieval, form: Form) -> None:
        super().__init__()
        self.encoder = text_encoder(model, model.text_encoder, cuts(model, form)["text"])
        self.projection = model.text_proj

    def forward(self, text: Tensor, text_lengths: Tensor) -> tuple[Tensor, ...]:
        """Return vectors [B, d] of texts [B, L], each opening with [CLS], and what was kept."""
        read = self.encoder(text, text_lengths)
        return normalize(self.projection(read.tokens.x[:, 0]).float(), dim=-1), read.kept, read.tokens.position


class MatchGraph(nn.Module):
    """Tell whether texts belong to images."""

    def __init__(self, model: BlipForRetrieval, form: Form) -> None:
        super().__init__()
        self.encoder = text_encoder(model, model.text_encoder, cuts(model, form)["text"])
        self.head = model.itm_head
        self.opens = special_id(model.config.text_config, "enc_token_id")

    def forward(self, states: Tensor, states_lengths: Tensor, text: Tensor, text_lengths: Tensor) -> tuple[Tensor, ...]:
        """Return logits [B, 2] (no match, match) of texts [B, L] over states [B, m, C], and what was kept of the texts.

        The texts are those of `text`: [ENC] takes the place of their opening [CLS] here.
        """
        opened = torch.where(torch.arange(text.shape[1], device=text.device) == 0, self.opens, text)
        side = PaddedBatch.of_lengths(states.to(self.head.weight.dtype), states_lengths)
        read = self.encoder(opened, text_lengths, [side])
        return self.head(read.tokens.x[:, 0]).float(), read.kept, read.tokens.position


def graphs(model: BlipForRetrieval, form: Form) -> tuple[Graph, ...]:
    """Return three graphs: images -> IMAGE_OUTPUTS; text, text_lengths -> TEXT_OUTPUTS; both's -> MATCH_OUTPUTS."""
    texts, others = text_axes(model, form)
    reads = {"text": texts, "text_lengths": others}
    images, text = {"images": example_images(model, form)}, example_text(model, form)
    states = example_states(model, form, "vision", form.batch or 2)
    seen = states_axes(model, form, "vision", others)
    return (
        Graph("image", ImageGraph(model, form).eval(), images, IMAGE_OUTPUTS, {"images": others}),
        Graph("text", TextGraph(model, form).eval(), text, TEXT_OUTPUTS, reads),
        Graph("match", MatchGraph(model, form).eval(), states | text, MATCH_OUTPUTS, seen | reads),
    )


def run(call: Call, batch: Batch, form: Form) -> dict[str, Tensor]:
    """Embed a batch, whose images are normalised, through the graphs, and match each text with its image."""
    text = pad_text(batch, form)
    seen = call("image", {"images": batch.images[batch.image_index]})
    states = {name: seen.pop(name) for name in ("states", "states_lengths")}
    return seen | call("text", text) | call("match", states | text)


@torch.inference_mode()
def expect(model: BlipForRetrieval, batch: Batch) -> dict[str, Tensor]:
    """Embed and match a batch, whose images are normalised, with the packed model."""
    index = batch.image_index.tolist()
    out: Any = model(batch.images, batch.text, batch.text_lengths, index, itm_pairs=list(enumerate(index)))
    return {
        "image_embeds": out.image_embeds[batch.image_index],
        "text_embeds": out.text_embeds,
        "match_logits": out.itm.logits,
        **traced("vision", out.traces["vision"], batch.image_index),
        **traced("text", out.traces["text"]),
        **traced("match", out.itm.text),
    }


EXPORT = TaskExport(graphs, run, expect, ("image recall@1", recall))
