"""Texts are cleaned as BLIP's checkpoints were trained on them; oracles are worked out by hand."""

from __future__ import annotations

import pytest

from madtp_cli.data.words import answer_weights, clean_caption, clean_question


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("A man.Riding  a  Horse!", "a man riding a horse"),
        ('"Two" (red) cats; #3 *new*: ok~', "two red cats 3 new ok"),
        ("t-shirt, man's, what?", "t-shirt, man's, what?"),
        (" \n spaces\n\nhere \n", "spaces here"),
        ("one two three four five six", "one two three four five"),
    ],
)
def test_captions_have_spaces_for_punctuation_and_a_limit(text: str, clean: str) -> None:
    assert clean_caption(text, 5 if "six" in text else 30) == clean


def test_questions_lose_punctuation_without_a_space_and_keep_question_marks() -> None:
    assert clean_question("What's the U.S. flag (left) doing?  ") == "what's the us flag left doing?"
    assert clean_question("a b c d", max_words=2) == "a b"


def test_an_answer_weighs_its_share_of_annotators_in_order_of_mention() -> None:
    weights = answer_weights(("yes", "no", "yes", "yes"))
    assert list(weights) == ["yes", "no"]
    assert weights == pytest.approx({"yes": 0.75, "no": 0.25})
    assert answer_weights(()) == {}
