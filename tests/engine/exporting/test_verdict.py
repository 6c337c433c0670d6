"""What is handed over and what is refused, by numbers made up on either side of each limit."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from madtp_cli.engine.exporting.verdict import Tolerance, check_loss, judged
from madtp_cli.errors import ExportError
from madtp_cli.export.check import Comparison

ONNX = Tolerance(format="onnx", precision="fp32")
HALF = replace(ONNX, precision="fp16")
SAME = Comparison(200, 1.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        ({"max_difference": math.inf}, ["numbers differ by up to inf, at most 0.001 is allowed (--atol)"]),
        ({"max_difference": math.nan}, ["numbers differ by up to nan, at most 0.001 is allowed (--atol)"]),
        ({"max_difference": None}, ["no sample keeps the same tokens, so that no numbers could be compared"]),
        ({"same_kept": 0.98}, ["98.0% of the samples keep the same tokens, at least 99% must"]),
        ({"same_answers": 0.5}, ["50.0% of the samples give the same answers, at least 99% must"]),
        ({"same_kept": 0.0, "same_answers": 0.0}, ["0.0% of the samples keep", "0.0% of the samples give"]),
        ({"same_embeds": 0.98}, ["98.0% of the samples have embeddings within a cosine of 0.95, at least 99% must"]),
        ({"not_finite": ("states",)}, ["states has numbers not finite"]),
        ({"not_finite": ("states", "logits")}, ["states, logits have numbers not finite"]),
        ({"same_kept": 0.99, "same_answers": 0.99, "same_embeds": 0.99, "max_difference": 1e-3}, []),
    ],
    ids=str,
)
def test_every_disagreement_is_named(change: dict[str, Any], faults: list[str]) -> None:
    found = replace(SAME, **change)
    if not faults:
        assert judged(found, ONNX).samples == 200
        return
    with pytest.raises(ExportError) as caught:
        judged(found, ONNX)
    for fault in faults:
        assert fault in str(caught.value)


def test_half_precision_may_keep_other_tokens_of_some_samples_but_not_give_other_answers() -> None:
    assert judged(Comparison(200, 0.5, 0.95, 0.04), HALF).same_kept == 0.5
    with pytest.raises(ExportError, match=r"49\.0% of the samples keep the same tokens, at least 50% must"):
        judged(Comparison(200, 0.49, 1.0, 0.04), HALF)
    with pytest.raises(ExportError, match=r"94\.0% of the samples give the same answers.*try --precision fp32"):
        judged(Comparison(200, 1.0, 0.94, 0.04), HALF)
    with pytest.raises(ExportError, match=r"94\.0% of the samples have embeddings"):
        judged(Comparison(200, 1.0, None, 0.04, 0.94), HALF)


def test_a_tolerance_can_be_chosen() -> None:
    found = Comparison(200, 1.0, 1.0, 0.02)
    assert judged(found, replace(ONNX, atol=0.03)).atol == 0.03
    with pytest.raises(ExportError, match=r"at most 0\.01 is allowed"):
        judged(found, replace(HALF, atol=0.01))


@pytest.mark.parametrize(
    ("tolerance", "exported", "accepted"),
    [
        (ONNX, 0.97, True),
        (ONNX, 0.965, False),
        (ONNX, 1.0, True),
        (HALF, 0.96, True),
        (HALF, 0.955, False),
        (replace(ONNX, max_loss=5.0), 0.93, True),
        (replace(ONNX, max_loss=0.0), 0.98, True),
        (replace(ONNX, max_loss=0.0), 0.975, False),
        (ONNX, math.nan, False),
    ],
)
def test_a_score_may_be_lower_by_so_many_points(tolerance: Tolerance, exported: float, accepted: bool) -> None:
    """Beside 98% in PyTorch; exactly as many as are allowed are allowed, whatever binary fractions make of them."""
    scores = {"pytorch": 0.98, "exported": exported}
    check = replace(judged(SAME, tolerance), score="accuracy", scores=scores)
    if accepted:
        check_loss(check, 200, tolerance)
        return
    with pytest.raises(ExportError, match="less accurate than PyTorch on 200 samples"):
        check_loss(check, 200, tolerance)


def test_a_loss_says_what_it_is_and_what_one_sample_is() -> None:
    """Fixed counts lose what the model had by adapting; another precision would not bring that back."""
    scores = {"pytorch": 0.98, "exported": 0.92}
    check = replace(judged(SAME, ONNX, "pytorch_fixed"), score="accuracy", scores=scores)
    with pytest.raises(ExportError) as caught:
        check_loss(check, 50, ONNX)
    assert str(caught.value) == (
        "the onnx files are less accurate than PyTorch on 50 samples: accuracy is 92% instead of 98%, 6 points less, "
        "at most 1 allowed (--max-loss; one sample is 2); nothing was written; try --mode dynamic, which keeps "
        "tokens as the checkpoint does"
    )
