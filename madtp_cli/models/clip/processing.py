"""How CLIP's images and texts are prepared: the middle of an image, and a tokenizer that ends a text with its EOT."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from madtp_cli.models.clip.model import LEGACY_EOS
from madtp_cli.models.family import Processing
from madtp_cli.models.processor import Processor


def image_class() -> type[Any]:
    """Return the image processor: the PIL backend, with or without torchvision, as the two resize differently."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    found: type[Any] = CLIPImageProcessorPil
    return found


def squared(size: int) -> dict[str, Any]:
    """Cut the middle out of an image."""
    return {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}


def special_ids(processor: Processor, text: Any, last: int) -> Iterator[tuple[str, str, int | None, int | None]]:
    """Name the end of a text, its override, and its id in the tokenizer and in the model."""
    ids, end = processor.tokenizer("a")["input_ids"] or [None], text.eos_token_id
    yield "the end of a text", "eos_token_id", ids[-1], last if end == LEGACY_EOS else end


def settings(processor: Processor) -> dict[str, int]:
    """Return the id that ends a text, as an override of a configuration."""
    return {"eos_token_id": processor.words("")[-1]}


PROCESSING = Processing(
    tokenizer="openai/clip-vit-large-patch14",
    images=image_class,
    squared=squared,
    special_ids=special_ids,
    settings=settings,
    whole_captions=True,
)
