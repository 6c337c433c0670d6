"""The parts of the training loss. Shapes: S sentences, I images, N patches, K alignment tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, mse_loss, pad

from madtp_cli.alignment import alignment_loss
from madtp_cli.engine.training.settings import LossWeights
from madtp_cli.models.base import Output, Probe
from madtp_cli.models.tower import LayerTrace


@dataclass(frozen=True)
class Lesson:
    """What the losses compare a student with: logits [R, n] each, states [S, C], and the guidance target [I, N].

    What no loss asks for is left out.
    """

    compared: Sequence[Tensor] = ()
    encoded: Tensor | None = None
    target: Tensor | None = None


def distillation_losses(
    student: Output,
    compared: Sequence[Tensor],
    lesson: Lesson,
    guided: Mapping[str, frozenset[int]],
    weights: LossWeights,
    guidance_scale: float,
) -> dict[str, Tensor]:
    """Compare a pruned model's forward pass with what the dense model gives for the same batch, each part weighted.

    `compared` holds the student's logits [R, n] of each pair; `guided` names layers of image sites.
    """
    parts: dict[str, Tensor] = {}
    if weights.logits:
        each = [
            logit_loss(one, other, weights.temperature) for one, other in zip(compared, lesson.compared, strict=True)
        ]
        parts["logits"] = weights.logits * torch.stack(each).mean()
    if weights.features and lesson.encoded is not None:
        parts["features"] = weights.features * mse_loss(student.encoded.float(), lesson.encoded.float())
    if weights.guidance and any(guided.values()) and lesson.target is not None:
        trace = [t for site, layers in guided.items() for t in student.traces[site] if t.layer in layers]
        parts["guidance"] = weights.guidance * guidance_loss(trace, lesson.target, guidance_scale)
    return parts


def logit_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(teacher || student) of logits [S, n] softened by temperature T (Hinton et al. 2015)."""
    return temperature**2 * kl_div(
        log_softmax(student / temperature, -1),
        log_softmax(teacher / temperature, -1),
        reduction="batchmean",
        log_target=True,
    )


@torch.no_grad()
def guidance_target(probes: Sequence[Probe], images: int) -> Tensor:
    """Sharpen the dense model's attention to its images into a distribution over each image's patches: [I, N].

    Probabilities are squared, averaged over layers, heads and the queries that read the image, and renormalised without
    the class token. Unsharpened they are too flat to teach a ranking.
    """
    first = probes[0].probability
    paid = first.new_zeros(images, first.shape[-1] - probes[0].prefix)
    for probe in probes:
        paid.index_add_(0, probe.image, squared_attention(probe))
    return distribution(paid)


def squared_attention(probe: Probe) -> Tensor:
    """Return the squares of what queries pay to the patches of their image, averaged over heads: [Q, N]."""
    return probe.probability.square().mean(1)[:, probe.prefix :]


def distribution(paid: Tensor) -> Tensor:
    """Renormalise rows [I, N] that are not zero."""
    return paid / paid.sum(-1, keepdim=True).clamp_min(1e-12)


def guidance_loss(trace: Sequence[LayerTrace], target: Tensor, scale: float) -> Tensor:
    """Return KL(target || softmax of the guidance over an image's tokens), the mean over pruned layers and images.

    The target [I, N] is restricted to the patches that still stand for themselves when the layer is entered and
    renormalised; a merged token has target zero.
    """
    losses = []
    for layer in trace:
        assert layer.guidance is not None
        spans = layer.spans
        prefix = layer.prefix
        aim = pad(target, (prefix, 1))  # [I, prefix + N + 1]: the prefix in front, merged tokens (-1) at the back
        image = spans.sample_index(target.device)
        aim = aim[image, layer.position]  # [T]
        aim = aim / spans.spread(spans.sum(aim)).clamp_min(1e-12)
        own = (layer.position >= 0) & (layer.position < prefix)
        logits = (layer.guidance.float() * scale).masked_fill(own, float("-inf"))
        probability = spans.softmax(logits).clamp_min(1e-12)
        losses.append((aim * (aim.clamp_min(1e-12).log() - probability.log())).sum() / len(spans))
    return torch.stack(losses).mean()


def aligned_loss(output: Output) -> Tensor:
    """Return the alignment loss between each text and the mean of its images' aligned features."""
    assert output.aligned is not None
    return alignment_loss(*output.aligned)


__all__ = [
    "Lesson",
    "aligned_loss",
    "distillation_losses",
    "distribution",
    "guidance_loss",
    "guidance_target",
    "logit_loss",
    "squared_attention",
]
