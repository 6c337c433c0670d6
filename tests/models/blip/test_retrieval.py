"""BLIP for retrieval: HF's own similarities and matches; pruned pairs alone as in a batch; hard negatives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from madtp_cli.costs.analytic import total
from madtp_cli.engine.tasks.retrieval import hard_negatives
from madtp_cli.models.blip.retrieval import BlipForRetrieval
from tests.models.blip_tiny import (
    CLS,
    DENSE,
    ENC,
    PRUNED,
    base_config,
    build,
    counted,
    images,
    kept,
    padded,
    row_of,
    texts,
    transformers_own,
)

LENGTHS, IMAGE = [7, 5, 9, 7], [0, 0, 1, 2]
TEXTS = texts(LENGTHS, CLS)
PAIRS = [(0, 0), (1, 0), (2, 1), (3, 2), (0, 2), (3, 0), (2, 2)]
INPUTS: dict[str, Any] = {
    "images": images(3),
    "text": torch.cat(TEXTS),
    "text_lengths": LENGTHS,
    "image_index": IMAGE,
}


@pytest.fixture(scope="module")
def dense() -> Any:
    return build(BlipForRetrieval)


@pytest.fixture(scope="module")
def theirs(dense: Any) -> Any:
    from transformers import BlipForImageTextRetrieval

    return transformers_own(BlipForImageTextRetrieval, dense)


@torch.no_grad()
def test_similarities_are_transformers_own(dense: Any, theirs: Any) -> None:
    """HF's cosines of a padded batch (its self-attention masks), divided by the temperature, to 1e-4 of a cosine."""
    ids, mask = padded(TEXTS)
    expected = theirs(
        input_ids=ids, attention_mask=mask, pixel_values=INPUTS["images"], use_itm_head=False
    ).itm_score  # [I, S]
    output = dense(**INPUTS)
    assert output.logits.shape == (4, 3)
    torch.testing.assert_close(output.logits * 0.07, expected.T, atol=1e-4, rtol=0)
    torch.testing.assert_close(output.text_embeds @ output.image_embeds.T, expected.T, atol=1e-4, rtol=0)
    for embeds in (output.text_embeds, output.image_embeds):
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(len(embeds)))
    assert expected.std() > 0.1


@torch.no_grad()
def test_matches_are_transformers_own(dense: Any, theirs: Any) -> None:
    """Every pair alone in HF, which has to be given [ENC] itself, to 1e-4; `match` from encoded images is the same."""
    output = dense(**INPUTS, itm_pairs=PAIRS)
    for place, (row, image) in enumerate(PAIRS):
        text = TEXTS[row].clone()
        text[0] = ENC
        expected = theirs(input_ids=text[None], pixel_values=INPUTS["images"][image][None]).itm_score
        torch.testing.assert_close(output.itm.logits[place], expected[0], atol=1e-4, rtol=0)
    again = dense.match(output.images, INPUTS["text"], LENGTHS, PAIRS)
    torch.testing.assert_close(again, output.itm.logits)
    assert INPUTS["text"][0] == CLS
    assert dense(**INPUTS).itm is None


@pytest.mark.parametrize("spec", [DENSE, PRUNED], ids=["dense", "pruned"])
@torch.no_grad()
def test_a_sample_alone_equals_itself_in_the_batch(spec: Any) -> None:
    """Vectors, matches, kept tokens and costs, whatever else is compared."""
    model = build(BlipForRetrieval, spec)
    together = model(**INPUTS, itm_pairs=PAIRS, learn=True)
    costs, itm_costs = model.macs(together), model.itm_macs(together.itm)
    for row, image in enumerate(IMAGE):
        pixels = INPUTS["images"][image][None]
        alone = model(pixels, TEXTS[row], [LENGTHS[row]], [0], itm_pairs=[(0, 0)], learn=True)
        torch.testing.assert_close(together.text_embeds[row], alone.text_embeds[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(together.image_embeds[image], alone.image_embeds[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(together.itm.logits[row], alone.itm.logits[0], atol=1e-4, rtol=0)
        assert kept(together.traces["vision"], image) == kept(alone.traces["vision"], 0)
        assert kept(together.traces["text"], row) == kept(alone.traces["text"], 0)
        assert kept(together.itm.text, row) == kept(alone.itm.text, 0)
        assert row_of(costs, row) == row_of(model.macs(alone), 0)
        assert row_of(itm_costs, row) == row_of(model.itm_macs(alone.itm), 0)
        for ours, own in zip(together.aligned, alone.aligned, strict=True):
            torch.testing.assert_close(ours[row], own[0], atol=1e-4, rtol=1e-4)
    if spec is PRUNED:
        assert len(set(together.images.spans.lengths)) > 1
        assert sum(together.itm.text[-1].leaving) < sum(LENGTHS[row] for row, _ in PAIRS)


@torch.no_grad()
def test_strength_zero_is_the_dense_model(dense: Any) -> None:
    """A plan without strength gives the very logits of no plan."""
    idle = build(BlipForRetrieval, replace(PRUNED, strength=0.0))(**INPUTS, itm_pairs=PAIRS)
    output = dense(**INPUTS, itm_pairs=PAIRS)
    assert torch.equal(idle.logits, output.logits)
    assert torch.equal(idle.itm.logits, output.itm.logits)


@torch.no_grad()
def test_pairs_may_be_chosen_by_the_similarities(dense: Any) -> None:
    """What chooses is given the logits, and is asked once."""
    asked: list[Tensor] = []

    def choose(logits: Tensor) -> list[tuple[int, int]]:
        asked.append(logits)
        return [(2, 1)]

    output = dense(**INPUTS, itm_pairs=choose)
    assert len(asked) == 1
    assert torch.equal(asked[0], output.logits)
    torch.testing.assert_close(output.itm.logits[0], dense(**INPUTS, itm_pairs=PAIRS).itm.logits[2])


@torch.no_grad()
def test_probes_are_of_pairs_that_belong_together(dense: Any) -> None:
    """Four of the seven pairs, in their order; none without pairs."""
    output = dense(**INPUTS, itm_pairs=PAIRS, probe=True)
    assert [probe.image.tolist() for probe in output.probes] == [[0, 0, 1, 2]] * 3
    for probe in output.probes:
        assert probe.probability.shape == (4, 2, 17)
        torch.testing.assert_close(probe.probability.sum(-1), torch.ones(4, 2))
    assert dense(**INPUTS, probe=True).probes == ()


def test_hard_negatives_are_wrong_and_similar() -> None:
    """A wrong image for each of four texts, then a wrong text for each of three images, the likeliest almost always."""
    logits = torch.tensor([[9.0, 5, -9], [9, -9, 5], [5, 9, -9], [5, -9, 9]])
    drawn = hard_negatives(logits, IMAGE, torch.Generator().manual_seed(0))
    assert drawn == [(0, 1), (1, 2), (2, 0), (3, 0), drawn[4], (0, 1), (1, 2)]
    assert drawn[4] in ((2, 0), (3, 0))
    even = torch.zeros(4, 3)
    seen = {pair for seed in range(20) for pair in hard_negatives(even, IMAGE, torch.Generator().manual_seed(seed))}
    assert seen == {(row, image) for row in range(4) for image in range(3) if IMAGE[row] != image}


def test_hard_negatives_survive_saturated_similarities() -> None:
    """Softmax over all would leave the wrong ones nothing; a batch about one image has none to offer."""
    logits = torch.tensor([[1e4, 1.0, 0.0], [0.0, 1e4, 0.0], [0.0, 0.0, 1e4]])
    assert len(hard_negatives(logits, [0, 1, 2])) == 6
    assert hard_negatives(torch.zeros(2, 1), [0, 0]) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_hard_negatives_survive_what_is_no_number(value: float) -> None:
    """So that the loss is what stops a training that diverged: a wrong one for each, as ever."""
    for logits in (torch.full((3, 3), value), torch.eye(3).masked_fill(torch.eye(3).flip(0) > 0, value)):
        drawn = hard_negatives(logits, [0, 1, 2])
        assert len(drawn) == 6
        assert all(row != image for row, image in drawn)


def test_a_diverged_model_gets_through_a_step() -> None:
    """Weights of nan: logits of nan, no error, so that the loss can say so."""
    model = build(BlipForRetrieval)
    with torch.no_grad():
        model.text_proj.weight.fill_(float("nan"))
        output = model(**INPUTS, itm_pairs=lambda logits: hard_negatives(logits, IMAGE))
    assert output.logits.isnan().all()
    assert output.itm is not None


def test_every_parameter_learns() -> None:
    """A dense step with aligned features and matching gives every one a gradient, the temperature too."""
    model = build(BlipForRetrieval).train()
    output = model(**INPUTS, itm_pairs=PAIRS, learn=True)
    features = sum(part.square().sum() for part in output.aligned)
    (output.logits.square().sum() + output.itm.logits.square().sum() + features).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


class Matching(nn.Module):
    """The second look at encoded images."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, encoded: Any, text: Tensor) -> Tensor:
        """Match one text with the first image."""
        return self.model.match(encoded, text, [len(text)], [(0, 0)])


@pytest.mark.parametrize("spec", [DENSE, PRUNED], ids=["dense", "pruned"])
@torch.no_grad()
def test_costs_are_what_torch_counts(spec: Any) -> None:
    """Both encoders, and the matching apart, each to 0.5 %; the dense costs module by module."""
    model = build(BlipForRetrieval, spec)
    args = (INPUTS["images"][:1], TEXTS[2], [9], [0])
    output = model(*args)
    spent = model.macs(output)
    assert counted(model, *args) == pytest.approx(int(total(spent)), rel=0.005)
    matching = model.read_pairs(output.images, TEXTS[2], [9], [(0, 0)])
    itm = model.itm_macs(matching)
    assert counted(Matching(model), output.images, TEXTS[2]) == pytest.approx(int(total(itm)), rel=0.005)
    if spec is DENSE:
        assert row_of(spent, 0) == row_of(model.dense_macs([9]), 0)
        assert row_of(itm, 0) == row_of(model.dense_itm_macs([9]), 0)


def test_full_size_costs_what_is_published() -> None:
    """BLIP-B at 384 and 35 tokens: 58.5 gmacs for both encoders, about 12 for a second look."""
    with torch.device("meta"):
        model = BlipForRetrieval(base_config(384))
    assert model.dense_gmacs([35]) == pytest.approx(58.5, rel=0.005)
    assert int(total(model.dense_itm_macs([35]))) / 1e9 == pytest.approx(12, rel=0.05)
