"""How good predictions are, as each data set's official evaluation counts it; every score is a share in 0..1."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from madtp_cli.errors import SourceError

Array = NDArray[Any]
RECALLS = (1, 5, 10)


def nlvr2_scores(predictions: Sequence[int], references: Sequence[int], groups: Sequence[str]) -> dict[str, float]:
    """Return accuracy and consistency: the share of sentences that are judged right on all their pairs of images.

    A group is one sentence, as in the official nlvr2/eval/metrics.py.
    """
    right = np.equal(np.asarray(predictions), np.asarray(references))
    sentences: dict[str, bool] = {}
    for group, is_right in zip(groups, right.tolist(), strict=True):
        sentences[group] = sentences.get(group, True) and is_right
    return {"accuracy": float(right.mean()), "consistency": sum(sentences.values()) / len(sentences)}


def vqa_accuracy(
    predictions: Sequence[str], references: Sequence[Sequence[str]], groups: Sequence[str]
) -> dict[str, float]:
    """Return VQA accuracy, in all and per type of answer as `accuracy/<type>`.

    An answer scores min(1, matches / 3) against every nine of the ten annotators, averaged, after the official
    normalisation. Where a question has fewer than four answers, all but one of them must match; its only one is
    compared as it is. Raises SourceError if a question has no answers to compare with.
    """
    if unknown := sum(not given for given in references):
        raise SourceError(
            f"{unknown} of {len(references)} questions have no answers to compare with; VQAv2 publishes none for its "
            "test split: evaluate the validation split, or submit the predictions to the challenge's server"
        )
    scores = [_vqa_score(answer, given) for answer, given in zip(predictions, references, strict=True)]
    return _shares(np.array(scores, dtype=float), groups)


def _vqa_score(prediction: str, given: Sequence[str]) -> float:
    answer = normalize_answer(prediction)
    # As in the official code: answers all agree on are taken as they are, and articles and numbers stay.
    texts = [_strip_punctuation(text) for text in given] if len(set(given)) > 1 else list(given)
    if len(texts) == 1:
        return float(answer in (texts[0], normalize_answer(texts[0])))
    matches = np.array([text == answer for text in texts])
    others = matches.sum() - matches
    return float(np.minimum(1.0, others / min(3, len(texts) - 1)).mean())


def recalls(image_to_text: Any, text_to_image: Any, image_of_text: Sequence[int]) -> dict[str, float]:
    """Return recall at 1, 5 and 10 of texts by image (`tr@1`) and of images by text (`ir@1`), and their mean.

    Both matrices are scores [images, texts], two where re-ranking made them differ. `image_of_text` is the row of each
    text's image; an image finds any of its texts. What ties with others counts as the last of them.
    """
    owners = np.asarray(image_of_text)
    texts, images = _scores(image_to_text), _scores(text_to_image)
    text_places = []
    for row in np.unique(owners):
        own = owners == row
        text_places.append(np.count_nonzero(texts[row, ~own] >= texts[row, own].max()))
    own_scores = images[owners, np.arange(len(owners))]
    image_places = np.count_nonzero(images >= own_scores, axis=0) - 1
    scores = {f"tr@{k}": float((np.array(text_places) < k).mean()) for k in RECALLS}
    scores |= {f"ir@{k}": float((image_places < k).mean()) for k in RECALLS}
    return scores | {"mean": sum(scores.values()) / len(scores)}


def _scores(matrix: Any) -> Array:
    # A score that is no number finds nothing.
    return np.nan_to_num(np.asarray(matrix), nan=-np.inf, posinf=np.inf, neginf=-np.inf)


def _shares(scores: Array, groups: Sequence[str]) -> dict[str, float]:
    names = np.asarray(groups, dtype=object)
    shares = {"accuracy": float(scores.mean())}
    for group in sorted(set(groups) - {""}):
        shares[f"accuracy/{group}"] = float(scores[names == group].mean())
    return shares


# The normalisation of the official VQA evaluation (GT-Vision-Lab/VQA, vqaEval.py), which drops punctuation and
# articles, writes numbers as digits and restores apostrophes.
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_ARTICLES = {"a", "an", "the"}
_DIGITS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_DIGITS.split())}
_APOSTROPHES = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# Each is known by what is left of it without one of its apostrophes.
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _APOSTROPHES.split()
    for place, sign in enumerate(word)
    if sign == "'"
}
_CONTRACTIONS["somebody'd"] = "somebodyd"  # the official table has it the wrong way round


def normalize_answer(text: str) -> str:
    """Return an answer as the official evaluation compares it."""
    text = _strip_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _strip_punctuation(text: str) -> str:
    stripped = text
    has_digit_comma = _DIGIT_COMMA.search(text) is not None
    for sign in _PUNCTUATION:
        apart = f"{sign} " in text or f" {sign}" in text
        stripped = stripped.replace(sign, "" if apart or has_digit_comma else " ")
    return _PERIOD.sub("", stripped)
