"""Exported outputs beside expected ones, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from madtp_cli.export.check import compare, groups
from tests.export.tiny_exports import pairs


def outputs(logits: list[list[float]], kept: list[int], places: list[list[int]]) -> dict[str, Tensor]:
    return {
        "logits": torch.tensor(logits),
        "vision_kept": torch.tensor(kept)[:, None],
        "vision_positions": torch.tensor(places),
    }


EXPECTED = outputs([[0.0, 1.0], [2.0, 0.0]], [3, 2], [[0, 4, -1], [0, 7, -2]])


def test_equal_outputs_are_equal() -> None:
    """Also where one side has room for longer samples."""
    wider = outputs([[0.0, 1.0], [2.0, 0.0]], [3, 2], [[0, 4, -1, -2], [0, 7, -2, -2]])
    found = compare([wider], [EXPECTED])
    assert (found.samples, found.same_kept, found.same_answers, found.max_difference) == (2, 1, 1, 0)


def test_numbers_count_where_the_same_tokens_were_kept() -> None:
    """The second sample kept another token, and answers otherwise: its numbers say nothing, its answer counts."""
    other = outputs([[0.0, 1.25], [0.0, 9.0]], [3, 2], [[0, 4, -1], [0, 6, -2]])
    found = compare([other, EXPECTED], [EXPECTED, EXPECTED])
    assert (found.samples, found.same_kept, found.same_answers) == (4, 0.75, 0.75)
    assert found.max_difference == pytest.approx(0.25)


def test_as_many_tokens_in_every_layer_or_they_are_others() -> None:
    assert compare([{**EXPECTED, "vision_kept": torch.tensor([[3], [3]])}], [EXPECTED]).same_kept == 0.5


EMBEDS = {"image_embeds": torch.eye(2), "vision_kept": torch.tensor([[3], [2]])}


def test_embeddings_are_no_answers() -> None:
    assert compare([EMBEDS], [EMBEDS]).same_answers is None
    assert compare([EXPECTED], [EXPECTED]).same_embeds is None


def test_embeddings_are_compared_whatever_was_kept() -> None:
    """The second sample kept other tokens: turned by a cosine of 0.96 it is close, of 0.9 or zero not."""
    other = {"vision_kept": torch.tensor([[3], [1]])}
    for cosine, share in ((0.96, 1.0), (0.9, 0.5), (0.0, 0.5)):
        turned = torch.tensor([[1.0, 0.0], [(1 - cosine**2) ** 0.5, cosine]])
        assert compare([{**other, "image_embeds": turned}], [EMBEDS]).same_embeds == share
    zeroed = compare([{**other, "image_embeds": torch.zeros(2, 2)}], [EMBEDS])
    assert zeroed.same_embeds == 0


def test_nothing_compared_is_no_difference_of_zero() -> None:
    others = {**EXPECTED, "vision_kept": torch.tensor([[1], [1]])}
    found = compare([others], [EXPECTED])
    assert (found.same_kept, found.max_difference) == (0, None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_seen_where_other_tokens_were_kept(value: float) -> None:
    broken = outputs([[0.0, 1.0], [value, 0.0]], [3, 1], [[0, 4, -1], [0, -2, -2]])
    found = compare([EXPECTED, broken], [EXPECTED, EXPECTED])
    assert found.not_finite == ("logits",)
    assert found.max_difference == 0
    assert compare([EXPECTED], [EXPECTED]).not_finite == ()


def test_nan_is_no_agreement() -> None:
    broken = {**EXPECTED, "logits": torch.tensor([[math.nan, 0.0], [2.0, 0.0]])}
    assert compare([broken], [EXPECTED]).max_difference == math.inf


def test_rows_that_are_no_samples_count_where_the_whole_call_kept_the_same() -> None:
    """Three words of two texts: known to be of samples that kept the same only if all did."""
    words = {**EXPECTED, "logits": torch.eye(3)}
    shifted = {**words, "logits": torch.eye(3) + 0.5, "vision_kept": torch.tensor([[3], [1]])}
    assert compare([shifted], [words]).max_difference is None
    same = {**words, "logits": torch.eye(3) + 0.5}
    assert compare([same], [words]).max_difference == pytest.approx(0.5)


def test_a_text_is_the_same_answer_if_all_its_words_are() -> None:
    """Of two samples with two words each, the second has one word that another took the place of."""
    words = {**EXPECTED, "logits": torch.eye(2).expand(2, 2, 2).clone()}
    other = {**words, "logits": words["logits"].clone()}
    other["logits"][1, 1] = torch.tensor([3.0, 1.0])
    assert compare([words], [words]).same_answers == 1
    assert compare([other], [words]).same_answers == 0.5


def test_samples_are_run_alone_and_in_company() -> None:
    samples = [pairs([3])] * 11
    assert [len(some) for some in groups(samples, None)] == [1, 1, 2, 4, 1, 1, 1]
    assert [len(some) for some in groups(samples[:9], 3)] == [3, 3, 3]
