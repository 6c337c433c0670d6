"""The rows behind a profile's tables and CSV files: by hand."""

from __future__ import annotations

import pytest

from madtp_cli.report.profile_rows import (
    PARTS,
    TOWERS,
    UNFOLDED,
    Part,
    kept_shares,
    layers,
    profiles,
    samples,
    time_between,
    tree,
)
from madtp_cli.results import Gmacs, LayerTokens, ModuleCost, NamedProfile, Profiled, ProfileResult, SampleCost

COST = Gmacs(dense=1.0, pruned=0.5, reduction=0.5)


def profiled(*modules: tuple[str, float, int, float | None]) -> Profiled:
    """Make a profile of modules: name, gmacs, params, share of time."""
    made = [ModuleCost(name=name, gmacs=gmacs, params=params, time_share=time) for name, gmacs, params, time in modules]
    return Profiled(gmacs=COST, params=sum(module.params for module in made), modules=tuple(made))


MODEL = profiled(
    ("vision_model.embeddings", 0.125, 1, 0.125),
    ("vision_model.encoder.layers.0.mlp", 0.25, 2, 0.25),
    ("vision_model.encoder.layers.1.mlp", 0.0625, 2, 0.125),
    ("vision_model.encoder.layers.1.pruning", 0.03125, 0, None),
    ("head", 0.03125, 8, None),
    ("vision_model.encoder.layers.0.norm", 0.0, 4, 0.0625),
)


def test_a_node_is_the_sum_of_what_is_in_it() -> None:
    """Layers are summed and counted; what comes late in the model stands where it belongs."""
    assert tree(MODEL) == [
        Part(("vision_model",), 1, 0.46875, 9, 0.5625),
        Part(("vision_model", "embeddings"), 1, 0.125, 1, 0.125),
        Part(("vision_model", "encoder.layers"), 2, 0.34375, 8, 0.4375),
        Part(("vision_model", "encoder.layers", "mlp"), 2, 0.3125, 4, 0.375),
        Part(("vision_model", "encoder.layers", "pruning"), 1, 0.03125, 0, None),
        Part(("vision_model", "encoder.layers", "norm"), 1, 0.0, 4, 0.0625),
        Part(("head",), 1, 0.03125, 8, None),
    ]


def test_depth_cuts_the_tree_or_unfolds_its_layers() -> None:
    assert [part.name for part in tree(MODEL, TOWERS)] == ["vision_model", "head"]
    assert [part.name for part in tree(MODEL, PARTS)] == [
        *("vision_model", "vision_model.embeddings", "vision_model.encoder.layers", "head")
    ]
    deep = {part.name: part for part in tree(MODEL, UNFOLDED)}
    assert deep["vision_model.encoder.layers.1"] == Part(("vision_model", "encoder.layers", "1"), 1, 0.09375, 2, 0.125)
    assert deep["vision_model.encoder.layers.1.mlp"].gmacs == 0.0625
    assert deep["vision_model.encoder.layers"].layers == 2


def test_what_no_part_took_is_between_them() -> None:
    """1 - 0.125 - 0.25 - 0.125 - 0.0625; without times there is nothing to tell."""
    assert time_between(MODEL) == 0.4375
    assert time_between(profiled(("head", 0.5, 1, None))) is None


def test_layers_carry_the_cost_of_their_modules() -> None:
    """A CLIP names its text layers as its vision layers; a layer that no module belongs to costs nothing."""
    model = profiled(
        ("text_model.encoder.layers.0.mlp", 0.5, 3, 0.25), *[("vision_model.encoder.layers.0.mlp", 0.25, 2, None)]
    )
    kept = [
        LayerTokens(tower=tower, layer=0, tokens_mean=2.0, tokens_min=1, tokens_max=3) for tower in ("vision", "text")
    ]
    found = layers(Profiled(gmacs=COST, params=5, modules=model.modules, layers=tuple(kept)))
    assert [(row.tower, row.gmacs, row.params, row.time_share) for row in found] == [
        ("vision", 0.25, 2, None),
        ("text", 0.5, 3, 0.25),
    ]
    assert [row.gmacs for row in layers(Profiled(gmacs=COST, params=5, layers=tuple(kept)))] == [0, 0]


def test_samples_are_sorted_and_their_tokens_are_shares() -> None:
    """4 and 2 of 8 tokens leave two layers: 6 of 16; a tower without layers has no share."""

    def sample(name: str, pruned: float) -> SampleCost:
        cost = Gmacs(dense=1.0, pruned=pruned, reduction=1 - pruned)
        return SampleCost(
            id=name, gmacs=cost, tokens_entered={"vision": 8, "text": 3}, tokens_kept={"vision": (4, 2), "text": ()}
        )

    found = samples(Profiled(gmacs=COST, params=1, samples=(sample("a", 0.25), sample("b", 0.5))))
    assert [each.id for each in found] == ["b", "a"]
    assert kept_shares(found[0]) == {"vision": pytest.approx(6 / 16)}


def test_profiles_are_named() -> None:
    """By their short names, or by what they were opened as, or as what they are."""
    first = ProfileResult(command="profile", checkpoint="runs/a", name="a", gmacs=COST, params=1)
    other = NamedProfile(name="b", checkpoint="runs/b", gmacs=COST, params=1)
    both = ProfileResult(command="profile", checkpoint="runs/a", name="a", gmacs=COST, params=1, others=(other,))
    assert [name for name, _ in profiles(both)] == ["a", "b"]
    assert profiles(first) == [("a", first)]
    assert profiles(ProfileResult(command="profile", checkpoint=None, gmacs=COST, params=1))[0][0] == "model"
