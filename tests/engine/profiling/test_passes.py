"""The passes that published costs count: torch's own counter over the same passes, and the constants of the papers."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from madtp_cli.costs import published
from madtp_cli.costs.counters import torch_macs
from madtp_cli.costs.published import Measured
from madtp_cli.engine.profiling import passes
from madtp_cli.engine.profiling.costs import dense_costs
from madtp_cli.models.base import PrunedModel
from madtp_cli.models.configs import default_config
from madtp_cli.models.family import family_of, model_class
from tests.engine.tiny_tasks import IDS, KINDS, WORDS, build, sample

VQA, RETRIEVAL = ("blip", "vqa"), ("blip", "retrieval")


def metered(model: Any, given: dict[str, Any]) -> Measured:
    """Run one sample and say what it cost."""
    meter = passes.PassMeter()
    with torch.no_grad():
        meter.add(model, model(**given), given["text"])
    return meter.measured(model)


def full_size(kind: tuple[str, str]) -> PrunedModel:
    """Build the published model without weights."""
    with torch.device("meta"):
        return model_class(*kind)(default_config(*kind))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_torch_agrees_with_the_dense_cost_of_every_task(
    kind: tuple[str, str], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlopCounterMode over one sample, also without weights, counts what arithmetic says, to 0.5 %."""
    if device == "meta":  # which autocast does not know
        monkeypatch.setattr(torch, "autocast", lambda *_args, **_options: nullcontext())
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda _device: False)
    model, given = build(kind, device=device), sample(kind, device=device)
    count = torch_macs(model, *given.values())
    assert count.unknown == {}
    assert count.macs == pytest.approx(dense_costs(model, [WORDS]).dense, rel=0.005)


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_arithmetic_is_what_a_dense_pass_measures(kind: tuple[str, str]) -> None:
    """Nothing has to run to know a dense model: costs, tokens and second passes are those of a forward pass."""
    model = build(kind)
    ran, told = metered(model, sample(kind)), passes.dense(model, [WORDS])
    assert ran.macs == told.macs
    assert ran.tokens == told.tokens
    assert ran.matching == told.matching
    assert list(ran.read) == list(told.read)


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_passes_split_what_a_pruned_sample_costs(kind: tuple[str, str]) -> None:
    """Images and the text over them add up to the sample; pruning makes every pass that it reaches cheaper."""
    model = build(kind, strength=0.5)
    found, dense = metered(model, sample(kind)), passes.dense(model, [WORDS])
    left, whole = family_of(model.family).passes(model, found), family_of(model.family).passes(model, dense)
    own = {
        "nlvr2": {published.IMAGE: 2, published.SENTENCE: 1},
        "caption": {published.IMAGE: 1, published.CAPTION: 1},
        "vqa": {published.IMAGE: 1, published.IMAGE_MEMORY: 1, published.QUESTION: 1},
        "retrieval": {published.IMAGE: 1, published.TEXT: 1},
    }[kind[1]]
    for measured, parts in ((found, left), (dense, whole)):
        once = sum(times * sum(parts[name].macs.values()) for name, times in own.items())
        assert once == pytest.approx(sum(measured.macs.values()), rel=1e-12)
    assert set(left) == set(family_of(kind[0]).calls[kind[1]].passes)
    for name, times in family_of(kind[0]).calls[kind[1]].passes.items():
        assert times > 0
        if name not in (published.SIMILARITIES, published.ANSWER):
            assert left[name].published_macs < whole[name].published_macs, name
        elif name == published.SIMILARITIES:
            assert left[name] == whole[name]


def test_many_questions_and_answers_share_what_they_read() -> None:
    """Torch counts 32 questions over one image and 47 answers over the first: the composition, before its norms."""
    model, given = build(VQA), sample(VQA, texts=32)
    length = published.ANSWER_TOKENS + 1  # of which the last is not decoded
    answers = torch.randint(3, 36, (47 * length,))

    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *args: Any) -> Any:
            return self.model(
                *args, answers=answers, answer_lengths=[length] * 47, answer_index=[0] * 47
            ).logits  # fmt: skip

    count = torch_macs(Call(), *given.values())
    macs = published.compose(
        family_of("blip").calls["vqa"], family_of(model.family).passes(model, passes.dense(model, [WORDS]))
    )
    assert count.macs == sum(macs.values()) - macs[published.NORMS]


def test_a_matching_pass_is_what_torch_counts() -> None:
    """One text over one encoded image."""
    model, given = build(RETRIEVAL), sample(RETRIEVAL)
    with torch.no_grad():
        seen = model(**given).images

    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Any:
            return self.model.match(seen, given["text"], given["text_lengths"], [(0, 0)])

    found = passes.second_passes(model, passes.dense(model, [WORDS]))
    assert found == {published.MATCH: torch_macs(Call()).macs}


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_norms_are_those_that_run(kind: tuple[str, str]) -> None:
    """Hooks on every layer norm of a pruned sample see as many elements as the image's and text's passes say."""
    model, seen = build(kind, strength=0.5), [0]
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(lambda _m, _i, out: seen.__setitem__(0, seen[0] + out.numel()))
    with torch.no_grad():
        output = model(**sample(kind))
    ran = seen[0]
    meter = passes.PassMeter()
    with torch.no_grad():
        meter.add(model, output, sample(kind)["text"])
    parts = family_of(model.family).passes(model, meter.measured(model))
    reads = {"nlvr2": published.SENTENCE, "caption": published.CAPTION, "vqa": published.QUESTION}
    told = model.images_per_text * parts[published.IMAGE].normalised
    told += parts[reads.get(kind[1], published.TEXT)].normalised
    if kind[0] == "clip":  # ours norms all tokens at the end, the released code the class token only
        told += (output.images.spans.total - 1) * model.config.vision_config.hidden_size
    assert told == ran


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_published_constants_are_reproduced(kind: tuple[str, str]) -> None:
    """At full size and the published lengths every constant comes out to 0.01 %; without norms to 0.2 %."""
    model, call = full_size(kind), family_of(kind[0]).calls[kind[1]]
    macs = published.compose(call, family_of(model.family).passes(model, passes.dense(model, [call.text_tokens])))
    assert sum(macs.values()) / 1e9 == pytest.approx(call.gmacs, rel=1e-4)
    assert (sum(macs.values()) - macs[published.NORMS]) / 1e9 == pytest.approx(call.gmacs, rel=2e-3)
    assert passes.is_published(model)


@pytest.mark.parametrize(
    ("kind", "image", "text", "second"),
    [
        (("blip", "nlvr2"), 55.5, 21.46, 0.0),
        (("blip", "caption"), 55.5, 10.18, 0.0),
        (("blip", "vqa"), 92.0, 13.8, 0.62),
        (("blip", "retrieval"), 55.5, 3.0, 12.03),
        (("clip", "retrieval"), 191.0, 6.65, 0.0),
    ],
    ids=IDS,
)
def test_a_sample_of_the_published_models(kind: tuple[str, str], image: float, text: float, second: float) -> None:
    """One image, the text that goes with it, and what comes on top, in gmacs; to what is printed of them."""
    model = full_size(kind)
    costs = dense_costs(model, [family_of(kind[0]).calls[kind[1]].sample_tokens])
    images = sum(macs for path, macs in costs.modules.items() if path.startswith("vis")) / model.images_per_text
    assert images / 1e9 == pytest.approx(image, abs=0.05)
    assert costs.macs / 1e9 - model.images_per_text * images / 1e9 == pytest.approx(text, abs=0.05)
    assert costs.measured is not None
    on_top = sum(passes.second_passes(model, costs.measured).values())
    assert on_top / 1e9 == pytest.approx(second, abs=0.01)


@pytest.mark.parametrize("change", [{"image_size": 480}, {}])
def test_another_size_is_not_the_published_architecture(change: dict[str, int]) -> None:
    """A constant is compared with its own architecture only, at its own image size."""
    with torch.device("meta"):
        model = model_class("blip", "nlvr2")(default_config("blip", "nlvr2", change))
    assert passes.is_published(model) is (not change)
    assert not passes.is_published(build(("blip", "nlvr2")))
