"""BLIP for captions: a decoder that writes about the tokens of one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.blip.configuration_blip import BlipConfig

from madtp_cli.costs import analytic
from madtp_cli.models.base import Output, Probe, PrunedModel, passed
from madtp_cli.models.blip.generation import generate
from madtp_cli.models.blip.text import LanguageModel, Side, TextContext
from madtp_cli.models.blip.vision import VisionModel
from madtp_cli.tokens import Spans, Tokens


class BlipForCaption(PrunedModel):
    """The image encoder and the caption decoder, which prunes nothing itself."""

    task = "caption"
    prunable = ("vision",)

    def __init__(self, config: BlipConfig, **pruning: Any) -> None:
        super().__init__(config, **pruning)
        self.vision_model = VisionModel(config.vision_config)
        self.text_decoder = LanguageModel(config.text_config, config.vision_config.hidden_size)

    def forward(
        self,
        images: Tensor,
        text: Tensor,
        text_lengths: Sequence[int],
        image_index: Sequence[int],
        *,
        learn: bool = False,
        probe: bool = False,
    ) -> Output:
        """Read captions word by word over normalised images [I, 3, H, W]: logits [T, V] of what follows each token.

        text [T] holds the captions' ids end to end, each opening with [DEC] and ending with [SEP]; image_index names
        every caption's image. `learn` computes what the alignment losses need, for which the decoder stands in as the
        text tower; `probe` the attention of every token.
        """
        seen, vision = self.encode_images(images, learn=learn)
        context = TextContext((Side.of(seen, image_index),), [] if probe else None, probe_all=True)
        spans = Spans.of(text_lengths)
        embedded = self.text_decoder.bert.embeddings(text, spans, seen.x.dtype, causal=True)
        words = self.run_tower(
            "text", self.text_decoder.bert.encoder.layer, embedded, context, learn=learn, prunes=False
        )
        rows = spans.spread(torch.tensor(image_index, device=seen.x.device))  # [T]
        return Output(
            logits=self.text_decoder.predict(words.tokens.x),
            encoded=words.tokens.last(),  # which alone has seen the whole caption
            **passed(seen, vision, words, text_lengths, image_index),
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
