"""BLIP for captions: a decoder that writes about the tokens of one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.blip.configuration_blip import BlipConfig

from madtp_cli.costs import analytic
from madtp_cli.models.base import Inputs, Output, Probe
from madtp_cli.models.blip.generation import generate
from madtp_cli.models.blip.layouts import TIED
from madtp_cli.models.blip.text import LanguageModel, Side, TextContext
from madtp_cli.models.blip.vision import VisionModel
from madtp_cli.models.image_text import TEXT, ImageTextModel, passed
from madtp_cli.tokens import Spans, Tokens


class BlipForCaption(ImageTextModel):
    """The image encoder and the caption decoder, which prunes nothing itself."""

    family = "blip"
    task = "caption"
    text_prunes = False
    tied = TIED

    def __init__(self, config: BlipConfig, **pruning: Any) -> None:
        super().__init__(config, **pruning)
        self.vision_model = VisionModel(config.vision_config)
        self.text_decoder = LanguageModel(config.text_config, config.vision_config.hidden_size)

    def run(self, inputs: Inputs) -> Output:
        """Read captions, from [DEC] to [SEP], word by word over images: logits [T, V] of what follows each token.

        For alignment the decoder stands in as the text tower; probes are the attention of every token.
        """
        seen, vision = self.encode_images(inputs.images, learn=inputs.learn)
        context = TextContext((Side.of(seen, inputs.image_index),), [] if inputs.probe else None, probe_all=True)
        spans, decoder = Spans.of(inputs.text_lengths), self.text_decoder.bert
        embedded = decoder.embeddings(inputs.text, spans, seen.x.dtype, causal=True)
        words = self.run_tower(TEXT, decoder.encoder.layer, embedded, context, learn=inputs.learn, prunes=False)
        rows = spans.spread(torch.tensor(inputs.image_index, device=seen.x.device))  # [T]
        return Output(
            logits=self.text_decoder.predict(words.tokens.x),
            encoded=words.tokens.last(),  # which alone has seen the whole caption
            **passed(seen, vision, words, inputs),
            probes=tuple(Probe(probability, rows) for (probability,) in context.probe or ()),
        )

    def generate(
        self, images: Tokens, prompt: Sequence[int], *, beams: int = 3, min_length: int = 5, max_length: int = 20
    ) -> list[list[int]]:
        """Write a caption about each of the encoded images: its ids after the prompt, without [SEP].

        The prompt opens with [DEC]; lengths count it.
        """
        return generate(
            self.text_decoder,
            self.config.text_config,
            images,
            prompt,
            beams=beams,
            min_length=min_length,
            max_length=max_length,
        )

    def _text_macs(
        self, counts: Sequence[analytic.LayerCounts], image_tokens: Tensor, text_lengths: Tensor
    ) -> analytic.Macs:
        text = self.config.text_config
        macs = analytic.text_layers(
            analytic.TowerShape("text_decoder.bert.encoder.layer", text.hidden_size, text.intermediate_size),
            counts,
            image_tokens.unbind(1),
            image_width=self.config.vision_config.hidden_size,
            alignment_tokens=0,
        )
        return macs | analytic.language_head("text_decoder.cls", text_lengths, text.hidden_size, text.vocab_size)
