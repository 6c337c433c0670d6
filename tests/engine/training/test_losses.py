"""The parts of the loss by hand: every number in the expectations is worked out on paper or by plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from madtp_cli.engine.training.losses import (
    Lesson,
    aligned_loss,
    distillation_losses,
    guidance_loss,
    guidance_target,
    logit_loss,
)
from madtp_cli.engine.training.settings import LossWeights
from madtp_cli.models.base import Output, Probe
from madtp_cli.models.tower import LayerTrace
from madtp_cli.tokens import Spans, Tokens


def _trace(position: list[list[int]], guidance: list[list[float]], layer: int = 0) -> LayerTrace:
    """Make the trace of one vision layer that was entered by these tokens."""
    return LayerTrace(
        site="vision",
        layer=layer,
        prefix=1,
        spans=Spans.of([len(p) for p in position]),
        position=torch.tensor([p for image in position for p in image]),
        leaving=(),
        kept=torch.tensor([]),
        prunes=True,
        guidance=torch.tensor([g for image in guidance for g in image]),
    )


def _output(logits: Tensor, *, images: int = 2, trace: tuple[LayerTrace, ...] = ()) -> Output:
    return Output(
        logits=logits,
        encoded=torch.zeros(len(logits), 4),
        images=Tokens.pack(torch.zeros(3 * images, 4), Spans.of([3] * images), prefix=1),
        traces={"vision": trace},
        text_lengths=[1] * len(logits),
        image_index=[(0, 1)] * len(logits),
    )


def probes_of(layers: Sequence[Sequence[Tensor]], pairs: Sequence[tuple[int, int]]) -> tuple[Probe, ...]:
    """Say which images the left and the right attention of every layer is paid to."""
    images = torch.tensor(pairs).unbind(1)
    return tuple(Probe(side, image) for layer in layers for side, image in zip(layer, images, strict=True))


def test_logit_loss_of_equal_logits_is_zero() -> None:
    """The identity, also for logits that differ by a constant."""
    logits = torch.randn(5, 2)
    for student in (logits, logits + 3):
        torch.testing.assert_close(logit_loss(student, logits, 2.0), torch.tensor(0.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_logit_loss_is_the_softened_divergence_from_the_teacher(temperature: float) -> None:
    """T^2 * sum of p log(p / q) with p the teacher, averaged over two samples, in plain numbers."""
    student, teacher = [[0.0, 1.0], [2.0, -1.0]], [[1.0, 0.0], [0.5, 0.0]]
    expected = 0.0
    for s, t in zip(student, teacher, strict=True):
        q, p = ([math.exp(x / temperature) for x in row] for row in (s, t))
        expected += sum(b / sum(p) * math.log(b / sum(p) / (a / sum(q))) for a, b in zip(q, p, strict=True)) / 2
    loss = logit_loss(torch.tensor(student), torch.tensor(teacher), temperature)
    torch.testing.assert_close(loss, torch.tensor(temperature**2 * expected))


def test_guidance_target_by_hand() -> None:
    """One layer and head: squares of what two sentences see, added per image, class token left out, renormalised."""
    left = torch.tensor([[[0.8, 0.1, 0.1]], [[0.2, 0.6, 0.2]]])  # sentences read images 0 and 0 on the left
    right = torch.tensor([[[0.0, 0.3, 0.7]], [[0.5, 0.5, 0.0]]])  # and images 1 and 0 on the right
    probes = [Probe(left, torch.tensor([0, 0])), Probe(right, torch.tensor([1, 0]))]
    target = guidance_target(probes, images=3)
    first = [0.01 + 0.36 + 0.25, 0.01 + 0.04]
    second = [0.09, 0.49]
    expected = [[x / sum(row) for x in row] for row in (first, second)] + [[0, 0]]  # nobody reads image 2
    torch.testing.assert_close(target, torch.tensor(expected))


def test_guidance_target_averages_layers_and_heads() -> None:
    """The same from plain loops over three layers and two heads."""
    generator = torch.Generator().manual_seed(0)
    pairs = [(0, 1), (1, 0), (1, 2)]
    layers = [tuple(torch.rand(3, 2, 5, generator=generator).softmax(-1) for _ in range(2)) for _ in range(3)]
    expected = torch.zeros(3, 4)
    for left, right in layers:
        for sentence, pair in enumerate(pairs):
            for side, image in zip((left, right), pair, strict=True):
                for head in range(2):
                    expected[image] += side[sentence, head, 1:] ** 2
    target = guidance_target(probes_of(layers, pairs), images=3)
    torch.testing.assert_close(target, expected / expected.sum(1, keepdim=True))
    torch.testing.assert_close(target.sum(1), torch.ones(3))


def test_guidance_loss_by_hand_with_a_merged_token() -> None:
    """Image 0 lost patch 2 into a merged token: the rest of its target is 1/4 and 3/4; image 1 is whole and uniform.

    Softmax over the tokens but the class token: image 0 gives (e, 1, 1) / (e + 2), image 1 a half each.
    """
    trace = _trace([[0, 1, -1, 3], [0, 1, 2]], [[9, 1, 0, 0], [-9, 4, 4]])
    target = torch.tensor([[0.2, 0.2, 0.6], [0.5, 0.5, 0.0]])
    e = math.e
    first = 0.25 * math.log(0.25 * (e + 2) / e) + 0.75 * math.log(0.75 * (e + 2))
    torch.testing.assert_close(guidance_loss([trace], target, 1.0), torch.tensor(first / 2))
    uniform = guidance_loss([trace], target, 0.0)  # a scale of zero makes image 0's guidance three thirds
    first = 0.25 * math.log(0.75) + 0.75 * math.log(2.25)
    torch.testing.assert_close(uniform, torch.tensor(first / 2))


def test_guidance_that_is_the_target_costs_nothing() -> None:
    """Logits log(target) on whole images, whatever the class token's own guidance."""
    target = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])
    guidance = [[5.0, *row] for row in target.log().tolist()]
    loss = guidance_loss([_trace([[0, 1, 2, 3]] * 2, guidance)], target, 1.0)
    torch.testing.assert_close(loss, torch.tensor(0.0), atol=1e-6, rtol=0)


def test_an_image_whose_target_is_gone_costs_nothing() -> None:
    """All patches that matter were merged, or nobody reads the image: nothing to teach, and no nan."""
    target = torch.tensor([[1.0, 0, 0], [0, 0, 0]])
    guidance = torch.tensor([1.0, 2, 3, 4, 5, 6, 7], requires_grad=True)
    trace = replace(_trace([[0, -1, 2], [0, 1, 2, 3]], [[0] * 3, [0] * 4]), guidance=guidance)
    loss = guidance_loss([trace], target, 1.0)
    assert loss.item() == 0
    loss.backward()
    assert guidance.grad is not None
    assert not guidance.grad.any()


def test_guidance_loss_is_the_mean_over_layers() -> None:
    """Two layers together cost the mean of each alone."""
    target = torch.tensor([[0.1, 0.9]])
    layers = [_trace([[0, 1, 2]], [[0, 1, 2]]), _trace([[0, 1, 2]], [[0, 3, 1]])]
    one, two = (guidance_loss([layer], target, 0.5) for layer in layers)
    torch.testing.assert_close(guidance_loss(layers, target, 0.5), (one + two) / 2)
    assert one < two


def test_guidance_learns_towards_the_target() -> None:
    """The gradient is scale * (softmax - target) / images: by hand for one image."""
    guidance = torch.tensor([7.0, 0.0, 0.0], requires_grad=True)
    trace = replace(_trace([[0, 1, 2]], [[0, 0, 0]]), guidance=guidance)
    guidance_loss([trace], torch.tensor([[0.2, 0.8]]), 3.0).backward()
    assert guidance.grad is not None
    torch.testing.assert_close(guidance.grad, torch.tensor([0, 3 * 0.3, -3 * 0.3]))


def test_distillation_adds_the_weighted_parts() -> None:
    """Each part is its own function times its weight, taken over the layers that prune."""
    torch.manual_seed(0)
    traces = tuple(_trace([[0, 1, 2]] * 2, torch.randn(2, 3).tolist(), layer) for layer in range(3))
    student = replace(_output(torch.randn(2, 2), trace=traces), encoded=torch.randn(2, 4))
    probes = probes_of([(torch.rand(2, 1, 3), torch.rand(2, 1, 3)) for _ in range(2)], [(0, 1), (1, 0)])
    target, logits, encoded = guidance_target(probes, 2), torch.randn(2, 2), torch.randn(2, 4)
    lesson = Lesson([logits], encoded, target)
    weights = LossWeights(logits=2.0, temperature=3.0, guidance=5.0, features=7.0)
    parts = distillation_losses(student, [student.logits], lesson, {"vision": frozenset({0, 2})}, weights, 0.5)
    expected = {
        "logits": 2 * logit_loss(student.logits, logits, 3.0),
        "features": 7 * (student.encoded - encoded).square().mean(),
        "guidance": 5 * guidance_loss([traces[0], traces[2]], target, 0.5),
    }
    assert set(parts) == set(expected)
    for name, part in parts.items():
        torch.testing.assert_close(part, expected[name])


def test_distillation_computes_no_part_that_counts_nothing() -> None:
    """Weights of zero, and guidance without a layer to teach, for which the teacher was not probed."""
    student, lesson = _output(torch.randn(2, 2)), Lesson([torch.randn(2, 2)])
    none = LossWeights(logits=0.0, guidance=0.0, features=0.0)
    assert distillation_losses(student, [student.logits], lesson, {"vision": frozenset({0})}, none, 1.0) == {}
    only_text = distillation_losses(student, [student.logits], lesson, {}, LossWeights(), 1.0)
    assert set(only_text) == {"logits"}


def test_several_distributions_count_on_average() -> None:
    """Two pairs of logits, as retrieval compares both ways: the mean of each one's loss, times the weight."""
    compared = [(torch.randn(2, 3), torch.randn(2, 3)), (torch.randn(5, 2), torch.randn(5, 2))]
    own, lesson = [pair[0] for pair in compared], Lesson([pair[1] for pair in compared])
    parts = distillation_losses(_output(torch.zeros(2, 2)), own, lesson, {}, LossWeights(logits=3.0), 1.0)
    one, other = (logit_loss(*pair, 2.0) for pair in compared)
    torch.testing.assert_close(parts["logits"], 1.5 * (one + other))


def test_aligned_loss_is_that_of_the_paired_features() -> None:
    """Zero where the text is its images' feature at any scale; one where it is orthogonal."""
    images = torch.tensor([[[1.0, 1.0]], [[2.0, 0.0]]])
    text = torch.tensor([[[3.0, 3.0]], [[0.0, 1.0]]])
    output = replace(_output(torch.zeros(2, 2)), aligned=(images, text))
    torch.testing.assert_close(aligned_loss(output), torch.tensor(0.5))
