"""What a model can read, as its configuration says: data and texts have to fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Limits:
    """Sides of an image and of a patch in pixels, words of the vocabulary, and tokens of the longest text."""

    image_size: int
    patch_size: int
    words: int
    text_tokens: int


def limits_of(config: Any) -> Limits:
    """Read the limits of a configuration."""
    vision, text = config.vision_config, config.text_config
    return Limits(vision.image_size, vision.patch_size, text.vocab_size, text.max_position_embeddings)
