"""Questions about single scenes with their answers, and captions of them.

Shapes: I images, PHRASES noun phrases (cells of the count table, see `sentences.py`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from madtp_cli.data.scenes import COLOURS, SHAPES, SIZES, TABLE, Scenes
from madtp_cli.data.sentences import NUMBERS, PHRASES, phrase_words

Array = NDArray[Any]

QUESTIONS_PER_IMAGE = 4  # how many; what colour, shape or size; is there (yes); is there (no)
MAX_CAPTION_TOKENS = 31  # six different objects with [ENC] and [SEP]
REFERENCES = 3  # captions of one image that name its objects in different orders
_ATTRIBUTES = (("shape", SHAPES), ("colour", COLOURS), ("size", SIZES))
_NAMES = np.stack(np.unravel_index(np.arange(PHRASES), TABLE), axis=1)  # [PHRASES, 3]
_IS_ANY: Array = np.equal(_NAMES, np.array(TABLE) - 1)  # [PHRASES, 3]: the phrase does not name this attribute


@dataclass(frozen=True)
class Question:
    """Hold a question, its accepted answers and its kind: count, shape, colour, size or exists."""

    text: str
    answers: tuple[str, ...]
    kind: str


def write_questions(rng: np.random.Generator, scenes: Scenes) -> list[list[Question]]:
    """Ask 4 questions of each scene, in random order.

    Each yes-or-no question is asked twice, of an image with `yes` and of one with `no`, so that
    its words do not tell its answer.
    """
    tables = scenes.count_table().reshape(len(scenes), PHRASES)
    has = tables > 0
    lacking = _match_images(rng, has)
    asked: list[list[Question]] = [[] for _ in range(len(scenes))]
    for image, other in enumerate(lacking.tolist()):
        phrase = int(rng.choice(np.flatnonzero(has[image] & ~has[other])))
        text = f"is there a {phrase_words(phrase, False)}"
        asked[image].append(Question(text, ("yes",), "exists"))
        asked[other].append(Question(text, ("no",), "exists"))
    for image, questions in enumerate(asked):
        questions += [_how_many(rng, tables[image]), _what(rng, scenes, image, tables[image])]
    return [[questions[place] for place in rng.permutation(4)] for questions in asked]


def _match_images(rng: np.random.Generator, has: Array) -> Array:
    """Give each image another one, each once, that lacks something it has: [I]."""
    own = np.arange(len(has))
    missing: Array = np.any(has[:, None] & ~has[None], axis=-1)  # [I, I]
    other = rng.permutation(own)
    while (clash := np.flatnonzero(~missing[own, other])).size:
        for image in clash:
            swapped = rng.integers(len(other))
            other[[image, swapped]] = other[[swapped, image]]
    return other


def _how_many(rng: np.random.Generator, table: Array) -> Question:
    phrase = int(rng.choice(np.flatnonzero(table > 0)))
    text = f"how many {phrase_words(phrase, True)} are there"
    return Question(text, (NUMBERS[table[phrase] - 1],), "count")


def _what(rng: np.random.Generator, scenes: Scenes, image: int, table: Array) -> Question:
    """Ask for the one attribute that a phrase leaves open and on which its objects agree.

    There always is such a phrase: objects that disagree in every direction would be at least
    2 x 2 x 2, more than a scene holds.
    """
    values = np.stack([scenes.shape[image], scenes.colour[image], scenes.size[image]], axis=1)
    values = values[values[:, 0] >= 0]  # [objects, 3]
    open_questions = []
    for phrase in np.flatnonzero(table > 0).tolist():
        named = (_NAMES[phrase] == values) | _IS_ANY[phrase]
        matching = values[named.all(1)]
        for axis in np.flatnonzero(_IS_ANY[phrase]).tolist():
            if (matching[:, axis] == matching[0, axis]).all():
                open_questions.append((phrase, axis, int(matching[0, axis])))
    phrase, axis, value = open_questions[rng.integers(len(open_questions))]
    attribute, names = _ATTRIBUTES[axis]
    many = bool(table[phrase] > 1)
    text = f"what {attribute} {'are' if many else 'is'} the {phrase_words(phrase, many)}"
    return Question(text, (names[value],), attribute)


def write_captions(rng: np.random.Generator, scenes: Scenes, image: int) -> tuple[str, ...]:
    """Word the same caption with its parts in different orders; sizes are not named."""
    groups = _groups(scenes, image, with_size=False)
    return tuple(" and ".join(groups[place] for place in rng.permutation(len(groups))) for _ in range(REFERENCES))


def full_caption(scenes: Scenes, image: int) -> str:
    """Name every object of a scene with its size, alike ones together, in a fixed order."""
    return " and ".join(_groups(scenes, image, with_size=True))


def _groups(scenes: Scenes, image: int, with_size: bool) -> list[str]:
    """Word the groups of alike objects: `a red circle`, `two blue squares`."""
    objects = scenes.objects(image)
    kinds = Counter((o.size if with_size else "", o.colour, o.shape) for o in objects)
    groups = []
    for (size, colour, shape), number in sorted(kinds.items()):
        words = [NUMBERS[number - 1] if number > 1 else "a", size, colour, shape]
        groups.append(" ".join(filter(None, words)) + ("s" if number > 1 else ""))
    return groups


def identified_images(scenes: Scenes) -> Array:
    """List the images whose full caption is true of no other image of these scenes.

    A caption is true of every image that holds at least all the objects it names.
    """
    table = scenes.count_table()[:, :-1, :-1, :-1].reshape(len(scenes), -1)  # [I, 36]
    holds = (table[None] >= table[:, None]).all(-1)  # [I, I]: the second one holds the first's
    return np.flatnonzero(holds.sum(1) == 1)
