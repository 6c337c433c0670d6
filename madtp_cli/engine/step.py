"""One training step's forward pass: student, teacher and every part of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from madtp_cli.costs.analytic import total
from madtp_cli.data.batch import PairBatch
from madtp_cli.engine.auxiliary import AuxiliaryHeads
from madtp_cli.engine.evaluate import image_pairs, run_batch
from madtp_cli.engine.losses import LossWeights, aligned_loss, distillation_losses, task_loss
from madtp_cli.models.nlvr import BlipForNlvr


@dataclass(frozen=True)
class StepOutput:
    """The weighted parts of the loss, and what the student's forward pass cost.

    macs and dense_macs are means over the batch's sentences; tokens_kept is the share of each tower's tokens left after
    its last layer.
    """

    losses: Mapping[str, Tensor]
    macs: float
    dense_macs: float
    tokens_kept: Mapping[str, float]

    @property
    def reduction(self) -> float:
        """Share of the dense cost saved on this batch."""
        return 1 - self.macs / self.dense_macs


class TrainingStep(nn.Module):
    """Everything a gradient flows through, as one module, so that a distributed wrapper sees one forward pass."""

    def __init__(
        self,
        student: BlipForNlvr,
        teacher: BlipForNlvr | None,
        heads: AuxiliaryHeads | None,
        weights: LossWeights,
        *,
        guided_layers: frozenset[int] = frozenset(),
        guidance_scale: float = 1.0,
    ) -> None:
        """Hold the student and what teaches it; `guided_layers` are the vision layers whose guidance is taught."""
        super().__init__()
        self.student = student
        self.heads = heads
        self.weights = weights
        self.guided_layers = guided_layers
        self.guidance_scale = guidance_scale
        # In a tuple, so that the frozen teacher is neither trained, wrapped nor saved with the state.
        self._teacher: tuple[BlipForNlvr, ...] = () if teacher is None else (teacher.eval().requires_grad_(False),)

    def forward(self, batch: PairBatch) -> StepOutput:
        """Compute the parts of the loss on one batch."""
        device = next(self.student.parameters()).device
        pairs = image_pairs(batch)
        learn = self.student.alignment is not None
        output = run_batch(self.student, batch, device, learn=learn)
        losses: dict[str, Tensor] = {"task": task_loss(output, batch.labels.to(device))}
        if learn and self.weights.alignment:
            losses["alignment"] = self.weights.alignment * aligned_loss(output, pairs)
        for teacher in self._teacher:
            with torch.no_grad():
                dense = run_batch(teacher, batch, device, probe=bool(self.weights.guidance and self.guided_layers))
            losses |= distillation_losses(output, dense, pairs, self.guided_layers, self.weights, self.guidance_scale)
        if self.heads is not None:
            labels = {name: label.to(device) for name, label in batch.auxiliary.items()}
            losses |= self.heads(output, labels)
        kept = {trace[0].tower: sum(trace[-1].leaving) / trace[0].spans.total for trace in (output.vision, output.text)}
        return StepOutput(
            losses=losses,
            macs=total(self.student.macs(output, pairs)).double().mean().item(),
            dense_macs=total(self.student.dense_macs(batch.text_lengths)).double().mean().item(),
            tokens_kept=kept,
        )
