"""BLIP for retrieval: one vector for each image and each text, and a second look at the pairs that are close.

Shapes: P pairs (a text and an image), d width of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers.models.blip.configuration_blip import BlipConfig

from madtp_cli.costs import analytic
from madtp_cli.models.base import Inputs, Output, Probe
from madtp_cli.models.blip.text import Side, TextContext, TextModel
from madtp_cli.models.blip.vision import VisionModel
from madtp_cli.models.configs import special_id
from madtp_cli.models.image_text import TEXT, ImageTextModel, passed
from madtp_cli.models.tower import LayerTrace
from madtp_cli.tokens import Spans, Tokens

TEMPERATURE = 0.07  # of a model whose checkpoint has none, as HF's

Pairs = Sequence[tuple[int, int]]
"""The text's and the image's row of every pair."""


@dataclass(frozen=True)
class RetrievalInputs(Inputs):
    """Texts, each opening with [CLS], and images.

    itm_pairs are (text, image) to look at again, or what chooses them once it is given the similarities [S, I].
    """

    itm_pairs: Pairs | Callable[[Tensor], Pairs] | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Matching:
    """What reading P texts over an image each gives: logits [P, 2] (no match, match) and the text tower's trace."""

    logits: Tensor
    pairs: Pairs
    text: tuple[LayerTrace, ...]
    image_tokens: tuple[int, ...]
    probes: tuple[Probe, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RetrievalOutput(Output):
    """What a pass over S texts and I images gives: logits [S, I] are similarities divided by the temperature.

    image_embeds [I, d] and text_embeds [S, d] have length one; itm is the second look at the pairs asked for.
    """

    image_embeds: Tensor
    text_embeds: Tensor
    itm: Matching | None = None


class BlipForRetrieval(ImageTextModel):
    """The image encoder, and a text encoder that runs alone (contrast) or over an image (matching)."""

    family = "blip"
    task = "retrieval"
    takes = RetrievalInputs

    def __init__(self, config: BlipConfig, **pruning: Any) -> None:
        super().__init__(config, **pruning)
        vision, text, width = config.vision_config, config.text_config, config.image_text_hidden_size
        self.vision_model = VisionModel(vision)
        self.text_encoder = TextModel(text, vision.hidden_size)
        self.vision_proj = nn.Linear(vision.hidden_size, width)
        self.text_proj = nn.Linear(text.hidden_size, width)
        self.itm_head = nn.Linear(text.hidden_size, 2)
        self.temp = nn.Parameter(torch.tensor(TEMPERATURE))

    def run(self, inputs: RetrievalInputs) -> RetrievalOutput:
        """Compare texts with images: logits [S, I]; probes are the attention of [ENC] in pairs that belong together."""
        text, text_lengths = inputs.text, inputs.text_lengths
        seen, vision = self.encode_images(inputs.images, learn=inputs.learn)
        words = self.run_tower(
            TEXT,
            self.text_encoder.encoder.layer,
            self.text_encoder.embeddings(text, Spans.of(text_lengths), seen.x.dtype),
            TextContext(),
            learn=inputs.learn,
        )
        image_embeds = normalize(self.vision_proj(seen.first()).float(), dim=-1)
        text_embeds = normalize(self.text_proj(words.tokens.first()).float(), dim=-1)
        # Similarities lie close together and are scaled up: half precision would blur them.
        with torch.autocast(seen.x.device.type, enabled=False):
            logits = text_embeds @ image_embeds.T / self.temp.float()
        pairs = inputs.itm_pairs(logits.detach()) if callable(inputs.itm_pairs) else inputs.itm_pairs
        matched: Matching | None = None
        if pairs is not None:
            true = {(row, image) for row, image in enumerate(inputs.image_index)} if inputs.probe else set()
            matched = self.read_pairs(seen, text, text_lengths, pairs, probe=true)
        return RetrievalOutput(
            logits=logits,
            encoded=words.tokens.first(),
            **passed(seen, vision, words, inputs),
            probes=matched.probes if matched else (),
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            itm=matched,
        )

    def match(self, images: Tokens, text: Tensor, text_lengths: Sequence[int], pairs: Pairs) -> Tensor:
        """Return the matching logits [P, 2] of texts, as given to `forward`, over encoded images."""
        return self.read_pairs(images, text, text_lengths, pairs).logits

    def read_pairs(
        self,
        images: Tokens,
        text: Tensor,
        text_lengths: Sequence[int],
        pairs: Pairs,
        *,
        probe: Collection[tuple[int, int]] = (),
    ) -> Matching:
        """Read texts over encoded images, with [ENC] in the place of [CLS]; `probe` names pairs to probe."""
        parts = text.split(list(text_lengths))
        spans = Spans.of([text_lengths[row] for row, _ in pairs])
        ids = torch.cat([parts[row] for row, _ in pairs])
        ids = ids.index_fill(0, spans.start_index(ids.device), special_id(self.config.text_config, "enc_token_id"))
        rows = [image for _, image in pairs]
        context = TextContext((Side.of(images, rows),), [] if probe else None)
        words = self.run_tower(
            TEXT,
            self.text_encoder.encoder.layer,
            self.text_encoder.embeddings(ids, spans, images.x.dtype),
            context,
        )
        probed = torch.tensor([place for place, pair in enumerate(pairs) if tuple(pair) in probe], dtype=torch.long)
        probed = probed.to(ids.device)
        images_probed = torch.tensor(rows, device=ids.device)[probed]
        return Matching(
            logits=self.itm_head(words.tokens.first()).float(),
            pairs=pairs,
            text=words.trace,
            image_tokens=tuple(images.spans.lengths[image] for image in rows),
            probes=tuple(Probe(probability[probed], images_probed) for (probability,) in context.probe or ()),
        )

    def itm_macs(self, matching: Matching) -> analytic.Macs:
        """Return what reading each of P pairs cost, its image encoded already, by module path: int64 [P] each."""
        return self._itm_macs(self.counts(matching.text), torch.tensor(matching.image_tokens))

    @property
    def itm_layers(self) -> int:
        """How many layers read a text over an image."""
        return int(self.config.text_config.num_hidden_layers)

    def dense_itm_macs(self, text_lengths: Sequence[int]) -> analytic.Macs:
        """Return what reading each text over an unpruned image costs without pruning: int64 [P] each."""
        words = analytic.layer_counts(text_lengths, text_lengths)
        counts = [words] * self.itm_layers
        return self._itm_macs(counts, torch.full((len(text_lengths),), self.image_tokens))

    def _itm_macs(self, counts: Sequence[analytic.LayerCounts], image_tokens: Tensor) -> analytic.Macs:
        macs = self._layers(counts, [image_tokens])
        macs["itm_head"] = torch.full_like(image_tokens, 2 * self.config.text_config.hidden_size)
        return macs

    def _image_macs(self, counts: Sequence[analytic.LayerCounts], image_tokens: Sequence[int]) -> analytic.Macs:
        macs = super()._image_macs(counts, image_tokens)
        projection = self.config.vision_config.hidden_size * self.config.image_text_hidden_size
        return macs | {"vision_proj": torch.full((len(image_tokens),), projection)}

    def _text_macs(
        self, counts: Sequence[analytic.LayerCounts], image_tokens: Tensor, text_lengths: Tensor
    ) -> analytic.Macs:
        macs = self._layers(counts, [])
        projection = self.config.text_config.hidden_size * self.config.image_text_hidden_size
        return macs | {"text_proj": torch.full_like(text_lengths, projection)}

    def _layers(self, counts: Sequence[analytic.LayerCounts], images: Sequence[Tensor]) -> analytic.Macs:
        text = self.config.text_config
        return analytic.text_layers(
            analytic.TowerShape("text_encoder.encoder.layer", text.hidden_size, text.intermediate_size),
            counts,
            images,
            image_width=self.config.vision_config.hidden_size,
            alignment_tokens=self.alignment_tokens,
        )
