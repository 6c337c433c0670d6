"""True and false sentences about pairs of scenes: vocabulary, families, truth and wording.

Labels leak through neither the words nor the images, by construction: within a block of pairs
every pair gets as many true as false sentences, and every sentence is used exactly twice, once for
a pair of which it is true and once for a pair of which it is false.
Shapes: P pairs of a block, U sentences (each used twice), K candidates tried for one sentence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from madtp_cli.data.scenes import (
    ANY_COLOUR,
    ANY_SHAPE,
    ANY_SIZE,
    COLOURS,
    MAX_OBJECTS,
    SHAPES,
    SIZES,
    TABLE,
    Scenes,
)

Array = NDArray[Any]

PAD, UNK, CLS, SEP, DEC, ENC = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", "[ENC]"
NUMBERS = ("one", "two", "three", "four", "five", "six")
_WORDS = """
    the a there is are no and of in than as many total together
    left right image images both each either neither only exactly at least most
    contain contains more fewer same number object objects
    how what colour shape size yes
"""
VOCABULARY: tuple[str, ...] = (  # in the order of BERT's vocab.txt
    *(PAD, UNK, CLS, SEP, "[MASK]", DEC, ENC),
    *_WORDS.split(),
    *(*NUMBERS, *SIZES, *COLOURS, *SHAPES, *(f"{shape}s" for shape in SHAPES)),
)
TOKEN_IDS = {word: index for index, word in enumerate(VOCABULARY)}
MAX_TOKENS = 16  # of a sentence about a pair, with [ENC] and [SEP]


def token_ids(sentence: str) -> list[int]:
    """Look up the ids of [ENC], the sentence's words and [SEP]."""
    return words_ids(ENC, sentence)


def words_ids(first: str, sentence: str) -> list[int]:
    """Look up the ids of a special token, the sentence's words and [SEP]."""
    unknown = TOKEN_IDS[UNK]
    ids = [TOKEN_IDS.get(word, unknown) for word in sentence.split()]
    return [TOKEN_IDS[first], *ids, TOKEN_IDS[SEP]]


# Noun phrases are numbered as the cells of the count table [shape, colour, size], flattened.
PHRASES = int(np.prod(TABLE))


@functools.cache
def phrase_words(phrase: int, plural: bool) -> str:
    """Word a noun phrase without its article: `large red circles`."""
    shape, colour, size = np.unravel_index(phrase, TABLE)
    words = ["object" if shape == ANY_SHAPE else SHAPES[shape]]
    if colour != ANY_COLOUR:
        words.insert(0, COLOURS[colour])
    if size != ANY_SIZE:
        words.insert(0, SIZES[size])
    return " ".join(words) + ("s" if plural else "")


@dataclass(frozen=True)
class Counts:
    """Hold what decides the truth of sentences: arrays of one shape, one entry per sentence."""

    here: Array
    """Count of the first noun phrase in the image that the sentence names first."""
    there: Array
    """Count of the first noun phrase in the other image."""
    second: Array
    """Count of the second noun phrase in the image that the sentence names first."""
    number: Array
    """1..6"""
    more: Array
    """bool: whether a comparison says `more` rather than `fewer`."""


@dataclass(frozen=True)
class Family:
    """Define one kind of sentence.

    `relevant` keeps sentences that are worth asking of a pair; it must hold for the pair of which
    a sentence is true and for the pair of which it is false, so it says nothing about the label.
    """

    truth: Callable[[Counts], Array]
    wordings: tuple[str, ...]
    relevant: Callable[[Counts], Array] = lambda c: c.number > 0
    two_phrases: bool = False


# {a} and {an}: the noun phrase in singular and plural; {n}: it as the number wants it; {b}: the
# second noun phrase, plural; {k}: the number; {is_}: is or are; {more}: more or fewer.
FAMILIES: dict[str, Family] = {
    "exists": Family(
        lambda c: c.here > 0,
        (
            "there is a {a} in the {side} image",
            "the {side} image contains a {a}",
        ),
    ),
    "absent": Family(
        lambda c: c.here == 0,
        (
            "there is no {a} in the {side} image",
            "the {side} image contains no {a}",
        ),
    ),
    "exactly": Family(
        lambda c: c.here == c.number,
        (
            "there {is_} exactly {k} {n} in the {side} image",
            "the {side} image contains exactly {k} {n}",
        ),
    ),
    "at_least": Family(
        lambda c: c.here >= c.number,
        (
            "there are at least {k} {n} in the {side} image",
            "the {side} image contains at least {k} {n}",
        ),
        relevant=lambda c: c.number >= 2,  # at least one is `exists`
    ),
    "at_most": Family(
        lambda c: c.here <= c.number,
        (
            "there {is_} at most {k} {n} in the {side} image",
            "the {side} image contains at most {k} {n}",
        ),
    ),
    "both": Family(
        lambda c: (c.here > 0) & (c.there > 0),
        (
            "both images contain a {a}",
            "each image contains a {a}",
            "there is a {a} in both images",
        ),
    ),
    "one_image": Family(
        lambda c: (c.here > 0) ^ (c.there > 0),
        (
            "exactly one image contains a {a}",
            "only one image contains a {a}",
            "there is a {a} in exactly one image",
        ),
    ),
    "neither": Family(
        lambda c: (c.here == 0) & (c.there == 0),
        (
            "neither image contains a {a}",
            "there is no {a} in either image",
        ),
    ),
    "any_image": Family(
        lambda c: (c.here > 0) | (c.there > 0),
        (
            "at least one image contains a {a}",
            "there is a {a} in at least one image",
        ),
    ),
    "compare": Family(
        lambda c: np.where(c.more, c.here > c.there, c.here < c.there),
        (
            "the {side} image contains {more} {an} than the {other} image",
            "there are {more} {an} in the {side} image than the {other}",
        ),
        relevant=lambda c: c.here + c.there > 0,
    ),
    "same_number": Family(
        lambda c: c.here == c.there,
        (
            "both images contain the same number of {an}",
            "the {side} image contains as many {an} as the {other} image",
        ),
        relevant=lambda c: c.here + c.there > 0,
    ),
    "within": Family(
        lambda c: np.where(c.more, c.here > c.second, c.here < c.second),
        (
            "in the {side} image there are {more} {an} than {b}",
            "the {side} image contains {more} {an} than {b}",
        ),
        relevant=lambda c: c.here + c.second > 0,
        two_phrases=True,
    ),
    "total": Family(
        lambda c: c.here + c.there == c.number,
        (
            "in total there {is_} exactly {k} {n}",
            "there {is_} exactly {k} {n} in both images together",
        ),
    ),
}
FAMILY_NAMES = tuple(FAMILIES)

# Shares of noun phrases by what they name: (shape, colour, size).
_NAMED = np.array(
    [(1, 1, 0), (0, 1, 0), (1, 0, 0), (0, 0, 0), (1, 0, 1), (0, 1, 1), (0, 0, 1), (1, 1, 1)],
    dtype=bool,
)
_NAMED_SHARES = (0.30, 0.22, 0.20, 0.04, 0.07, 0.06, 0.05, 0.06)
_NUMBER_SHARES = (0.26, 0.26, 0.20, 0.14, 0.08, 0.06)
_FROM_SCENE = 0.5  # share of noun phrases that describe an object of one of the pairs
CANDIDATES = 32
SENTENCES_PER_PAIR = 8


@dataclass(frozen=True)
class Sentences:
    """Hold the sentences of a block, ordered by pair: S = P * 8."""

    texts: tuple[str, ...]
    tokens: tuple[list[int], ...]
    labels: Array  # [S] bool
    families: tuple[str, ...]
    text_counts: Array  # [S, 2] count of the first noun phrase in the left and in the right image


@dataclass(frozen=True)
class _Candidates:
    """Hold the parameters of candidate sentences, [U, K] each."""

    first: Array  # noun phrase
    second: Array  # noun phrase
    side: Array  # the image that is named first: 0 left, 1 right
    number: Array
    more: Array
    wording: Array

    def counts(self, tables: Array, pairs: Array) -> Counts:
        """Read the counts that candidates see when they are said of these pairs [U]."""
        pairs = pairs[:, None]
        return Counts(
            here=tables[pairs, self.side, self.first],
            there=tables[pairs, 1 - self.side, self.first],
            second=tables[pairs, self.side, self.second],
            number=self.number,
            more=self.more,
        )


def write_sentences(rng: np.random.Generator, scenes: Scenes) -> Sentences:
    """Write 8 sentences, 4 true and 4 false, for each pair of scenes (0, 1), (2, 3), ..."""
    pairs = len(scenes) // 2
    tables = scenes.count_table().reshape(pairs, 2, PHRASES)
    true_of, false_of = _match_pairs(rng, tables)
    written = _write(rng, scenes, tables, true_of, false_of)
    # Two uses of each sentence, sorted by pair and in random order within it.
    users = np.concatenate([true_of, false_of])
    order = np.lexsort((rng.random(len(users)), users))
    uses = [written[use % len(true_of)] for use in order]
    phrases = np.array([phrase for _, _, phrase in uses])
    token_lists = [token_ids(text) for text, _, _ in written]
    return Sentences(
        texts=tuple(text for text, _, _ in uses),
        tokens=tuple(token_lists[use % len(true_of)] for use in order),
        labels=order < len(true_of),
        families=tuple(family for _, family, _ in uses),
        text_counts=tables[users[order], :, phrases].astype(np.int64),
    )


def _match_pairs(rng: np.random.Generator, tables: Array) -> tuple[Array, Array]:
    """Give each sentence a pair of which it shall be true and one of which it shall be false.

    The two pairs differ in some count, so such a sentence exists. Returns [U], [U].
    """
    pairs = len(tables)
    flat = tables.reshape(pairs, -1)
    differ = (flat[:, None] != flat[None]).any(-1)  # [P, P]
    true_of = np.repeat(np.arange(pairs), SENTENCES_PER_PAIR // 2)
    false_of = rng.permutation(true_of)
    while (clash := np.flatnonzero(~differ[true_of, false_of])).size:
        for slot in clash:
            other = rng.integers(len(false_of))
            false_of[[slot, other]] = false_of[[other, slot]]
    return true_of, false_of


def _write(
    rng: np.random.Generator, scenes: Scenes, tables: Array, true_of: Array, false_of: Array
) -> list[tuple[str, str, int]]:
    """Find each sentence: (text, family, first noun phrase), no text twice."""
    slots = len(true_of)
    wanted = (np.arange(slots) + rng.integers(len(FAMILIES))) % len(FAMILIES)
    wanted = rng.permutation(wanted)
    found: dict[int, tuple[str, str, int]] = {}
    used: set[str] = set()
    attempt = 0
    while len(found) < slots:
        open_slots = np.array([slot for slot in range(slots) if slot not in found])
        if attempt >= 3:  # This family has nothing that tells these pairs apart: take another.
            wanted[open_slots] = rng.integers(len(FAMILIES), size=len(open_slots))
        attempt += 1
        a, b = true_of[open_slots], false_of[open_slots]
        candidates = _draw(rng, scenes, tables, a, b)
        fit = _fitting(candidates, tables, a, b, wanted[open_slots])
        for row, slot in enumerate(open_slots.tolist()):
            family = FAMILY_NAMES[wanted[slot]]
            for column in np.flatnonzero(fit[row]).tolist():
                text = _word(family, candidates, row, column)
                if text not in used:
                    used.add(text)
                    found[slot] = (text, family, int(candidates.first[row, column]))
                    break
    return [found[slot] for slot in range(slots)]


def _draw(rng: np.random.Generator, scenes: Scenes, tables: Array, a: Array, b: Array) -> _Candidates:
    """Draw the parameters of K candidate sentences for each slot."""
    shape = (len(a), CANDIDATES)
    candidates = _Candidates(
        first=_draw_phrases(rng, scenes, a, b),
        second=_draw_phrases(rng, scenes, a, b),
        side=rng.integers(2, size=shape),
        number=rng.choice(np.arange(1, MAX_OBJECTS + 1), p=_NUMBER_SHARES, size=shape),
        more=rng.random(shape) < 0.5,
        wording=rng.integers(12, size=shape),
    )
    # Half of the numbers are ones that pair a shows, or large numbers would hardly ever be true.
    counts = candidates.counts(tables, a)
    shown = counts.here + np.where(rng.random(shape) < 0.5, counts.there, 0)
    shown = np.clip(shown, 1, MAX_OBJECTS)
    number = np.where(rng.random(shape) < 0.5, shown, candidates.number)
    return replace(candidates, number=number)


def _draw_phrases(rng: np.random.Generator, scenes: Scenes, a: Array, b: Array) -> Array:
    """Draw noun phrases [U, K], some of them about objects of the pairs a and b."""
    shape = (len(a), CANDIDATES)
    pairs = np.where(rng.random(shape) < 0.5, a[:, None], b[:, None])
    images = 2 * pairs + rng.integers(2, size=shape)
    number = (scenes.shape >= 0).sum(1)
    places = (rng.random(shape) * number[images]).astype(np.int64)
    from_scene = rng.random(shape) < _FROM_SCENE
    named = _NAMED[rng.choice(len(_NAMED), p=_NAMED_SHARES, size=shape)]  # [U, K, 3]
    index = np.zeros(shape, dtype=np.int64)
    for axis, values in enumerate((scenes.shape, scenes.colour, scenes.size)):
        anything = TABLE[axis] - 1
        value = np.where(from_scene, values[images, places], rng.integers(anything, size=shape))
        index = index * TABLE[axis] + np.where(named[..., axis], value, anything)
    return index


def _fitting(candidates: _Candidates, tables: Array, a: Array, b: Array, families: Array) -> Array:
    """Mark candidates that are true of pair a, false of pair b and fit for both: bool [U, K]."""
    of_a, of_b = candidates.counts(tables, a), candidates.counts(tables, b)
    fit = np.zeros(candidates.first.shape, dtype=bool)
    for index, family in enumerate(FAMILIES.values()):
        rows = np.flatnonzero(families == index)
        here_a, here_b = _take(of_a, rows), _take(of_b, rows)
        good = family.truth(here_a) & ~family.truth(here_b)
        good &= family.relevant(here_a) & family.relevant(here_b)
        if family.two_phrases:
            good &= candidates.first[rows] != candidates.second[rows]
        fit[rows] = good
    return fit


def _take(counts: Counts, rows: Array) -> Counts:
    return Counts(**{name: values[rows] for name, values in vars(counts).items()})


def _word(family: str, candidates: _Candidates, row: int, column: int) -> str:
    wordings = FAMILIES[family].wordings
    first, second = int(candidates.first[row, column]), int(candidates.second[row, column])
    number = int(candidates.number[row, column])
    sides = ("left", "right") if candidates.side[row, column] == 0 else ("right", "left")
    wording = int(candidates.wording[row, column]) % len(wordings)
    return wordings[wording].format(
        a=phrase_words(first, False),
        an=phrase_words(first, True),
        n=phrase_words(first, number > 1),
        b=phrase_words(second, True),
        k=NUMBERS[number - 1],
        is_="are" if number > 1 else "is",
        more="more" if candidates.more[row, column] else "fewer",
        side=sides[0],
        other=sides[1],
    )
