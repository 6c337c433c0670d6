"""Models of two towers: an image encoder over square images, and a text tower that stands beside it or reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from madtp_cli.costs import analytic
from madtp_cli.models.base import ImageIndex, Inputs, PrunedModel
from madtp_cli.models.sites import ATTENTION, Site
from madtp_cli.models.tower import TowerOutput
from madtp_cli.tokens import Tokens, gather

VISION, TEXT = "vision", "text"


class ImageTextModel(PrunedModel):
    """Hold what models with the sites `vision` and `text` share.

    A subclass builds `vision_model` (embeddings, encoder.layers, post_layernorm), runs its own text side, and counts it
    in `_text_macs`.
    """

    text_prunes: ClassVar[bool] = True
    text_protected: ClassVar[int] = 1
    """Tokens of a text that no method may drop."""
    vision_model: Any

    @classmethod
    def sites_of(cls, config: Any) -> tuple[Site, ...]:
        """List the layers of both towers."""
        towers: tuple[tuple[str, Any, Literal["image", "text"], int, int, bool], ...] = (
            (VISION, config.vision_config, "image", cls.image_prefix, cls.image_prefix, True),
            (TEXT, config.text_config, "text", 1, cls.text_protected, cls.text_prunes),
        )
        return tuple(
            Site(
                name,
                tower.num_hidden_layers,
                tower.hidden_size,
                tower.num_attention_heads,
                reads=reads,
                prefix=prefix,
                protected=protected,
                prunes=prunes,
                offers=ATTENTION if prefix else ATTENTION - {"class_row"},
            )
            for name, tower, reads, prefix, protected, prunes in towers
        )

    @property
    def image_tokens(self) -> int:
        """Tokens of one image before any pruning, the prefix included."""
        vision = self.config.vision_config
        return int((vision.image_size // vision.patch_size) ** 2 + self.image_prefix)

    def encode_images(self, images: Tensor, *, learn: bool = False) -> tuple[Tokens, TowerOutput]:
        """Encode normalised images [I, 3, H, W]: the tokens after the last norm, and what the tower did."""
        vision = self.run_tower(
            VISION, self.vision_model.encoder.layers, self.vision_model.embeddings(images), None, learn=learn
        )
        return vision.tokens.with_x(self.vision_model.post_layernorm(vision.tokens.x)), vision

    def macs_of_counts(
        self,
        counts: Mapping[str, Sequence[analytic.LayerCounts]],
        image_tokens: Sequence[int],
        image_index: ImageIndex,
        text_lengths: Sequence[int],
    ) -> analytic.Macs:
        """Count S samples by the tokens that entered and left every layer: of I images, then of the texts.

        image_tokens are those that left an image's last layer; int64 [S] each, by module path.
        """
        index = torch.tensor(image_index).view(len(text_lengths), -1)  # [S, images per text]
        macs = {path: cost[index].sum(1) for path, cost in self._image_macs(counts[VISION], image_tokens).items()}
        return macs | self._text_macs(counts[TEXT], torch.tensor(image_tokens)[index], torch.tensor(text_lengths))

    def _image_macs(self, counts: Sequence[analytic.LayerCounts], image_tokens: Sequence[int]) -> analytic.Macs:
        """Count encoding each of I images: int64 [I] each."""
        vision = self.config.vision_config
        embedding = analytic.patch_embedding(
            self.image_tokens - self.image_prefix, vision.patch_size, vision.hidden_size, len(image_tokens)
        )
        shape = analytic.TowerShape("vision_model.encoder.layers", vision.hidden_size, vision.intermediate_size)
        layers = analytic.vision_layers(shape, counts, self.alignment_tokens)
        return {"vision_model.embeddings": embedding} | layers

    def _text_macs(
        self, counts: Sequence[analytic.LayerCounts], image_tokens: Tensor, text_lengths: Tensor
    ) -> analytic.Macs:
        """Count reading texts: `counts` of the text tower, image_tokens [S, images per text], text_lengths [S]."""
        raise NotImplementedError


def passed(images: Tokens, vision: TowerOutput, text: TowerOutput, inputs: Inputs) -> dict[str, Any]:
    """Return the fields of an Output that are the same for every task, from what both towers did.

    Each text's aligned features are paired with the mean of its images'.
    """
    aligned = None
    if vision.aligned is not None and text.aligned is not None:
        index = torch.tensor(inputs.image_index, device=vision.aligned.device).view(len(text.aligned), -1)
        aligned = gather(vision.aligned, index).mean(1), text.aligned
    return {
        "images": images,
        "traces": {VISION: vision.trace, TEXT: text.trace},
        "text_lengths": inputs.text_lengths,
        "image_index": inputs.image_index,
        "aligned": aligned,
    }
