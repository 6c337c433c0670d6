"""CIDEr-D and BLEU-4: by hand, and by the official evaluation where it can run."""

from __future__ import annotations

import math

import pytest

from madtp_cli.data import caption_metrics
from madtp_cli.data.caption_metrics import (
    bleu4,
    caption_scores,
    cider,
    official_caption_scores,
    official_unavailable,
    tokenize,
)

SAID = ["a man riding a horse on the beach", "two dogs play with a red ball", "a plate of food on a table"]
MEANT = [
    ["A man rides a horse on the beach.", "a man riding a brown horse near the sea", "Someone's riding."],
    ["Two dogs are playing with a ball!", "dogs play with a red ball in the grass"],
    ["A plate of food is on the table.", "there isn't much food (on the plate)"],
]
# What pycocoevalcap 1.2 with Java 17 gives for them.
OFFICIAL_CIDER, OFFICIAL_BLEU4 = 3.582741505351006, 0.7057598337680149


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A man's dog can't run; it won't, they've gone.", "a man 's dog ca n't run it wo n't they 've gone"),
        ("The boys' bikes (two) are “new” & 50% off!", "the boys bikes -lrb- two -rrb- are new & 50 % off"),
        ("A t-shirt, black/white, at 10:30 a.m. in the U.S.", "a t-shirt black/white at 10:30 a.m. in the u.s."),
        ("Mr. Smith's 1,000 dollars... $5.50 and #3", "mr. smith 's 1,000 dollars $ 5.50 and # 3"),
        ("I'm gonna cannot go, let's go -- now", "i 'm gon na can not go let 's go now"),
        ("'stop' near St. James St.", "stop near st. james st."),
        ("o'clock 80's two-story", "o'clock 80 's two-story"),
    ],
)
def test_tokens_are_those_of_the_ptb_tokenizer(text: str, tokens: str) -> None:
    """Oracle: the output of Stanford's tokenizer without the punctuation that the official evaluation drops."""
    assert " ".join(tokenize(text)) == tokens


def test_scores_equal_the_official_ones() -> None:
    """Oracle: recorded results of the official package."""
    scores = caption_scores(SAID, MEANT, [""] * 3)
    assert scores["cider_javafree"] == pytest.approx(OFFICIAL_CIDER, abs=1e-9)
    assert scores["bleu4_javafree"] == pytest.approx(OFFICIAL_BLEU4, abs=1e-6)


def test_what_is_said_as_it_is_meant_is_perfect() -> None:
    """A caption equal to its only reference has cosine 1 in every n-gram, and CIDEr's scale is 10."""
    texts = [["one", "two", "three", "four", str(n)] for n in range(3)]
    unlike = [[f"{n}{word}" for word in "abcde"] for n in range(3)]
    assert cider(unlike, [[text] for text in unlike]) == pytest.approx(10)
    assert bleu4(texts, [[text] for text in texts]) == pytest.approx(1)


def test_words_of_every_image_count_nothing() -> None:
    assert cider([["a", "b"]] * 3, [[["a", "b"]]] * 3) == 0.0
    assert cider([["a", "b"]], [[["a", "b"]]]) == 0.0  # one image: every word is in every image


def test_bleu_by_hand() -> None:
    """A letter is a word. A word wrong in the middle of five leaves no right run of four; a short caption pays."""
    assert bleu4([list("abxde")], [[list("abcde")]]) == 0.0
    assert bleu4([list("abcd")], [[list("abcdef")]]) == pytest.approx(math.exp(1 - 6 / 4))
    # Of two lengths equally close the shorter one counts, so nothing is paid.
    assert bleu4([list("abcde")], [[list("abcdef"), list("abcd")]]) == pytest.approx(1)
    # The last of six words is wrong: 5 of 6, 4 of 5, 3 of 4, 2 of 3.
    assert bleu4([list("abcdex")], [[list("abcdef")]]) == pytest.approx((5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)
    assert bleu4([[]], [[list("a")]]) == 0.0


def test_without_the_package_or_java_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_metrics, "find_spec", lambda name: None)
    assert official_unavailable() == "pycocoevalcap is not installed; try pip install 'madtp[caption]'"
    result = official_caption_scores(SAID, MEANT)
    assert result.scores == {}
    assert set(result.failures) == {"cider", "bleu4", "meteor", "spice"}
    monkeypatch.setattr(caption_metrics, "find_spec", lambda name: object())
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "Java is not installed" in str(official_unavailable())


def test_a_score_that_fails_spares_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Scorer:
        def __init__(self, name: str) -> None:
            self.name = name

        def compute_score(self, meant: object, said: object) -> tuple[object, None]:
            print("noise")
            if self.name == "spice":
                raise OSError("no network")
            return ([0.1, 0.2, 0.3, 0.4] if self.name == "bleu4" else 1.5), None

    monkeypatch.setattr(caption_metrics, "official_unavailable", lambda: None)
    monkeypatch.setattr(caption_metrics, "_official_tokens", lambda said, meant: ({}, {}))
    monkeypatch.setattr(caption_metrics, "_official_scorer", Scorer)
    result = official_caption_scores(SAID, MEANT)
    assert result.scores == {"cider": 1.5, "bleu4": 0.4, "meteor": 1.5}
    assert result.failures == {"spice": "OSError: no network"}
    assert capsys.readouterr().out == ""


def test_a_tokenizer_that_fails_is_the_reason_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(said: object, meant: object) -> None:
        raise RuntimeError("java: out of  memory")

    monkeypatch.setattr(caption_metrics, "official_unavailable", lambda: None)
    monkeypatch.setattr(caption_metrics, "_official_tokens", broken)
    assert official_caption_scores(SAID, MEANT).failures["cider"] == "RuntimeError: java: out of memory"


@pytest.mark.skipif(official_unavailable() is not None, reason="needs the extra [caption] and Java")
def test_the_official_evaluation_gives_the_recorded_scores() -> None:
    scores = official_caption_scores(SAID, MEANT).scores
    assert scores["cider"] == pytest.approx(OFFICIAL_CIDER, abs=1e-9)
    assert scores["bleu4"] == pytest.approx(OFFICIAL_BLEU4, abs=1e-6)
