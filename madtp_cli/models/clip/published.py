"""What CLIP's published cost counts: the call behind it, and a model's passes through that call."""

from __future__ import annotations

from collections.abc import Mapping

from madtp_cli.costs.published import (
    IMAGE,
    SIMILARITIES,
    TEXT,
    Call,
    Measured,
    Pass,
    block_norms,
    image_pass,
    similarities,
)
from madtp_cli.models.base import PrunedModel

CALLS: Mapping[str, Call] = {"retrieval": Call(395.70, 77, {IMAGE: 2, TEXT: 2, SIMILARITIES: 4}, 77)}


def passes(model: PrunedModel, found: Measured) -> dict[str, Pass]:
    """Split what was measured into the passes of the published call."""
    seen, width = found.tokens["vision"], model.config.vision_config.hidden_size
    # One norm before the first layer sees all tokens, the last one only the class token.
    norms = block_norms(seen, width) + (seen[0] + 1) * width
    image, words = image_pass(found, ("vision_", "visual_"), model.images_per_text, norms)
    tokens, text_width = found.tokens["text"], model.config.text_config.hidden_size
    return {
        IMAGE: image,
        TEXT: Pass(words, block_norms(tokens, text_width) + tokens[-1] * text_width),
        SIMILARITIES: similarities(model.config.projection_dim),
    }
