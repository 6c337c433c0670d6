"""Ragged batches: lengths spread fourfold, and every way to run them gives the same tokens."""

from __future__ import annotations

import pytest
import torch

from benchmarks.speed import padded, ragged
from benchmarks.speed.subjects import SUBJECTS
from tests.benchmarks.speed.tiny_subjects import tiny


@pytest.mark.parametrize("name", SUBJECTS)
@torch.inference_mode()
def test_all_ways_give_the_same_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: one sample alone. Padding takes part in nothing, whole or in parts."""
    model = tiny(SUBJECTS[name])
    samples = ragged.Ragged.draw(model, 4)
    assert list(samples.lengths) == [17, 13, 8, 4]  # 16 patches and the class token, to a quarter
    for at_once in (1, 10_000):
        monkeypatch.setattr(padded, "TOKENS_AT_ONCE", at_once)
        calls = ragged.candidates(model, samples, 0.0)
        alone = calls[ragged.ALONE]()
        assert set(calls) == {ragged.PACKED, ragged.ALONE, ragged.PADDED}
        for call in calls.values():
            torch.testing.assert_close(call(), alone, atol=1e-4, rtol=1e-4)
    ragged.check(model, samples)


@torch.inference_mode()
def test_pruned_samples_do_not_see_each_other() -> None:
    """Oracle: one sample alone. There is no padded way to prune."""
    model = tiny(SUBJECTS["blip-nlvr2"])
    calls = ragged.candidates(model, ragged.Ragged.draw(model, 4), 0.4)
    assert set(calls) == {ragged.PACKED, ragged.ALONE}
    torch.testing.assert_close(calls[ragged.PACKED](), calls[ragged.ALONE](), atol=1e-4, rtol=1e-4)


def test_ways_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(SUBJECTS["blip-nlvr2"])
    monkeypatch.setattr(padded, "layer_norm", lambda x, *_: x)
    with pytest.raises(AssertionError, match="padded to the longest gives other tokens"):
        ragged.check(model, ragged.Ragged.draw(model, 3))
