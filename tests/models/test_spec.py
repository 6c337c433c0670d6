"""The `madtp` block of a checkpoint: read back as written, and refused where it is not understood."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from madtp_cli.errors import SourceError
from madtp_cli.models.sites import Site
from madtp_cli.models.spec import PruningSpec
from madtp_cli.pruning import Madtp, Random

FULL = PruningSpec(
    method="madtp",
    variant="paper",
    tokens="scheduled",
    temperature=2.5,
    strength=0.3,
    layers={"vision": (4, 7), "text": ()},
    alignment_tokens=7,
    alignment_dim=12,
    projection="per_layer",
)
SITES = (Site("vision", 8, 12, 3, reads="image"), Site("text", 2, 12, 3, reads="text"))


@pytest.mark.parametrize("spec", [FULL, PruningSpec(), replace(FULL, method="random")], ids=["full", "dense", "random"])
def test_a_spec_survives_json(spec: PruningSpec) -> None:
    """The identity, through text."""
    assert PruningSpec.from_dict(json.loads(json.dumps(spec.to_dict())), "here") == spec


def test_an_empty_block_is_a_dense_model() -> None:
    """The defaults."""
    assert PruningSpec.from_dict({}, "here") == PruningSpec()
    assert PruningSpec().plan() is None
    assert PruningSpec().alignment(SITES) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nucleus": 1, "head": 2}, "unknown keys head, nucleus; it was written by a newer madtp, try upgrading"),
        ({"method": "evit"}, "madtp.method is evit; this madtp knows none, madtp, random, try upgrading"),
        ({"variant": "best"}, "madtp.variant: Input should be 'normalised', 'paper' or 'released', got 'best'"),
        ({"layers": {"text": ["x"]}}, "madtp.layers.text.0: Input should be a valid integer"),
        ({"strength": None}, "madtp.strength: Input should be a valid number, got None"),
        ({"alignment_tokens": 0}, "madtp.alignment_tokens is 0; the method madtp needs at least one"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_understood_is_named(change: dict[str, Any], message: str) -> None:
    """One line that opens with the file and names the key."""
    with pytest.raises(SourceError) as caught:
        PruningSpec.from_dict({**FULL.to_dict(), **change}, "folder/config.json")
    assert str(caught.value).startswith("folder/config.json: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plan_gives_the_method_its_settings_and_layers() -> None:
    """Field by field."""
    plan = FULL.plan(merge_gradient=True)
    assert plan is not None
    assert plan.layers == {"vision": frozenset({4, 7}), "text": frozenset()}
    method = plan.pruner
    assert isinstance(method, Madtp)
    assert (method.variant, method.tokens, method.temperature) == ("paper", "scheduled", 2.5)
    assert method.merge_gradient
    random = replace(FULL, method="random").plan()
    assert random is not None
    assert isinstance(random.pruner, Random)


def test_no_method_and_temperature_zero_prune_nothing() -> None:
    """No plan."""
    assert replace(FULL, method="none").plan() is None
    assert replace(FULL, temperature=0.0).plan() is None


def test_the_alignment_module_has_the_sizes_of_the_spec() -> None:
    """Seven tokens of width 12 and one map for each of 8 + 2 layers."""
    module = FULL.alignment(SITES)
    assert module is not None
    assert tuple(module.tokens.shape) == (7, 12)
    assert sum("maps" in name and name.endswith("weight") for name, _ in module.named_parameters()) == 10
    assert set(asdict(FULL)) == set(FULL.to_dict())
