"""A captioner whose images have no class token, and a site, `bridge`, between its image encoder and its decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from madtp_cli.costs import analytic
from madtp_cli.models.base import Inputs, Output
from madtp_cli.models.blip import family as blip
from madtp_cli.models.blip.caption import BlipForCaption
from madtp_cli.models.blip.text import Side, TextContext
from madtp_cli.models.image_text import passed
from madtp_cli.models.sites import Site
from madtp_cli.models.tower import Passage
from madtp_cli.tokens import Spans, Tokens


class Embeddings(nn.Conv2d):
    def forward(self, images: Tensor) -> Tokens:  # type: ignore[override]
        x = super().forward(images).flatten(2).transpose(1, 2)  # [I, N, C]
        return Tokens.pack(x.flatten(0, 1), Spans.of([x.shape[1]] * len(x)))


class Toy(BlipForCaption):
    family, image_prefix = "toy", 0

    def __init__(self, config: Any, **pruning: Any) -> None:
        super().__init__(config, **pruning)
        width, patch = config.vision_config.hidden_size, config.vision_config.patch_size
        self.vision_model.embeddings = Embeddings(3, width, patch, stride=patch)  # type: ignore[assignment]

    @classmethod
    def sites_of(cls, config: Any) -> tuple[Site, ...]:
        vision, text = super().sites_of(config)
        return vision, Site("bridge", 1, vision.width, 0, "image", prefix=0, protected=0, offers=frozenset()), text

    def run(self, inputs: Inputs) -> Output:
        seen, vision = self.encode_images(inputs.images)
        bridge, decoder = self.run_tower("bridge", [Passage()], seen, None), self.text_decoder.bert
        context = TextContext((Side.of(bridge.tokens, inputs.image_index),))
        words = decoder.embeddings(inputs.text, Spans.of(inputs.text_lengths), seen.x.dtype, causal=True)
        read = self.run_tower("text", decoder.encoder.layer, words, context, prunes=False)
        said = passed(bridge.tokens, vision, read, inputs)
        said["traces"]["bridge"] = bridge.trace
        return Output(logits=self.text_decoder.predict(read.tokens.x), encoded=read.tokens.last(), **said)

    def macs_of_counts(self, counts: Any, image_tokens: Any, image_index: Any, text_lengths: Any) -> analytic.Macs:
        merged = analytic.pruning("bridge.0.pruning", counts["bridge"][0], self.config.vision_config.hidden_size, 0)
        own = {path: cost[torch.tensor(image_index)] for path, cost in merged.items()}
        return super().macs_of_counts(counts, image_tokens, image_index, text_lengths) | own


FAMILY = replace(blip.FAMILY, name="toy", title="Toy", models={"caption": Toy}, recognise=lambda *_: None, exports=dict)
