"""Read sentences, questions and captions word by word: slow, and unaware of how they were made."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from madtp_cli.data.scenes import SceneObject

Objects = Sequence[SceneObject]
NUMBERS = {"a": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
_NP = r"((?:small |large )?(?:[a-z]+ )?(?:objects?|circles?|squares?|triangles?))"
_SIDE = r"(left|right)"
_N = r"(one|two|three|four|five|six)"


def count(phrase: str, objects: Objects) -> int:
    """Count the objects that a noun phrase such as `small red circles` describes."""
    words = phrase.split()
    noun = words[-1].rstrip("s")
    total = 0
    for thing in objects:
        fits = noun in ("object", thing.shape)
        for word in words[:-1]:
            fits = fits and word in (thing.size, thing.colour)
        total += fits
    return total


Reader = Callable[[Objects, Objects, tuple[str, ...]], bool]


def _side(left: Objects, right: Objects, name: str) -> Objects:
    return left if name == "left" else right


def _bounded(bound: str, number: str, counted: int) -> bool:
    wanted = NUMBERS[number]
    return {
        "exactly": counted == wanted,
        "at least": counted >= wanted,
        "at most": counted <= wanted,
    }[bound]


def _more(word: str, one: int, other: int) -> bool:
    return one > other if word == "more" else one < other


_BOUND = r"(exactly|at least|at most)"
_PATTERNS: list[tuple[str, Reader]] = [
    (rf"there is a {_NP} in the {_SIDE} image", lambda a, b, g: count(g[0], _side(a, b, g[1])) > 0),
    (rf"the {_SIDE} image contains a {_NP}", lambda a, b, g: count(g[1], _side(a, b, g[0])) > 0),
    (
        rf"there is no {_NP} in the {_SIDE} image",
        lambda a, b, g: count(g[0], _side(a, b, g[1])) == 0,
    ),
    (rf"the {_SIDE} image contains no {_NP}", lambda a, b, g: count(g[1], _side(a, b, g[0])) == 0),
    (
        rf"there (?:is|are) {_BOUND} {_N} {_NP} in the {_SIDE} image",
        lambda a, b, g: _bounded(g[0], g[1], count(g[2], _side(a, b, g[3]))),
    ),
    (
        rf"the {_SIDE} image contains {_BOUND} {_N} {_NP}",
        lambda a, b, g: _bounded(g[1], g[2], count(g[3], _side(a, b, g[0]))),
    ),
    (
        rf"(?:both images contain|each image contains) a {_NP}",
        lambda a, b, g: min(count(g[0], a), count(g[0], b)) > 0,
    ),
    (
        rf"there is a {_NP} in both images",
        lambda a, b, g: min(count(g[0], a), count(g[0], b)) > 0,
    ),
    (
        rf"(?:exactly|only) one image contains a {_NP}",
        lambda a, b, g: (count(g[0], a) > 0) + (count(g[0], b) > 0) == 1,
    ),
    (
        rf"there is a {_NP} in exactly one image",
        lambda a, b, g: (count(g[0], a) > 0) + (count(g[0], b) > 0) == 1,
    ),
    (
        rf"(?:neither image contains a {_NP}|there is no {_NP} in either image)",
        lambda a, b, g: count(g[0] or g[1], [*a, *b]) == 0,
    ),
    (
        rf"(?:at least one image contains a {_NP}|there is a {_NP} in at least one image)",
        lambda a, b, g: count(g[0] or g[1], [*a, *b]) > 0,
    ),
    (
        rf"the {_SIDE} image contains (more|fewer) {_NP} than the (?:left|right) image",
        lambda a, b, g: _more(g[1], *(count(g[2], side) for side in ((a, b) if g[0] == "left" else (b, a)))),
    ),
    (
        rf"there are (more|fewer) {_NP} in the {_SIDE} image than the (?:left|right)",
        lambda a, b, g: _more(g[0], *(count(g[1], side) for side in ((a, b) if g[2] == "left" else (b, a)))),
    ),
    (
        rf"both images contain the same number of {_NP}",
        lambda a, b, g: count(g[0], a) == count(g[0], b),
    ),
    (
        rf"the (?:left|right) image contains as many {_NP} as the (?:left|right) image",
        lambda a, b, g: count(g[0], a) == count(g[0], b),
    ),
    (
        rf"in the {_SIDE} image there are (more|fewer) {_NP} than {_NP}",
        lambda a, b, g: _more(g[1], *(count(phrase, _side(a, b, g[0])) for phrase in g[2:])),
    ),
    (
        rf"the {_SIDE} image contains (more|fewer) {_NP} than {_NP}",
        lambda a, b, g: _more(g[1], *(count(phrase, _side(a, b, g[0])) for phrase in g[2:])),
    ),
    (
        rf"(?:in total there (?:is|are) exactly {_N} {_NP}"
        rf"|there (?:is|are) exactly {_N} {_NP} in both images together)",
        lambda a, b, g: count(g[1] or g[3], [*a, *b]) == NUMBERS[g[0] or g[2]],
    ),
]


def is_true(sentence: str, left: Objects, right: Objects) -> bool:
    """Decide whether a sentence is true of two lists of objects; exactly one pattern must fit."""
    fits = [(m, read) for p, read in _PATTERNS if (m := re.fullmatch(p, sentence))]
    assert len(fits) == 1, sentence
    match, read = fits[0]
    return read(left, right, match.groups())


def first_phrase(sentence: str) -> str:
    """Find the first noun phrase of a sentence."""
    adjectives = {"small", "large", "red", "green", "blue", "yellow", "pink", "cyan"}
    nouns = {"object", "circle", "square", "triangle"}
    words = sentence.split()
    end = next(i for i, word in enumerate(words) if word.rstrip("s") in nouns)
    start = end
    while words[start - 1] in adjectives:
        start -= 1
    return " ".join(words[start : end + 1])


def answers(question: str, objects: Objects) -> set[str]:
    """Collect every answer that some object gives to a question."""
    words = question.split()
    if words[0] == "is":
        return {"yes" if count(first_phrase(question), objects) else "no"}
    if words[:2] == ["how", "many"]:
        names = {number: word for word, number in NUMBERS.items()}
        return {names[count(first_phrase(question), objects)]}
    phrase = first_phrase(question)
    return {getattr(o, words[1]) for o in objects if count(phrase, [o])}


def caption_holds(caption: str, objects: Objects) -> bool:
    """Decide whether objects hold at least everything that a caption names."""
    for part in caption.split(" and "):
        number, phrase = part.split(" ", 1)
        if count(phrase, objects) < NUMBERS[number]:
            return False
    return True


def caption_total(caption: str) -> int:
    """Count the objects that a caption names."""
    return sum(NUMBERS[part.split()[0]] for part in caption.split(" and "))
