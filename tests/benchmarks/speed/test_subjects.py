"""All that the benchmark times computes the same thing: our own model is the oracle of every reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.speed import padded, subjects
from benchmarks.speed.subjects import SUBJECTS
from madtp_cli.engine.building.model import full_config, pruning_spec
from madtp_cli.models.configs import default_config
from madtp_cli.recipe import load_recipe
from tests.benchmarks.speed.tiny_subjects import model_and_inputs

RECIPES = Path(__file__).parents[3] / "recipes"


@pytest.mark.parametrize("at_once", [1, 10_000], ids=["in parts", "whole"])
@pytest.mark.parametrize("name", SUBJECTS)
@torch.inference_mode()
def test_every_reference_gives_our_logits(name: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are as large as at full size and biases are not zero, so that none can be left out unseen."""
    monkeypatch.setattr(padded, "TOKENS_AT_ONCE", at_once)
    model, inputs = model_and_inputs(name, samples=3)
    ours = model(**inputs.packed()).logits
    calls = subjects.references(model, inputs)
    assert list(calls) == ["HF eager", *(["HF SDPA"] if name == "clip-l14" else []), "padded SDPA"]
    for call in calls.values():
        torch.testing.assert_close(call(), ours, atol=1e-5 * ours.abs().max().item(), rtol=0)
    subjects.check(model, inputs)


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_reference_that_computes_something_else_is_not_timed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = model_and_inputs(name)
    monkeypatch.setattr(padded, "layer_norm", lambda x, *_: x)
    with pytest.raises(AssertionError, match="padded SDPA gives other logits"):
        subjects.check(model, inputs)


@pytest.mark.parametrize(("name", "recipe"), [("blip-nlvr2", "blip_nlvr2"), ("clip-l14", "clip_retrieval_coco")])
def test_a_subject_is_the_model_of_its_recipe(name: str, recipe: str) -> None:
    """Oracle: the shipped recipe. Only the layers that prune are the benchmark's own: all of them."""
    loaded = load_recipe(RECIPES / f"{recipe}.yaml")
    config = full_config(loaded)
    subject = SUBJECTS[name]
    own = default_config(subject.family, subject.task)
    assert own.to_dict() == config.to_dict()
    wanted, found = pruning_spec(loaded, config), subjects.pruning(own, subject.family, subject.task, subject.layers)
    for key in ("method", "alignment_tokens", "alignment_dim", "projection"):
        assert getattr(found, key) == getattr(wanted, key)
    assert found.layers["vision"] == wanted.layers["vision"]
    assert len(found.layers["text"]) == config.text_config.num_hidden_layers
