"""The machine's rate is that of its fastest call: the oracle is a clock that the test winds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.speed import roofline
from benchmarks.speed.subjects import SUBJECTS
from tests.benchmarks.speed.tiny_subjects import tiny


def test_a_rate_is_that_of_the_fastest_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 x 5 x 6 multiply-adds in 4, 2 and 3 seconds; then the time is over."""
    ticks: Iterator[float] = iter([0, 0, 4, 4, 4, 6, 6, 6, 9, 9])
    monkeypatch.setattr(roofline, "timer", lambda: next(ticks))
    found = roofline.rates({"small": (4, 5, 6)}, torch.device("cpu"), torch.float32, 9)
    assert found == {"small": 120 / 2 / 1e9}


def test_the_shapes_are_the_models_own() -> None:
    """17 tokens of an image, 32 channels, four times as many in the MLP."""
    assert roofline.shapes("BLIP", tiny(SUBJECTS["blip-nlvr2"])) == {
        "square of 2048": (2048, 2048, 2048),
        "MLP of an image, BLIP": (17, 32, 128),
    }
