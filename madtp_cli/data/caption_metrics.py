"""How good captions are: CIDEr-D and BLEU-4 without Java, and the official scores where their package and Java are.

The official evaluation tokenizes with Stanford's PTB tokenizer, which is a Java program. The tokenizer here follows
its rules for what captions contain; scores made with it are named `*_javafree`, because they can differ a little.
"""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from typing import Any

NGRAMS = 4
_SIGMA = 6.0  # of CIDEr-D's penalty on differing lengths
_ABBREVIATIONS = "mr|mrs|ms|dr|st|jr|sr|vs|etc|ft"
_TOKEN = re.compile(
    r"(?:[a-z]\.){2,}"  # u.s.
    rf"|\b(?:{_ABBREVIATIONS})\."
    r"|\d+(?:[.,:/]\d+)+(?!\w)"  # 1,000 10:30
    r"|'\d0s"
    r"|\w+(?:[-./&']\w+)*"  # t-shirt o'clock
    r"|[^\s\w]"
)
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_DROPPED = frozenset("'\"`.?!,:;-\u2026\u2013\u2014")
_SPLIT = re.compile(r"(.+?)(n't|'(?:s|re|ve|ll|d|m))")
_PAIRS = {"cannot": "can not", "gonna": "gon na", "wanna": "wan na", "gotta": "got ta", "gimme": "gim me"}


def tokenize(text: str) -> list[str]:
    """Split a caption into lower-case tokens without punctuation, nearly as the PTB tokenizer does."""
    tokens: list[str] = []
    for token in _TOKEN.findall(text.lower().translate(_QUOTES)):
        parts = _SPLIT.fullmatch(token)
        tokens += parts.groups() if parts else _PAIRS.get(token, _BRACKETS.get(token, token)).split()
    return [token for token in tokens if token not in _DROPPED]


def caption_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]], groups: Sequence[str] = ()
) -> dict[str, float]:
    """Return `cider_javafree` (1.333 is published as 133.3) and `bleu4_javafree` (0..1) of a whole split."""
    said = [tokenize(text) for text in predictions]
    meant = [[tokenize(text) for text in texts] for texts in references]
    return {"cider_javafree": cider(said, meant), "bleu4_javafree": bleu4(said, meant)}


def cider(said: Sequence[Sequence[str]], meant: Sequence[Sequence[Sequence[str]]]) -> float:
    """Return CIDEr-D of tokenized captions (Vedantam et al., CVPR 2015), its scale divided by 100.

    Document frequencies come from the references themselves, so fewer images give another score; one image gives 0.
    """
    frequency: Counter[tuple[str, ...]] = Counter()
    for texts in meant:
        frequency.update({gram for text in texts for gram in _grams(text)})
    images = math.log(max(len(meant), 1))

    def vectors(text: Sequence[str]) -> list[dict[tuple[str, ...], float]]:
        split: list[dict[tuple[str, ...], float]] = [{} for _ in range(NGRAMS)]
        for gram, count in _grams(text).items():
            split[len(gram) - 1][gram] = count * (images - math.log(max(1, frequency[gram])))
        return split

    total = 0.0
    for text, texts in zip(said, meant, strict=True):
        own = vectors(text)
        score = 0.0
        for reference in texts:
            # The official code measures the length in pairs of words.
            apart = max(len(text) - 1, 0) - max(len(reference) - 1, 0)
            penalty = math.exp(-(apart**2) / (2 * _SIGMA**2))
            score += penalty * sum(map(_clipped_cosine, own, vectors(reference))) / NGRAMS
        total += 10 * score / max(len(texts), 1)
    return total / max(len(said), 1)


def bleu4(said: Sequence[Sequence[str]], meant: Sequence[Sequence[Sequence[str]]]) -> float:
    """Return corpus BLEU-4 of tokenized captions (Papineni et al., ACL 2002) with the closest reference length."""
    guessed, correct = [0] * NGRAMS, [0] * NGRAMS
    length = reference_length = 0
    for text, texts in zip(said, meant, strict=True):
        length += len(text)
        reference_length += min((abs(len(other) - len(text)), len(other)) for other in texts)[1]
        most: Counter[tuple[str, ...]] = Counter()
        for other in texts:
            most |= _grams(other)
        for gram, count in _grams(text).items():
            guessed[len(gram) - 1] += count
            correct[len(gram) - 1] += min(count, most[gram])
    if not all(correct):
        return 0.0
    precision = math.exp(sum(math.log(c / g) for c, g in zip(correct, guessed, strict=True)) / NGRAMS)
    return precision * min(1.0, math.exp(1 - reference_length / length))


def _grams(text: Sequence[str]) -> Counter[tuple[str, ...]]:
    """Count the runs of 1 to 4 tokens."""
    return Counter(tuple(text[i : i + n]) for n in range(1, NGRAMS + 1) for i in range(len(text) - n + 1))


def _clipped_cosine(own: dict[tuple[str, ...], float], other: dict[tuple[str, ...], float]) -> float:
    norm = math.sqrt(sum(v * v for v in own.values()) * sum(v * v for v in other.values()))
    shared = sum(min(value, other.get(gram, 0.0)) * other.get(gram, 0.0) for gram, value in own.items())
    return shared / norm if norm else 0.0


_OFFICIAL = {
    "cider": ("cider", "Cider"),
    "bleu4": ("bleu", "Bleu"),
    "meteor": ("meteor", "Meteor"),
    "spice": ("spice", "Spice"),
}


@dataclass(frozen=True)
class OfficialScores:
    """Hold the official scores that could be computed, and why the others could not."""

    scores: dict[str, float]
    failures: dict[str, str]


def official_unavailable() -> str | None:
    """Return why the official scores cannot be computed here, or None where they can."""
    if find_spec("pycocoevalcap") is None:
        return "pycocoevalcap is not installed; try pip install 'madtp[caption]'"
    if shutil.which("java") is None:
        return "Java is not installed, and the official tokenizer, METEOR and SPICE are Java programs; install a JRE"
    return None


def official_caption_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> OfficialScores:
    """Return `cider`, `bleu4`, `meteor` and `spice` of the official evaluation; each failure spares the others."""
    if (reason := official_unavailable()) is not None:
        return OfficialScores({}, dict.fromkeys(_OFFICIAL, reason))
    try:
        said, meant = _official_tokens(predictions, references)
    except Exception as error:
        return OfficialScores({}, dict.fromkeys(_OFFICIAL, _reason(error)))
    scores: dict[str, float] = {}
    failures: dict[str, str] = {}
    for name in _OFFICIAL:
        try:
            with redirect_stdout(StringIO()):  # it prints, and stdout is for results
                value, _ = _official_scorer(name).compute_score(meant, said)
            scores[name] = float(value[-1] if isinstance(value, list) else value)
        except Exception as error:  # Java that fails, a model that SPICE cannot download, a pipe that breaks
            failures[name] = _reason(error)
    return OfficialScores(scores, failures)


def _official_tokens(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    tokenizer = import_module("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    said = {row: [{"caption": text}] for row, text in enumerate(predictions)}
    meant = {row: [{"caption": text} for text in texts] for row, texts in enumerate(references)}
    return tokenizer.tokenize(said), tokenizer.tokenize(meant)


def _official_scorer(name: str) -> Any:
    folder, scorer = _OFFICIAL[name]
    return getattr(import_module(f"pycocoevalcap.{folder}.{folder}"), scorer)()


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
