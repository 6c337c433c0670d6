"""BLIP's text decoder as a graph, `decoder`, which caption and vqa share: what follows each word, over what was seen.

It is told the whole text again for every further word: unlike generation.py, it has no memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from madtp_cli.data.batch import Batch
from madtp_cli.export.graphs import Axis, Call, Graph
from madtp_cli.export.padded import PaddedBatch
from madtp_cli.export.schedule import Form, cuts
from madtp_cli.export.towers import Tower
from madtp_cli.models.blip.export.blocks import TEXT_BLOCK

COMPARED = 6  # ids of a text on which decoders are compared: their logits are as wide as the vocabulary
WRITTEN = 20  # ids in a graph of fixed shapes, at least: as many as BLIP's captions may have


class DecoderGraph(nn.Module):
    """Tell which words may follow."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        decoder = model.text_decoder
        self.embeddings = decoder.bert.embeddings
        self.tower = Tower(model, "decoder", list(decoder.bert.encoder.layer), {}, TEXT_BLOCK)
        self.head = decoder.cls.predictions

    def forward(self, states: Tensor, states_lengths: Tensor, ids: Tensor) -> tuple[Tensor]:
        """Return logits [A, W, V] of what follows each of the ids [A, W] of texts about one sample's states [1, n, C].

        Ids behind a text's end change nothing before it.
        """
        x = self.embeddings.word_embeddings(ids) + self.embeddings.position_embeddings.weight[: ids.shape[1]]
        words = replace(PaddedBatch.of(self.embeddings.LayerNorm(x)), causal=True)
        side = PaddedBatch.of_lengths(states.to(words.flat.dtype), states_lengths)
        return (self.head(self.tower(words, [side]).tokens.flat).unflatten(0, ids.shape),)


def decoder_graph(model: Any, form: Form, reads: str) -> Graph:
    """Return the graph of a model whose decoder reads what leaves a tower: states, states_lengths, ids -> logits."""
    longest = model.config.text_config.max_position_embeddings
    free = form.mode == "dynamic"
    shape = (2, min(5, longest)) if free else (1, _written(form))
    return Graph(
        "decoder",
        DecoderGraph(model).eval(),
        example_states(model, form, reads, 1) | {"ids": torch.ones(shape, dtype=torch.int64)},
        ("logits",),
        states_axes(model, form, reads, {}) | {"ids": {0: Axis("texts"), 1: Axis("written", longest)} if free else {}},
    )


def openings(batch: Batch) -> list[Tensor]:
    """Return the first ids of every text of a batch: what decoders are compared on."""
    return [ids[:COMPARED] for ids in batch.text.split(batch.text_lengths)]


def follow(call: Call, outputs: dict[str, Tensor], batch: Batch, form: Form) -> Tensor:
    """Return logits [S, COMPARED, V] of what follows each opening id of a batch's texts, through the graph.

    Takes the states that the decoder reads out of the outputs of another graph. Places without an id have zeros.
    """
    states = {name: outputs.pop(name) for name in ("states", "states_lengths")}
    found = []
    for row, ids in enumerate(openings(batch)):
        own = {name: value[row : row + 1] for name, value in states.items()}
        given = pad(ids, (0, _written(form) - len(ids))) if form.mode == "static" else ids
        found.append(call("decoder", own | {"ids": given[None]})["logits"][0, : len(ids)])
    return side_by_side(found)


def side_by_side(logits: Sequence[Tensor]) -> Tensor:
    """Lay logits [L, V] of several texts out as [S, COMPARED, V], with zeros behind."""
    return torch.stack([pad(each, (0, 0, 0, COMPARED - len(each))) for each in logits])


def example_states(model: Any, form: Form, reads: str, batch: int) -> dict[str, Tensor]:
    """Make states to trace with, as they leave a tower."""
    config = model.config.vision_config if reads == "vision" else model.config.text_config
    count = states_width(model, form, reads) or 9
    states = torch.randn(batch, count, config.hidden_size, generator=torch.Generator().manual_seed(0))
    return {"states": states, "states_lengths": torch.full((batch,), count)}


def states_axes(model: Any, form: Form, reads: str, others: Mapping[int, Axis]) -> dict[str, Mapping[int, Axis]]:
    """Return the varying dimensions of states and their lengths; `others` are those of anything [B, ...]."""
    most = model.image_tokens if reads == "vision" else model.config.text_config.max_position_embeddings
    counted = {} if states_width(model, form, reads) else {1: Axis("states", most)}
    return {"states": {**others, **counted}, "states_lengths": others}


def states_width(model: Any, form: Form, tower: str) -> int | None:
    """Return how many places the tokens that leave a tower take, None where the graph counts them."""
    planned = list(cuts(model, form)[tower].values())
    if planned:
        return planned[-1].width
    return int(model.image_tokens) if tower == "vision" else form.text_tokens


def _written(form: Form) -> int:
    """Return how many ids a graph of fixed shapes takes: the data's longest text fits as well."""
    return max(WRITTEN, form.text_tokens or 0)
