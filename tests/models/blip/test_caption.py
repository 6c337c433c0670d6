"""BLIP for captions: HF's own captions; pruned images alone as in a batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from madtp_cli.costs.analytic import total
from madtp_cli.models.blip.caption import BlipForCaption
from madtp_cli.models.language import caption_loss
from tests.models.blip_tiny import (
    DEC,
    DENSE,
    PRUNED,
    SEP,
    base_config,
    build,
    counted,
    images,
    kept,
    row_of,
    texts,
    transformers_own,
)

PROMPT = [DEC, 7, 8]
LENGTHS, IMAGE = [8, 5, 6, 8], [0, 1, 1, 2]
CAPTIONS = texts(LENGTHS, DEC)
for caption in CAPTIONS:
    caption[:3] = torch.tensor(PROMPT)
INPUTS: dict[str, Any] = {
    "images": images(3),
    "text": torch.cat(CAPTIONS),
    "text_lengths": LENGTHS,
    "image_index": IMAGE,
}


@pytest.fixture(scope="module")
def dense() -> Any:
    return build(BlipForCaption)


@pytest.fixture(scope="module")
def theirs(dense: Any) -> Any:
    from transformers import BlipForConditionalGeneration

    return transformers_own(BlipForConditionalGeneration, dense)


def _alone(row: int) -> dict[str, Any]:
    pixels = INPUTS["images"][IMAGE[row]][None]
    return {"images": pixels, "text": CAPTIONS[row], "text_lengths": [LENGTHS[row]], "image_index": [0]}


@torch.no_grad()
def test_logits_and_loss_are_transformers_own(dense: Any, theirs: Any) -> None:
    """Every caption alone in HF: next-token logits of every position, and the loss without the prompt, to 1e-4."""
    logits = dense(**INPUTS).logits.split(LENGTHS)
    theirs.text_decoder.label_smoothing = 0.1
    for row, caption in enumerate(CAPTIONS):
        labels = caption.clone()
        labels[: len(PROMPT)] = -100
        expected = theirs(pixel_values=INPUTS["images"][IMAGE[row]][None], input_ids=caption[None], labels=labels[None])
        torch.testing.assert_close(logits[row], expected.logits[0], atol=1e-4, rtol=0)
        loss = caption_loss(logits[row], caption, [LENGTHS[row]], len(PROMPT), label_smoothing=0.1)
        torch.testing.assert_close(loss, expected.loss, atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_loss_of_a_batch_is_the_mean_over_its_tokens(dense: Any) -> None:
    """Captions of 8, 5, 6 and 8 tokens behind a prompt of 3: the losses alone, weighted 5, 2, 3 and 5."""
    output = dense(**INPUTS)
    together = caption_loss(output.logits, INPUTS["text"], LENGTHS, 3)
    alone = [
        caption_loss(logits, caption, [len(caption)], 3)
        for logits, caption in zip(output.logits.split(LENGTHS), CAPTIONS, strict=True)
    ]
    torch.testing.assert_close(together, (5 * alone[0] + 2 * alone[1] + 3 * alone[2] + 5 * alone[3]) / 15)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("least", [5, 9])
def test_generated_captions_are_transformers_own(beams: int, least: int, dense: Any, theirs: Any) -> None:
    """Greedy and by beams, all images in one batch; HF takes the prompt with [SEP] and cuts it."""
    with torch.no_grad():
        written = dense.generate(dense(**INPUTS).images, PROMPT, beams=beams, min_length=least, max_length=14)
    expected = theirs.generate(
        pixel_values=INPUTS["images"],
        input_ids=torch.tensor([[*PROMPT, SEP]] * 3),
        num_beams=beams,
        min_length=least,
        max_length=14,
        do_sample=False,
    )[:, 3:].tolist()
    assert written == [row[: row.index(SEP)] if SEP in row else row for row in expected]
    assert len({tuple(row) for row in written}) > 1


@pytest.mark.parametrize("spec", [DENSE, PRUNED], ids=["dense", "pruned"])
@torch.no_grad()
def test_a_sample_alone_equals_itself_in_the_batch(spec: Any) -> None:
    """The same image tokens in every layer, the same cost and caption, logits to 1e-4; the decoder prunes nothing."""
    model = build(BlipForCaption, spec)
    together = model(**INPUTS, learn=True)
    costs, written = model.macs(together), model.generate(together.images, PROMPT)
    logits = together.logits.split(LENGTHS)
    for row in range(4):
        alone = model(**_alone(row), learn=True)
        torch.testing.assert_close(logits[row], alone.logits, atol=1e-4, rtol=0)
        assert kept(together.traces["vision"], IMAGE[row]) == kept(alone.traces["vision"], 0)
        assert row_of(costs, row) == row_of(model.macs(alone), 0)
        assert written[IMAGE[row]] == model.generate(alone.images, PROMPT)[0]
        for ours, own in zip(together.aligned, alone.aligned, strict=True):
            torch.testing.assert_close(ours[row], own[0], atol=1e-4, rtol=1e-4)
    assert [layer.leaving for layer in together.traces["text"]] == [tuple(LENGTHS)] * 3
    assert not any(layer.prunes for layer in together.traces["text"])
    if spec is PRUNED:
        assert len(set(together.images.spans.lengths)) > 1


@torch.no_grad()
def test_strength_zero_is_the_dense_model(dense: Any) -> None:
    """A plan without strength gives the very logits of no plan."""
    idle = build(BlipForCaption, replace(PRUNED, strength=0.0))
    assert torch.equal(idle(**INPUTS).logits, dense(**INPUTS).logits)


@torch.no_grad()
def test_probes_are_what_every_token_pays_to_its_image(dense: Any) -> None:
    """A distribution over 17 image tokens per token and layer."""
    probes = dense(**INPUTS, probe=True).probes
    rows = [image for image, length in zip(IMAGE, LENGTHS, strict=True) for _ in range(length)]
    assert [probe.image.tolist() for probe in probes] == [rows] * 3
    for probe in probes:
        assert probe.probability.shape == (27, 2, 17)
        torch.testing.assert_close(probe.probability.sum(-1), torch.ones(27, 2))


def test_every_parameter_learns() -> None:
    """A dense step with aligned features gives every one a gradient."""
    model = build(BlipForCaption).train()
    output = model(**INPUTS, learn=True)
    loss = caption_loss(output.logits, INPUTS["text"], LENGTHS, 3)
    (loss + sum(part.square().sum() for part in output.aligned)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_pruned_step_in_bf16_gives_numbers() -> None:
    """Under autocast logits stay float32 and every gradient is finite."""
    model = build(BlipForCaption, PRUNED).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**INPUTS, learn=True)
    assert output.logits.dtype == torch.float32
    caption_loss(output.logits, INPUTS["text"], LENGTHS, 3).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("spec", [DENSE, PRUNED], ids=["dense", "pruned"])
@torch.no_grad()
def test_costs_are_what_torch_counts(spec: Any) -> None:
    """Image and one pass over the caption, head included, to 0.5 %; dense_macs module by module."""
    model = build(BlipForCaption, spec)
    args = (INPUTS["images"][:1], CAPTIONS[0], [8], [0])
    spent = model.macs(model(*args))
    assert counted(model, *args) == pytest.approx(int(total(spent)), rel=0.005)
    if spec is DENSE:
        assert row_of(spent, 0) == row_of(model.dense_macs([8]), 0)


def test_full_size_costs_what_is_published() -> None:
    """BLIP-B at 384 and a caption of 16 tokens: 65.7 gmacs, to 0.5 %."""
    with torch.device("meta"):
        model = BlipForCaption(base_config(384))
    assert model.dense_gmacs([16]) == pytest.approx(65.72, rel=0.005)
