"""What BLIP's published costs count: the calls behind them, and a model's passes through these calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from madtp_cli.costs import published
from madtp_cli.costs.published import (
    ANSWER,
    CAPTION,
    IMAGE,
    IMAGE_MEMORY,
    MATCH,
    MATCHING,
    QUESTION,
    QUESTION_MEMORY,
    SENTENCE,
    SIMILARITIES,
    TEXT,
    Call,
    Measured,
    Pass,
    block_norms,
    means,
)
from madtp_cli.models.base import PrunedModel

CALLS: Mapping[str, Call] = {
    "nlvr2": Call(132.54, 36, {IMAGE: 2, SENTENCE: 1}, 36),
    "caption": Call(65.72, 15, {IMAGE: 1, CAPTION: 1}, 15),
    # One image, 32 questions about it, and 47 answers that all read the first question: what is read is projected once.
    "vqa": Call(186.12, 14, {IMAGE: 1, IMAGE_MEMORY: 1, QUESTION: 32, QUESTION_MEMORY: 1, ANSWER: 47}, 9),
    # Online and momentum networks; a true pair and two wrong ones; both features against both queues, twice.
    "retrieval": Call(153.24, 35, {IMAGE: 2, TEXT: 2, MATCH: 3, SIMILARITIES: 4}, 35),
}


def passes(model: PrunedModel, found: Measured) -> dict[str, Pass]:
    """Split what was measured into the passes of the task's published call."""
    seen, width = found.tokens["vision"], model.config.vision_config.hidden_size
    # The last norm sees all tokens.
    norms = block_norms(seen, width) + seen[-1] * width
    image, words = published.image_pass(found, "vision_", model.images_per_text, norms)
    return {IMAGE: image} | _TEXT_PASSES[model.task](model, found, words)


def _nlvr2(model: PrunedModel, found: Measured, words: Mapping[str, float]) -> dict[str, Pass]:
    return {SENTENCE: Pass(words, _bert_norms(model, found.tokens["text"], reads=True))}


def _caption(model: PrunedModel, found: Measured, words: Mapping[str, float]) -> dict[str, Pass]:
    tokens = found.tokens["text"]
    head = tokens[-1] * model.config.text_config.hidden_size
    return {CAPTION: Pass(words, _bert_norms(model, tokens, reads=True) + head)}


def _vqa(model: Any, found: Measured, words: Mapping[str, float]) -> dict[str, Pass]:
    text, tokens = model.config.text_config, found.tokens["text"]
    layers, width = text.num_hidden_layers, text.hidden_size
    image = published.memory(
        "text_encoder.encoder.layer", layers, found.tokens["vision"][-1], model.config.vision_config.hidden_size, width
    )
    question = published.memory("text_decoder.bert.encoder.layer", layers, tokens[-1], width, width)
    length = published.ANSWER_TOKENS
    answer = means(model.decoder_macs(found.read, [length] * len(found.read)))
    answer_norms = _bert_norms(model, [length] * (layers + 1), reads=True) + length * width
    return {
        IMAGE_MEMORY: Pass(image),
        QUESTION: Pass(published.without(words, image), _bert_norms(model, tokens, reads=True)),
        QUESTION_MEMORY: Pass(question),
        ANSWER: Pass(published.without(answer, question), answer_norms),
    }


def _retrieval(model: PrunedModel, found: Measured, words: Mapping[str, float]) -> dict[str, Pass]:
    return {
        TEXT: Pass(words, _bert_norms(model, found.tokens["text"], reads=False)),
        MATCH: Pass(found.matching, _bert_norms(model, found.tokens[MATCHING], reads=True)),
        SIMILARITIES: published.similarities(model.config.image_text_hidden_size),
    }


_TEXT_PASSES: Mapping[str, Callable[[Any, Measured, Mapping[str, float]], dict[str, Pass]]] = {
    "nlvr2": _nlvr2,
    "caption": _caption,
    "vqa": _vqa,
    "retrieval": _retrieval,
}


def _bert_norms(model: PrunedModel, tokens: Sequence[float], *, reads: bool) -> float:
    """Count the elements of BERT's norms, that of the embeddings included."""
    width = model.config.text_config.hidden_size
    return float(block_norms(tokens, width, reads=reads) + tokens[0] * width)
