"""Texts of annotations as BLIP cleans them before they are tokenized."""

from __future__ import annotations

import re

MAX_SENTENCE_WORDS, MAX_CAPTION_WORDS, MAX_QUESTION_WORDS = 40, 30, 50  # as published: NLVR2, COCO and Flickr30k, VQA
_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")


def clean_caption(text: str, max_words: int) -> str:
    """Write a caption or sentence in lower case, with spaces for punctuation and at most `max_words` words."""
    text = re.sub(r"\s{2,}", " ", _PUNCTUATION.sub(" ", text.lower())).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])


def clean_question(text: str, max_words: int = MAX_QUESTION_WORDS) -> str:
    """Write a question in lower case, without punctuation (commas and question marks stay) and without long tails."""
    # Unlike in captions, no space takes the place of what is removed: so BLIP's checkpoints were trained.
    text = _PUNCTUATION.sub("", text.lower()).rstrip(" ")
    return " ".join(text.split(" ")[:max_words])


def answer_weights(answers: tuple[str, ...]) -> dict[str, float]:
    """Return each distinct answer with the share of annotators who gave it, in order of first mention."""
    weights: dict[str, float] = {}
    for answer in answers:
        weights[answer] = weights.get(answer, 0.0) + 1 / len(answers)
    return weights
