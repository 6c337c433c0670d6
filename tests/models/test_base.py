"""What all models share: towers, images counted for the texts about them, features of texts and images in pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from madtp_cli.costs.analytic import total
from madtp_cli.models.base import Inputs, initialise
from madtp_cli.models.blip.caption import BlipForCaption
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.clip.configs import small_clip_config
from madtp_cli.models.family import model_class
from madtp_cli.models.image_text import passed
from madtp_cli.models.spec import PruningSpec
from madtp_cli.models.tower import TowerOutput
from madtp_cli.tokens import Spans, Tokens
from tests.models.kinds import kinds

KINDS = pytest.mark.parametrize("kind", kinds(), ids=["-".join(kind) for kind in kinds()])
LENGTHS = [7, 4, 9]


def config_of(family: str) -> Any:
    sizes: dict[str, Any] = {
        **{"image_size": 32, "vocab_size": 30, "vision_layers": 3, "vision_width": 24, "vision_heads": 3},
        **{"text_layers": 2, "text_width": 32, "text_heads": 4},
    }
    if family == "clip":
        return small_clip_config(**sizes, eos_token_id=29)
    return small_config(**sizes, merge_from=1, dec_token_id=27, enc_token_id=28, sep_token_id=29)


def make(kind: tuple[str, str], spec: PruningSpec | None = None) -> Any:
    """Build a model of a kind."""
    spec, config = spec or PruningSpec(), config_of(kind[0])
    torch.manual_seed(0)
    model = model_class(*kind)(
        config, alignment=spec.alignment(model_class(*kind).sites_of(config)), plan=spec.plan(), strength=spec.strength
    ).eval()
    initialise(model)
    return model


def inputs(kind: tuple[str, str], index: list[int]) -> dict[str, Any]:
    """Make three texts about the images of an index; pairs have the next image beside it."""
    generator = torch.Generator().manual_seed(1)
    return {
        "images": torch.randn(3, 3, 32, 32, generator=generator),
        "text": torch.randint(3, 27, (sum(LENGTHS),), generator=generator),
        "text_lengths": LENGTHS,
        "image_index": [(image, (image + 1) % 3) for image in index] if kind[1] == "nlvr2" else index,
    }


@KINDS
def test_sites_are_named_with_their_sizes(kind: tuple[str, str]) -> None:
    """Layers, width and heads, whatever the family; a caption's decoder does not prune."""
    vision, text = make(kind).sites
    assert (vision.name, vision.layers, vision.width, vision.heads, vision.reads) == ("vision", 3, 24, 3, "image")
    assert (text.name, text.layers, text.width, text.heads, text.reads) == ("text", 2, 32, 4, "text")
    assert (vision.prefix, vision.protected, text.prefix) == (1, 1, 1)
    assert text.protected == (2 if kind[0] == "clip" else 1)
    assert (vision.prunes, text.prunes) == (True, kind[1] != "caption")


@KINDS
def test_a_record_of_inputs_is_what_its_fields_are(kind: tuple[str, str]) -> None:
    """By name, by place, as the record every model takes and as the model's own: equal logits."""
    model, given = make(kind), inputs(kind, [0, 1, 2])
    with torch.inference_mode():
        expected = model(**given).logits
        for found in (model(*given.values()), model(Inputs(**given)), model(model.takes(**given))):
            assert torch.equal(found.logits, expected)


@KINDS
def test_a_dense_pass_costs_what_is_said_without_one(kind: tuple[str, str]) -> None:
    """Module by module, in whole numbers; an image of 32 pixels has 16 patches and a class token."""
    model = make(kind)
    assert model.image_tokens == 17
    with torch.inference_mode():
        spent = model.macs(model(**inputs(kind, [0, 1, 2])))
    dense = model.dense_macs(LENGTHS)
    assert {path: cost.tolist() for path, cost in spent.items()} == {p: c.tolist() for p, c in dense.items()}
    assert model.dense_gmacs(LENGTHS) == pytest.approx(total(dense).double().mean().item() / 1e9)


@KINDS
def test_a_text_pays_for_its_own_images_in_full(kind: tuple[str, str]) -> None:
    """Pruned at random, texts that share an image each pay for it: the vision modules' cost follows the index."""
    layers = {site.name: (0, 1) for site in model_class(*kind).sites_of(config_of(kind[0])) if site.prunes}
    model = make(kind, PruningSpec(method="random", strength=0.4, layers=layers))
    with torch.inference_mode():
        shared, apart = (model.macs(model(**inputs(kind, index))) for index in ([1, 1, 0], [0, 1, 2]))
    for path in shared:
        if path.startswith("vision"):
            one, other = shared[path].tolist(), apart[path].tolist()
            assert one == [other[1], other[1], other[0]]
            assert one[0] > 0
    assert total(shared).tolist() < total(model.dense_macs(LENGTHS)).tolist()


@KINDS
def test_only_towers_that_may_prune_do(kind: tuple[str, str]) -> None:
    """A caption's decoder keeps every word whatever the plan says."""
    spec = PruningSpec(method="random", strength=0.4, layers={"vision": (0, 1, 2), "text": (0, 1)})
    with torch.inference_mode():
        output = make(kind, spec)(**inputs(kind, [0, 1, 2]))
    assert sum(output.traces["vision"][-1].leaving) < 3 * 17
    dense = sum(output.traces["text"][-1].leaving) == sum(LENGTHS)
    assert dense is (model_class(*kind) is BlipForCaption)
    assert dense is not make(kind).sites[1].prunes


# Alignment ---------------------------------------------------------------------------------------------------


def paired(images: torch.Tensor | None, text: torch.Tensor | None, index: Any) -> Any:
    """Return the aligned features of a pass over images and texts with features of these."""
    tokens = Tokens.pack(torch.zeros(2, 4), Spans.of([1, 1]), prefix=1)
    vision, words = (TowerOutput(tokens=tokens, trace=(), aligned=aligned) for aligned in (images, text))
    return passed(tokens, vision, words, Inputs(torch.zeros(0), torch.zeros(2), [1, 1], index))["aligned"]


def test_features_are_those_of_a_text_and_the_mean_of_its_images() -> None:
    """By hand for pairs of images, and for one image each."""
    images = torch.tensor([[[2.0, 0.0]], [[0.0, 2.0]], [[4.0, 0.0]]])  # [I, K, d]
    text = torch.tensor([[[3.0, 3.0]], [[0.0, 1.0]]])  # [S, K, d]
    means, same = paired(images, text, [(0, 1), (0, 2)])
    assert means.tolist() == [[[1.0, 1.0]], [[3.0, 0.0]]]
    assert same is text
    assert paired(images, text, [2, 2])[0].tolist() == [[[4.0, 0.0]], [[4.0, 0.0]]]


def test_there_are_none_unless_both_towers_have_them() -> None:
    some = torch.zeros(2, 1, 2)
    assert paired(None, some, [0, 1]) is None
    assert paired(some, None, [0, 1]) is None


@KINDS
def test_every_model_learns_and_probes_on_demand(kind: tuple[str, str]) -> None:
    """Features [S, K, d] of both sides; probabilities over the tokens of an image that add up to one."""
    spec = PruningSpec(alignment_tokens=5, alignment_dim=8)
    model, given = make(kind, spec), inputs(kind, [2, 0, 2])
    if kind == ("blip", "retrieval"):
        given["itm_pairs"] = [(0, 2), (1, 0), (2, 2)]
    with torch.inference_mode():
        plain, full = (model(**given, learn=more, probe=more) for more in (False, True))
    assert (plain.aligned, plain.probes) == (None, ())
    assert full.aligned is not None
    assert [tuple(side.shape) for side in full.aligned] == [(3, 5, 8)] * 2
    assert full.probes
    for probe in full.probes:
        assert probe.probability.shape[0] == len(probe.image)
        assert probe.probability.shape[-1] == 17
        torch.testing.assert_close(probe.probability.sum(-1), torch.ones(probe.probability.shape[:2]))
    torch.testing.assert_close(full.logits, plain.logits)


# Random weights ----------------------------------------------------------------------------------------------


@KINDS
def test_random_weights_are_scaled_by_fan_in(kind: tuple[str, str]) -> None:
    """No map has a bias, and none is left as torch made it: a deviation of 0.8 over the root of what comes in."""
    model = make(kind)
    for name, module in model.named_modules():
        tied = name.endswith("predictions.decoder")
        if isinstance(module, nn.Linear) and not tied and module.weight.numel() > 500:
            assert module.weight.std().item() == pytest.approx(0.8 * module.in_features**-0.5, rel=0.2), name
        if isinstance(module, nn.Linear) and module.bias is not None:
            assert not module.bias.any()
