"""`variant: released` on `.pth` files in the released layout, against a second implementation and numbers by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from madtp_cli.alignment import alignment_loss
from madtp_cli.attention import attend_with_statistics
from madtp_cli.models.checkpoints import open_checkpoint
from madtp_cli.models.family import model_class
from madtp_cli.models.spec import PruningSpec
from madtp_cli.models.tower import LayerTrace
from madtp_cli.pruning import Evidence, Madtp
from madtp_cli.tokens import Selection, Spans, Tokens, compact
from tests.models.released_reference import Layer, Reference, Tower, similarity_loss
from tests.models.released_states import released

VISION_HEADS, TEXT_HEADS = 4, 2
PAD, CLS, SEP, DEC, ENC = 0, 1, 2, 48, 49
HEADS = {"vision_heads": VISION_HEADS, "text_heads": TEXT_HEADS}
IDS = {"pad_token_id": PAD, "cls_token_id": CLS, "sep_token_id": SEP, "dec_token_id": DEC, "enc_token_id": ENC}
LENGTH = 12
TEMPERATURES = pytest.mark.parametrize("temperature", [0, 1, 3])
CLOSE: Any = {"atol": 1e-4, "rtol": 1e-4, "check_dtype": False}


@dataclass
class Noting:
    """The model's own pruner, which also notes the scores [T] and thresholds [B] of every layer that it prunes."""

    pruner: Madtp
    needs: Any = Madtp.needs
    couples: bool = True
    noted: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def select(self, evidence: Evidence, strength: float) -> Selection:
        """Select as the pruner does."""
        assert evidence.guidance is not None
        scores = self.pruner.importance(evidence, evidence.guidance)
        self.noted.append((scores, self.pruner.threshold(scores, evidence.guidance, evidence.tokens, strength)))
        return self.pruner.select(evidence, strength)


@dataclass(frozen=True)
class Opened:
    """A released checkpoint as our model, what its pruner notes, and the reference on the same tensors."""

    model: Any
    noted: list[tuple[Tensor, Tensor]]
    reference: Reference

    def run(self, **inputs: Any) -> Any:
        """Run our model."""
        with torch.no_grad():
            return self.model(**inputs, learn=True)

    def check(self, found: Sequence[LayerTrace], expected: Tower) -> None:
        """Compare the next tower that was run: kept tokens exactly, scores and thresholds to 1e-4."""
        noted = [self.noted.pop(0) for layer in found if layer.prunes]
        assert len(noted) == len(expected.layers)
        for ours, (scores, theta), theirs in zip(found, noted, expected.layers, strict=False):
            # Neither implementation's rounding may decide what is kept.
            assert theirs.margin > 1e-6
            assert [sorted(part.tolist()) for part in ours.kept.split(list(ours.leaving))] == theirs.kept
            assert ours.guidance is not None
            for values, of in ((scores, theirs.tis), (ours.guidance, theirs.best)):
                _same_scores(ours, values, theirs, of)
            torch.testing.assert_close(theta, theirs.theta, **CLOSE)


def _same_scores(ours: LayerTrace, values: Tensor, theirs: Layer, expected: Tensor) -> None:
    """Compare values of the tokens that entered, but class tokens, whatever their order."""
    rows = zip(ours.position.split(list(ours.spans.lengths)), values.split(list(ours.spans.lengths)), strict=True)
    for row, (position, value) in enumerate(rows):
        found = sorted(zip(position[1:].tolist(), value[1:].tolist(), strict=True))
        wanted = sorted(zip(theirs.position[row].tolist(), expected[row].tolist(), strict=True))
        assert [place for place, _ in found] == [place for place, _ in wanted]
        torch.testing.assert_close(torch.tensor([v for _, v in found]), torch.tensor([v for _, v in wanted]), **CLOSE)


def _same_states(ours: Tokens, theirs: Tower) -> None:
    """Compare the states of all tokens, whatever their order."""
    lengths = list(ours.spans.lengths)
    for row, (x, position) in enumerate(zip(ours.x.split(lengths), ours.position.split(lengths), strict=True)):
        expected = _in_order(theirs.x[row], theirs.position[row])
        torch.testing.assert_close(_in_order(x, position), expected, **CLOSE)


def _in_order(x: Tensor, position: Tensor) -> Tensor:
    """Sort tokens [N, C] by position; merged tokens, which all have -1, by their first channel."""
    keys = zip(position.tolist(), x[:, 0].tolist(), range(len(x)), strict=True)
    return x[[index for *_, index in sorted(keys)]]


def _drawn(kind: str) -> dict[str, Tensor]:
    """Draw a released state dict whose activations stay of order one, so that no softmax is saturated."""
    state = released(kind)
    for key, value in state.items():
        if not value.is_floating_point() or key == "temp":
            continue
        if "norm" in key.lower() or ".ln_" in key:
            state[key] = value * 0.1 + (1 if key.endswith("weight") else 0)
        elif key.endswith("bias") or "embed" in key or key.endswith("cls_token"):
            state[key] = value * 0.5
        elif key == "space_dict":
            state[key] = value * 0.1  # larger logits make W one-hot, and theta the score of one of the tokens
        elif value.dim() > 1:
            state[key] = value * 1.5 / value[0].numel() ** 0.5
    if "temp" in state:
        state["temp"] = torch.tensor(0.2)
    for key in [key for key in state if key.endswith("predictions.decoder.weight")]:
        state[key] = state[key.replace("cls.predictions.decoder", "bert.embeddings.word_embeddings")]
        state[key.replace("weight", "bias")] = state[key.replace("decoder.weight", "bias")]
    return state


def _open(folder: Path, kind: str, temperature: float, state: dict[str, Tensor] | None = None) -> Opened:
    state = _drawn(kind) if state is None else state
    path = folder / f"{kind}.pth"
    torch.save({"model": state}, path)
    ids = IDS if kind != "clip" else {}
    model = open_checkpoint(path, config={**HEADS, **ids, "pruning_temperature": temperature}).build()
    noted: list[tuple[Tensor, Tensor]] = []
    if temperature:
        assert model.plan is not None
        assert isinstance(model.plan.pruner, Madtp)
        model.plan = replace(model.plan, pruner=Noting(model.plan.pruner, noted=noted))
    least = 2 if kind == "clip" else 1
    return Opened(model, noted, Reference(state, temperature, VISION_HEADS, TEXT_HEADS, least))


def _images(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))


def _ids(count: int, first: int, length: int = LENGTH) -> Tensor:
    """Draw texts of one length [B, N] between a first token and [SEP]."""
    ids = torch.randint(3, DEC, (count, length), generator=torch.Generator().manual_seed(count))
    ids[:, 0], ids[:, -1] = first, SEP
    return ids


def _check_alignment(found: tuple[Tensor, Tensor] | None, image: Tensor, text: Tensor) -> None:
    """Compare aligned features and L_sim."""
    assert found is not None
    for ours, theirs in zip(found, (image, text), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    torch.testing.assert_close(alignment_loss(*found), similarity_loss(image, text), **CLOSE)


def _check_pruned(temperature: float, *towers: Tower) -> None:
    """Make sure that the comparison is one of pruning: in every tower tokens went, and not all of them."""
    for tower in towers:
        merged = (tower.position == -1).any(1)
        assert bool(merged.all() if temperature else not merged.any())
        assert tower.position.shape[1] > 3


@TEMPERATURES
def test_questions_over_an_image(temperature: float, tmp_path: Path) -> None:
    """VQA, questions of one length: both towers, question states and answer logits; the decoder prunes nothing."""
    opened, images, questions = _open(tmp_path, "vqa", temperature), _images(3), _ids(4, ENC)
    index, answers = [2, 0, 1, 0], [_ids(1, DEC, length)[0] for length in (3, 5, 2, 4, 5)]
    answer_index = [0, 0, 1, 2, 3]
    output = opened.run(
        images=images,
        text=questions.flatten(),
        text_lengths=[LENGTH] * 4,
        image_index=index,
        answers=torch.cat(answers),
        answer_lengths=[len(answer) for answer in answers],
        answer_index=answer_index,
    )
    seen = opened.reference.blip_vision(images)
    read = opened.reference.bert("text_encoder", questions, [seen.x[index]])
    opened.check(output.traces["vision"], seen)
    opened.check(output.traces["text"], read)
    _same_states(output.images, seen)
    _same_states(output.questions, read)
    _check_alignment(output.aligned, seen.aligned[index], read.aligned)
    _check_pruned(temperature, seen, read)
    logits = []
    for answer, row in zip(answers, answer_index, strict=True):
        over = [read.x[row : row + 1]]
        written = opened.reference.bert("text_decoder.bert", answer[None], over, prunes=False, causal=True)
        logits.append(opened.reference.words(written.x)[0, :-1])
    torch.testing.assert_close(output.logits, torch.cat(logits), **CLOSE)


@TEMPERATURES
def test_texts_alone_and_over_an_image(temperature: float, tmp_path: Path) -> None:
    """BLIP retrieval: vision, the text encoder alone, and the matching pass over given pairs, which prunes as well."""
    opened, images, texts = _open(tmp_path, "retrieval", temperature), _images(3), _ids(4, CLS)
    index, pairs = [2, 0, 1, 0], [(0, 2), (1, 2), (3, 1), (2, 0), (1, 0)]
    output = opened.run(
        images=images, text=texts.flatten(), text_lengths=[LENGTH] * 4, image_index=index, itm_pairs=pairs
    )
    reference = opened.reference
    seen, alone = reference.blip_vision(images), reference.bert("text_encoder", texts)
    asked = texts[[row for row, _ in pairs]]
    asked[:, 0] = ENC
    over = reference.bert("text_encoder", asked, [seen.x[[image for _, image in pairs]]])
    for found, tower in ((output.traces["vision"], seen), (output.traces["text"], alone), (output.itm.text, over)):
        opened.check(found, tower)
    _same_states(output.images, seen)
    _check_alignment(output.aligned, seen.aligned[index], alone.aligned)
    _check_pruned(temperature, seen, alone, over)
    image_embeds = normalize(reference.linear("vision_proj", seen.x[:, 0]), dim=-1)
    text_embeds = normalize(reference.linear("text_proj", alone.x[:, 0]), dim=-1)
    torch.testing.assert_close(output.image_embeds, image_embeds, **CLOSE)
    torch.testing.assert_close(output.text_embeds, text_embeds, **CLOSE)
    torch.testing.assert_close(output.logits, text_embeds @ image_embeds.T / 0.2, **CLOSE)
    torch.testing.assert_close(output.itm.logits, reference.linear("itm_head", over.x[:, 0]), **CLOSE)


@TEMPERATURES
def test_captions(temperature: float, tmp_path: Path) -> None:
    """Only vision prunes; the decoder's logits follow, and its inputs stand in as the text's aligned features."""
    opened, images, captions = _open(tmp_path, "caption", temperature), _images(3), _ids(4, DEC)
    index = [2, 0, 1, 0]
    output = opened.run(images=images, text=captions.flatten(), text_lengths=[LENGTH] * 4, image_index=index)
    seen = opened.reference.blip_vision(images)
    over = [seen.x[index]]
    written = opened.reference.bert("text_decoder.bert", captions, over, prunes=False, causal=True)
    opened.check(output.traces["vision"], seen)
    opened.check(output.traces["text"], written)
    assert [layer.leaving for layer in output.traces["text"]] == [(LENGTH,) * 4] * 3
    _same_states(output.images, seen)
    _check_alignment(output.aligned, seen.aligned[index], written.aligned)
    _check_pruned(temperature, seen)
    torch.testing.assert_close(output.logits.unflatten(0, (4, -1)), opened.reference.words(written.x), **CLOSE)


@TEMPERATURES
def test_sentences_over_two_images(temperature: float, tmp_path: Path) -> None:
    """NLVR2: left and right images are one batch, whose most demanding image sets the count of all."""
    opened, images, sentences = _open(tmp_path, "nlvr2", temperature), _images(6), _ids(3, ENC)
    output = opened.run(
        images=images,
        text=sentences.flatten(),
        text_lengths=[LENGTH] * 3,
        image_index=[(0, 3), (1, 4), (2, 5)],
    )
    seen = opened.reference.blip_vision(images)
    read = opened.reference.bert("text_encoder", sentences, [seen.x[:3], seen.x[3:]])
    opened.check(output.traces["vision"], seen)
    opened.check(output.traces["text"], read)
    _same_states(output.images, seen)
    _check_alignment(output.aligned, (seen.aligned[:3] + seen.aligned[3:]) / 2, read.aligned)
    _check_pruned(temperature, seen, read)
    hidden = opened.reference.linear("cls_head.0", read.x[:, 0]).relu()
    torch.testing.assert_close(output.logits, opened.reference.linear("cls_head.2", hidden), **CLOSE)


@TEMPERATURES
def test_images_of_clip(temperature: float, tmp_path: Path) -> None:
    """CLIP's images, which prune by one map per layer; its text does not prune."""
    opened, images = _open(tmp_path, "clip", temperature), _images(3)
    with torch.no_grad():
        tokens, vision = opened.model.encode_images(images, learn=True)
    seen = opened.reference.clip_vision(images)
    opened.check(vision.trace, seen)
    _same_states(tokens, seen)
    torch.testing.assert_close(vision.aligned, seen.aligned, **CLOSE)
    _check_pruned(temperature, seen)


def test_clip_prunes_nothing_where_one_token_would_be_kept(tmp_path: Path) -> None:
    """Where all queries look at one patch, BLIP's rule would keep it alone; the released CLIP prunes nothing."""
    state, name, width = _drawn("clip"), "visual.transformer.resblocks.0.attn.in_proj", 48
    keys = state[f"{name}_weight"][width : 2 * width].unflatten(0, (VISION_HEADS, -1))
    keys[:] = keys[:1].clone()
    state[f"{name}_bias"][:width] = 10
    opened, images = _open(tmp_path, "clip", 3, state), _images(1)
    reference = opened.reference
    alone = Reference(state, 3, VISION_HEADS, TEXT_HEADS, least=1).clip_vision(images)
    assert len(alone.layers[0].kept[0]) == 3
    with torch.no_grad():
        tokens, vision = opened.model.encode_images(images)
    seen = reference.clip_vision(images)
    assert vision.trace[0].leaving == (17,)
    assert vision.trace[1].leaving[0] < 17
    opened.check(vision.trace, seen)
    _same_states(tokens, seen)


@pytest.mark.parametrize(
    ("lowered", "family", "tis", "theta", "left"),
    [
        (0, "blip", [881, 292, 292, 404], 421.625, [0, 1, -1]),
        (0, "clip", [881, 292, 292, 404], 421.625, [0, 1, 2, 3, 4]),
        (3, "blip", [769, 404, 404, 292], 393.625, [0, 1, 2, 3, 4]),
    ],
    ids=["one is kept", "one would be kept", "one would go"],
)
def test_one_layer_by_hand(lowered: int, family: str, tis: list[int], theta: float, left: list[int]) -> None:
    """Four patches, two heads, two alignment tokens; all scores in 2016ths.

    Every query attends with 1/8 to every token, but with 1/2 to patch 1 in head 0 and to the class token in head 1, and
    reads 3 and 1, so that the heads' shares are 3/4 and 1/4:
    S_cls = 13/32 1/8 1/8 1/8; S_self = 4 x (1/2 1/8 1/8 1/8) / 3.5 = 4/7 1/7 1/7 1/7.
    The logits are 2 1 0 0 and 0 0 1 2: S_token = (2 1 1 2) / 6; lowered by 3 it is (-1 -2 -2 -1) / -6, the best last.
    At T = 1 / ln 2 the weights W are powers of two: 1/2 1/4 1/8 1/8 and 1/8 1/8 1/4 1/2. Theta is the lesser of their
    means of TIS: 881/2 + 292/4 + 292/8 + 404/8 = 600.5 or 421.625; lowered, 572.5 or 393.625.
    Kept alone, patch 1 leaves the others to be merged by 292, 292 and 404 parts of 988: 73, 73 and 101 of 247.
    """
    x = torch.tensor([[9.0, 9.0], [1.0, 0.0], [2.0, 1.0], [3.0, 0.0], [4.0, 2.0]])
    tokens = Tokens.pack(x, Spans.of([5]), prefix=1)
    q, v = torch.ones(5, 2, 1), torch.tensor([[3.0], [1.0]]).expand(5, 2, 1)
    k = torch.tensor([[1.0, 4.0], [4.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]).log()[..., None]
    _, statistics = attend_with_statistics(q, k, v, tokens.spans)
    logits = torch.tensor([[7.0, 7.0], [2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0]]) - lowered
    spec = PruningSpec(
        method="madtp", variant="released", temperature=1 / log(2), alignment_tokens=2, alignment_dim=2, layers={}
    )
    plan = spec.plan(least=model_class(family, "retrieval").released_least)
    assert plan is not None
    assert isinstance(plan.pruner, Madtp)
    evidence = Evidence(tokens, 0, statistics, logits)
    scores = plan.pruner.importance(evidence, logits)
    torch.testing.assert_close(scores, torch.tensor([0, *tis]) / 2016)
    found = plan.pruner.threshold(scores, logits, tokens, 0.5)
    torch.testing.assert_close(found, torch.tensor([theta / 2016]))
    out = compact(tokens, plan.pruner.select(evidence, 0.5))
    assert out.position.tolist() == left
    merged = [(73 * 2 + 73 * 3 + 101 * 4) / 247, (73 * 1 + 73 * 0 + 101 * 2) / 247]
    torch.testing.assert_close(out.x, torch.tensor([[9.0, 9.0], [1.0, 0.0], merged]) if len(left) == 3 else x)
