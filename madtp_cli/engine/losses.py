"""The parts of the training loss. Shapes: S sentences, I images, N patches, K alignment tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, mse_loss, pad

from madtp_cli.alignment import alignment_loss
from madtp_cli.models.base import Output, Probe
from madtp_cli.models.tower import LayerTrace


@dataclass(frozen=True)
class LossWeights:
    """How much each part counts; a part that counts 0 is left out."""

    alignment: float = 0.1
    logits: float = 1.0
    temperature: float = 2.0
    guidance: float = 1.0
    features: float = 0.0


def distillation_losses(
    student: Output,
    teacher: Output,
    compared: Sequence[tuple[Tensor, Tensor]],
    layers: frozenset[int],
    weights: LossWeights,
    guidance_scale: float,
) -> dict[str, Tensor]:
    """Compare a pruned model's forward pass with the dense model's on the same batch, each part weighted.

    `compared` holds pairs of logits [R, n], the student's and the teacher's.
    """
    parts: dict[str, Tensor] = {}
    if weights.logits:
        each = [logit_loss(one, other, weights.temperature) for one, other in compared]
        parts["logits"] = weights.logits * torch.stack(each).mean()
    if weights.features:
        parts["features"] = weights.features * mse_loss(student.encoded.float(), teacher.encoded.float())
    if weights.guidance and layers and teacher.probes:
        target = guidance_target(teacher.probes, len(teacher.images.spans))
        trace = [t for t in student.vision if t.layer in layers]
        parts["guidance"] = weights.guidance * guidance_loss(trace, target, guidance_scale)
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
    target = first.new_zeros(images, first.shape[-1] - 1)
    for probe in probes:
        target.index_add_(0, probe.image, probe.probability.square().mean(1)[:, 1:])  # [Q, N]
    return target / target.sum(-1, keepdim=True).clamp_min(1e-12)


def guidance_loss(trace: Sequence[LayerTrace], target: Tensor, scale: float) -> Tensor:
    """Return KL(target || softmax of the guidance over an image's tokens), the mean over pruned layers and images.

    The target [I, N] is restricted to the patches that still stand for themselves when the layer is entered and
    renormalised; a merged token has target zero.
    """
    losses = []
    for layer in trace:
        assert layer.guidance is not None
        spans = layer.spans
        aim = pad(target, (1, 1))  # [I, N + 2]: the class token in front, merged tokens (-1) at the back
        image = spans.sample_index(target.device)
        aim = aim[image, layer.position]  # [T]
        aim = aim / spans.spread(spans.sum(aim)).clamp_min(1e-12)
        logits = (layer.guidance.float() * scale).masked_fill(layer.position == 0, float("-inf"))
        probability = spans.softmax(logits).clamp_min(1e-12)
        losses.append((aim * (aim.clamp_min(1e-12).log() - probability.log())).sum() / len(spans))
    return torch.stack(losses).mean()


def aligned_loss(output: Output) -> Tensor:
    """Return the alignment loss between each text and the mean of its images' aligned features."""
    assert output.aligned is not None
    return alignment_loss(*output.aligned)


__all__ = [
    "LossWeights",
    "aligned_loss",
    "distillation_losses",
    "guidance_loss",
    "guidance_target",
    "logit_loss",
]
