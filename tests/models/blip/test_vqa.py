"""BLIP for VQA: HF's own answers where nothing is padded, better ones where something is; pruned samples alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from madtp_cli.costs.analytic import total
from madtp_cli.models.blip import vqa
from madtp_cli.models.blip.vqa import BlipForVqa
from madtp_cli.models.language import answer_losses
from tests.models.blip_tiny import (
    DEC,
    DENSE,
    ENC,
    PRUNED,
    SEP,
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

LENGTHS, IMAGE = [7, 5, 9, 5], [0, 0, 1, 2]
QUESTIONS = texts(LENGTHS, ENC)
ANSWER_LENGTHS, QUESTION = [4, 3, 5, 4, 3], [0, 0, 1, 2, 3]
ANSWERS = texts(ANSWER_LENGTHS, DEC, seed=4)
INPUTS: dict[str, Any] = {
    "images": images(3),
    "text": torch.cat(QUESTIONS),
    "text_lengths": LENGTHS,
    "image_index": IMAGE,
}
TAUGHT: dict[str, Any] = {
    **INPUTS,
    "answers": torch.cat(ANSWERS),
    "answer_lengths": ANSWER_LENGTHS,
    "answer_index": QUESTION,
}


@pytest.fixture(scope="module")
def dense() -> Any:
    return build(BlipForVqa)


@pytest.fixture(scope="module")
def theirs(dense: Any) -> Any:
    from transformers import BlipForQuestionAnswering

    return transformers_own(BlipForQuestionAnswering, dense)


def _alone(row: int) -> dict[str, Any]:
    """Cut out one question with its image and its answers."""
    mine = [place for place, question in enumerate(QUESTION) if question == row]
    return {
        "images": INPUTS["images"][IMAGE[row]][None],
        "text": QUESTIONS[row],
        "text_lengths": [LENGTHS[row]],
        "image_index": [0],
        "answers": torch.cat([ANSWERS[place] for place in mine]),
        "answer_lengths": [ANSWER_LENGTHS[place] for place in mine],
        "answer_index": [0] * len(mine),
    }


@torch.no_grad()
def test_questions_and_answers_are_transformers_own(dense: Any, theirs: Any) -> None:
    """Every question alone in HF, unpadded: images, states and next-token logits to 1e-4."""
    output = dense(**TAUGHT)
    states = output.questions.x.split(list(output.questions.spans.lengths))
    logits = output.logits.split([length - 1 for length in ANSWER_LENGTHS])
    for row, question in enumerate(QUESTIONS):
        seen = theirs.vision_model(pixel_values=INPUTS["images"][IMAGE[row]][None]).last_hidden_state
        torch.testing.assert_close(output.images.x.unflatten(0, (3, -1))[IMAGE[row]], seen[0], atol=1e-4, rtol=0)
        read = theirs.text_encoder(input_ids=question[None], encoder_hidden_states=seen).last_hidden_state
        torch.testing.assert_close(states[row], read[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(output.encoded[row], read[0, 0], atol=1e-4, rtol=0)
        for place, answer in enumerate(ANSWERS):
            if QUESTION[place] == row:
                expected = theirs.text_decoder(input_ids=answer[None], encoder_hidden_states=read).logits
                torch.testing.assert_close(logits[place], expected[0, :-1], atol=1e-4, rtol=0)
    assert output.logits.std() > 0.1


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@torch.no_grad()
def test_losses_are_transformers_own(smoothing: float, dense: Any, theirs: Any) -> None:
    """The sum over an answer's tokens, as the decoder's `reduction="none"` gives it."""
    output = dense(**TAUGHT)
    losses = answer_losses(output.logits, TAUGHT["answers"], ANSWER_LENGTHS, label_smoothing=smoothing)
    states = output.questions.x.split(list(output.questions.spans.lengths))
    theirs.text_decoder.label_smoothing = smoothing
    for place, answer in enumerate(ANSWERS):
        expected = theirs.text_decoder(
            input_ids=answer[None],
            encoder_hidden_states=states[QUESTION[place]][None],
            labels=answer[None],
            reduction="none",
        ).loss
        torch.testing.assert_close(losses[place], expected[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("least", [1, 6])
def test_generated_answers_are_transformers_own(beams: int, least: int, dense: Any, theirs: Any) -> None:
    """Greedy and by beams, with and without a least length, every question alone in HF."""
    with torch.no_grad():
        written = dense.generate(dense(**INPUTS), beams=beams, min_length=least, max_length=10)
    for row, question in enumerate(QUESTIONS):
        expected = theirs.generate(
            input_ids=question[None],
            pixel_values=INPUTS["images"][IMAGE[row]][None],
            num_beams=beams,
            min_length=least,
            max_length=10,
            do_sample=False,
        )[0].tolist()[1:]
        assert written[row] == (expected[: expected.index(SEP)] if SEP in expected else expected)
        assert len(written[row]) >= least - 1
    assert len({tuple(answer) for answer in written}) > 1


@torch.no_grad()
def test_padding_leaks_into_transformers_answers_and_not_into_ours(dense: Any, theirs: Any) -> None:
    """Batched in HF, a short question's answer reads padding (field.md section 3); ours equals HF's without a batch."""
    ids, mask = padded(QUESTIONS)
    seen = theirs.vision_model(pixel_values=INPUTS["images"][IMAGE]).last_hidden_state
    read = theirs.text_encoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
    start = torch.full((4, 1), DEC)
    batched = theirs.text_decoder(input_ids=start, encoder_hidden_states=read, encoder_attention_mask=mask).logits
    output = dense(**INPUTS)
    ours = dense._decode(output.questions, start.flatten(), [1] * 4, range(4))
    for row, length in enumerate(LENGTHS):
        alone = theirs.text_decoder(input_ids=start[:1], encoder_hidden_states=read[row : row + 1, :length]).logits
        torch.testing.assert_close(ours[row], alone[0, 0], atol=1e-4, rtol=0)
        leak = (batched[row, 0] - alone[0, 0]).abs().max()
        assert leak < 1e-4 if length == max(LENGTHS) else leak > 1e-2


@torch.no_grad()
def test_ranking_compares_whole_answers(dense: Any) -> None:
    """All candidates compared: each one's own loss, and the least wins. Two: those whose first word is likeliest."""
    output = dense(**INPUTS)
    lengths = [3, 5, 4, 3, 6]
    candidates = texts(lengths, DEC, seed=6)
    best, scores, ids = dense.rank(output, torch.cat(candidates), lengths, 9, label_smoothing=0.0)
    assert scores.shape == ids.shape == (4, 5)
    few_best, few, few_ids = dense.rank(output, torch.cat(candidates), lengths, 2, label_smoothing=0.0)
    for row in range(4):
        expected, openings = [], []
        for candidate in candidates:
            logits = dense._decode(output.questions, candidate[:-1], [len(candidate) - 1], [row]).log_softmax(-1)
            each = logits.gather(1, candidate[1:, None])
            expected.append(each.sum())
            openings.append(each[0, 0])
        torch.testing.assert_close(scores[row], torch.stack(expected)[ids[row]], atol=1e-4, rtol=0)
        assert int(best[row]) == int(torch.stack(expected).argmax())
        likeliest = torch.stack(openings).argsort(descending=True)
        assert few_ids[row].tolist() == likeliest[:2].tolist()
        assert int(few_best[row]) == int(few_ids[row][few[row].argmax()])


@torch.no_grad()
def test_questions_compared_together_score_as_alone(dense: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five answers of 21 tokens for each of four questions: all at once, two by two, and one after another."""
    output = dense(**INPUTS)
    lengths = [3, 5, 4, 3, 6]
    candidates = torch.cat(texts(lengths, DEC, seed=6))
    seen: list[int] = []
    whole = dense._answer_logits

    def noted(questions: Any, answers: Tensor, sizes: list[int], index: list[int]) -> Any:
        seen.append(len(set(index)))
        return whole(questions, answers, sizes, index)

    monkeypatch.setattr(dense, "_answer_logits", noted)
    together = dense.rank(output, candidates, lengths, 5)
    widest = max(dense.config.text_config.vocab_size, dense.config.text_config.intermediate_size)
    for tokens, expected in ((42, [2, 2]), (1, [1] * 4)):
        monkeypatch.setattr(vqa, "COMPARED_ELEMENTS", tokens * widest)
        parts = dense.rank(output, candidates, lengths, 5)
        assert seen == [4, *expected]
        del seen[1:]
        for ours, theirs in zip(parts, together, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("spec", [DENSE, PRUNED], ids=["dense", "pruned"])
@torch.no_grad()
def test_a_sample_alone_equals_itself_in_the_batch(spec: Any) -> None:
    """The same tokens in every layer, the same cost and answers, logits to 1e-4."""
    model = build(BlipForVqa, spec)
    together = model(**TAUGHT, learn=True)
    costs, written = model.macs(together), model.generate(together)
    logits = together.logits.split([length - 1 for length in ANSWER_LENGTHS])
    for row in range(4):
        alone = model(**_alone(row), learn=True)
        mine = torch.cat([logits[place] for place, question in enumerate(QUESTION) if question == row])
        torch.testing.assert_close(mine, alone.logits, atol=1e-4, rtol=0)
        assert kept(together.traces["vision"], IMAGE[row]) == kept(alone.traces["vision"], 0)
        assert kept(together.traces["text"], row) == kept(alone.traces["text"], 0)
        assert row_of(costs, row) == row_of(model.macs(alone), 0)
        assert written[row] == model.generate(alone)[0]
        for ours, own in zip(together.aligned, alone.aligned, strict=True):
            torch.testing.assert_close(ours[row], own[0], atol=1e-4, rtol=1e-4)
    if spec is PRUNED:
        assert together.questions.spans.total < sum(LENGTHS)
        assert len(set(together.images.spans.lengths)) > 1


@torch.no_grad()
def test_strength_zero_is_the_dense_model(dense: Any) -> None:
    """A plan without strength gives the very logits of no plan."""
    assert torch.equal(build(BlipForVqa, replace(PRUNED, strength=0.0))(**TAUGHT).logits, dense(**TAUGHT).logits)


def test_probes_are_what_enc_pays_to_its_image(dense: Any) -> None:
    """A distribution over 17 image tokens per question and layer, and the image it is about."""
    with torch.no_grad():
        probes = dense(**INPUTS, probe=True).probes
    assert [probe.image.tolist() for probe in probes] == [IMAGE] * 3
    for probe in probes:
        assert probe.probability.shape == (4, 2, 17)
        torch.testing.assert_close(probe.probability.sum(-1), torch.ones(4, 2))
    assert dense(**INPUTS).probes == ()


def test_every_parameter_learns(dense: Any) -> None:
    """A dense step with aligned features gives every one a gradient."""
    model = build(BlipForVqa).train()
    output = model(**TAUGHT, learn=True)
    losses = answer_losses(output.logits, TAUGHT["answers"], ANSWER_LENGTHS)
    (losses.sum() + sum(part.square().sum() for part in output.aligned)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


class Decoding(nn.Module):
    """The decoder over one question's states."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, questions: Any, ids: Tensor) -> Tensor:
        """Decode ids [T] at once."""
        return self.model._decode(questions, ids, [len(ids)], [0])


@pytest.mark.parametrize("spec", [DENSE, PRUNED], ids=["dense", "pruned"])
@torch.no_grad()
def test_costs_are_what_torch_counts(spec: Any) -> None:
    """Image and question encoder, and the decoder apart, each to 0.5 %; dense_macs module by module."""
    model = build(BlipForVqa, spec)
    args = (INPUTS["images"][:1], QUESTIONS[2], [9], [0])
    output = model(*args)
    spent = model.macs(output)
    assert counted(model, *args) == pytest.approx(int(total(spent)), rel=0.005)
    if spec is DENSE:
        assert row_of(spent, 0) == row_of(model.dense_macs([9]), 0)
    decoding = model.decoder_macs(output.questions.spans.lengths, [4])
    assert counted(Decoding(model), output.questions, ANSWERS[2][:4]) == pytest.approx(int(total(decoding)), rel=0.005)


def test_full_size_costs_what_is_published() -> None:
    """BLIP-B at 480: one image and one question, ~105.9 gmacs (method.md section 7, where norms count)."""
    with torch.device("meta"):
        model = BlipForVqa(base_config(480))
    assert model.dense_gmacs([14]) == pytest.approx(105.9, rel=0.01)
