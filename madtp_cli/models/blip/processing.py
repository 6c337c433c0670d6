"""How BLIP's images and texts are prepared: squeezed squares, and BERT's tokenizer with two tokens of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from madtp_cli.models.family import Processing
from madtp_cli.models.processor import DECODE, ENCODE, Processor


def image_class() -> type[Any]:
    """Return the image processor: the PIL backend, with or without torchvision, as the two resize differently."""
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    found: type[Any] = BlipImageProcessorPil
    return found


def squared(size: int) -> dict[str, Any]:
    """Squeeze an image into a square."""
    return {"size": {"height": size, "width": size}}


def special_ids(processor: Processor, text: Any, last: int) -> Iterator[tuple[str, str, int | None, int | None]]:
    """Name each special token that a task uses, its override, and its id in the tokenizer and in the model."""
    tokenizer = processor.tokenizer
    ids = tokenizer("a")["input_ids"] or [None]
    vocabulary = tokenizer.get_vocab()
    writes = processor.task in ("vqa", "caption")
    if processor.task == "retrieval":
        yield "[CLS]", "cls_token_id", ids[0], getattr(text, "cls_token_id", None)
    if processor.task != "caption":
        yield ENCODE, "enc_token_id", vocabulary.get(ENCODE), getattr(text, "enc_token_id", None)
    if writes:
        yield DECODE, "dec_token_id", vocabulary.get(DECODE), text.bos_token_id
        yield "[PAD]", "pad_token_id", tokenizer.pad_token_id, text.pad_token_id
    yield "[SEP]", "sep_token_id", ids[-1], text.sep_token_id


def settings(processor: Processor) -> dict[str, int]:
    """Return the ids of a tokenizer's special tokens, as overrides of a configuration."""
    names = {"dec": DECODE, "enc": ENCODE, "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]"}
    return {f"{name}_token_id": processor.tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


PROCESSING = Processing(
    tokenizer="bert-base-uncased",
    images=image_class,
    squared=squared,
    special_ids=special_ids,
    settings=settings,
    tokens=(DECODE, ENCODE),
    openings={"nlvr2": ENCODE, "vqa": ENCODE, "caption": DECODE},
)
