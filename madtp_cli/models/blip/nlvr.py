"""BLIP for NLVR2: is a sentence true of a pair of images?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.blip.configuration_blip import BlipConfig

from madtp_cli.costs import analytic
from madtp_cli.models.base import Inputs, Output, Probe
from madtp_cli.models.blip.configs import MERGE_FROM
from madtp_cli.models.blip.text import Side, TextContext, TwinTextModel
from madtp_cli.models.blip.vision import VisionModel
from madtp_cli.models.image_text import TEXT, ImageTextModel, passed
from madtp_cli.tokens import Spans


class BlipForNlvr(ImageTextModel):
    """The image encoder, the twin text encoder and a two-way head (false, true)."""

    family = "blip"
    task = "nlvr2"
    images_per_text = 2

    def __init__(self, config: BlipConfig, **pruning: Any) -> None:
        super().__init__(config, **pruning)
        self.vision_model = VisionModel(config.vision_config)
        self.text_encoder = TwinTextModel(config.text_config, getattr(config.text_config, "merge_from", MERGE_FROM))
        width = config.text_config.hidden_size
        self.cls_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def run(self, inputs: Inputs) -> Output:
        """Judge sentences, each opening with [ENC], over pairs of images: logits [S, 2].

        image_index names every sentence's left and right image; probes are the attention of [ENC].
        """
        seen, vision = self.encode_images(inputs.images, learn=inputs.learn)
        left, right = (Side.of(seen, [pair[side] for pair in inputs.image_index]) for side in (0, 1))
        context = TextContext((left, right), [] if inputs.probe else None)
        embedded = self.text_encoder.embeddings(inputs.text, Spans.of(inputs.text_lengths), seen.x.dtype)
        words = self.run_tower(TEXT, self.text_encoder.encoder.layer, embedded, context, learn=inputs.learn)
        encoded = words.tokens.first()
        rows = torch.tensor(inputs.image_index, device=encoded.device)
        return Output(
            logits=self.cls_head(encoded).float(),
            encoded=encoded,
            **passed(seen, vision, words, inputs),
            probes=tuple(
                Probe(probability, rows[:, side])
                for layer in context.probe or ()
                for side, probability in enumerate(layer)
            ),
        )

    def _text_macs(
        self, counts: Sequence[analytic.LayerCounts], image_tokens: Tensor, text_lengths: Tensor
    ) -> analytic.Macs:
        text = self.config.text_config
        macs = analytic.twin_text_layers(
            analytic.TowerShape("text_encoder.encoder.layer", text.hidden_size, text.intermediate_size),
            counts,
            image_tokens.unbind(1),
            image_width=text.encoder_hidden_size,
            merge_from=getattr(text, "merge_from", MERGE_FROM),
            alignment_tokens=self.alignment_tokens,
        )
        macs["cls_head"] = torch.full_like(text_lengths, text.hidden_size**2 + 2 * text.hidden_size)
        return macs
