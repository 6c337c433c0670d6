"""Metrics: the official rules, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from madtp_cli.data.metrics import nlvr2_scores, normalize_answer, recalls, vqa_accuracy
from madtp_cli.errors import SourceError


def test_a_sentence_is_consistent_if_it_is_right_on_all_its_pairs() -> None:
    """Oracle: by hand; x is right on both, y on one of two, z on its only one, w on none."""
    groups = ["dev-1--0", "dev-1--0", "dev-1--1", "dev-1--1", "dev-2--0", "dev-3--0"]
    scores = nlvr2_scores([1, 0, 1, 1, 0, 1], [1, 0, 1, 0, 0, 0], groups)
    assert scores == {"accuracy": pytest.approx(4 / 6), "consistency": 0.5}


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("The Dog.", "dog"),
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("dont know", "don't know"),
        ("red, white", "red white"),  # a sign beside a space is dropped
        ("red,white", "red white"),  # a sign between words becomes a space
        ("1,000", "1000"),  # a comma between digits is dropped, and so are all signs then
        ("1,000-2", "10002"),
        ("3.5", "3.5"),
        ("u.s.", "us"),
        ("t-shirt", "t shirt"),
        ("what?!", "what"),
        ("it's\n a\tcat ", "it's cat"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
    ],
)
def test_answers_are_normalised_as_officially(raw: str, normal: str) -> None:
    assert normalize_answer(raw) == normal


@pytest.mark.parametrize(("matching", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_an_answer_is_compared_with_every_nine_of_ten_annotators(matching: int, score: float) -> None:
    """Oracle: 0, 0.3, 0.6, 0.9, 1 are the five values that the official accuracy can have."""
    given = ["cat"] * matching + [f"other {n}" for n in range(10 - matching)]
    assert vqa_accuracy(["The cat"], [given], [""])["accuracy"] == pytest.approx(score)


def test_accuracy_is_reported_per_type_of_answer() -> None:
    references = [["yes"] * 10, ["2"] * 10, ["no"] * 10]
    assert vqa_accuracy(["yes", "three", "yes"], references, ["yes/no", "number", "yes/no"]) == {
        "accuracy": pytest.approx(1 / 3),
        "accuracy/number": 0.0,
        "accuracy/yes/no": 0.5,
    }


def test_answers_all_annotators_agree_on_are_taken_as_they_are() -> None:
    """As in the official code: punctuation of the references goes only where they differ."""
    assert vqa_accuracy(["t-shirt"], [["t-shirt"] * 10], [""])["accuracy"] == 0.0
    assert vqa_accuracy(["t-shirt"], [["t-shirt"] * 9 + ["shirt"]], [""])["accuracy"] == 1.0


@pytest.mark.parametrize(("given", "score"), [(["Two"], 1.0), (["red"], 0.0), (["2", "2"], 1.0), (["2", "red"], 0.5)])
def test_fewer_annotators_suffice(given: list[str], score: float) -> None:
    assert vqa_accuracy(["two"], [given], [""])["accuracy"] == score


def test_questions_without_answers_cannot_be_scored() -> None:
    with pytest.raises(SourceError, match=r"1 of 2 questions have no answers to compare with; VQAv2 publishes none"):
        vqa_accuracy(["a", "b"], [["a"], []], ["", ""])


def test_recalls_of_a_small_gallery_by_hand() -> None:
    """Two images with two texts each. Image 0 ranks 0 2 1 3: found at once. Image 1 ranks 0 1 3 2: at the third place.
    Texts 0, 1 and 3 find their image first, text 2 second."""
    scores = np.array([[0.9, 0.5, 0.8, 0.1], [0.7, 0.4, 0.2, 0.3]])
    found = recalls(scores, scores, [0, 0, 1, 1])
    assert found == {
        "tr@1": 0.5,
        "tr@5": 1.0,
        "tr@10": 1.0,
        "ir@1": 0.75,
        "ir@5": 1.0,
        "ir@10": 1.0,
        "mean": pytest.approx(5.25 / 6),
    }


def test_both_directions_may_have_a_matrix_of_their_own_and_be_tensors() -> None:
    texts, images = torch.eye(12), torch.eye(12).roll(1, 0)
    found = recalls(texts, images, list(range(12)))
    assert found["tr@1"] == 1.0
    assert found["ir@1"] == 0.0


def test_ties_and_numbers_that_are_none_find_nothing() -> None:
    """A model that scores everything alike must not look perfect, whatever the order of the data."""
    for value in (0.0, math.nan):
        flat = np.full((20, 20), value)
        assert recalls(flat, flat, list(range(20)))["mean"] == 0.0


def test_recalls_equal_those_of_sorting() -> None:
    """Oracle: places in sorted lists, on random scores without ties."""
    rng = np.random.default_rng(0)
    scores, owners = rng.random((30, 90)), rng.permutation(np.repeat(np.arange(30), 3))
    found = recalls(scores, scores, owners.tolist())
    texts = [min(np.flatnonzero(owners[np.argsort(-scores[i])] == i)) for i in range(30)]
    images = [int(np.flatnonzero(np.argsort(-scores[:, t]) == owners[t])[0]) for t in range(90)]
    for k in (1, 5, 10):
        assert found[f"tr@{k}"] == pytest.approx(np.mean(np.array(texts) < k))
        assert found[f"ir@{k}"] == pytest.approx(np.mean(np.array(images) < k))
