"""One training step's forward pass: student, teacher and every part of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from madtp_cli.data.batch import Batch
from madtp_cli.engine.evaluation.meter import CostMeter
from madtp_cli.engine.tasks.base import Asked, Task
from madtp_cli.engine.training.auxiliary import AuxiliaryHeads
from madtp_cli.engine.training.losses import aligned_loss, distillation_losses
from madtp_cli.engine.training.settings import LossWeights
from madtp_cli.engine.training.teacher import CachedTeacher, Teacher
from madtp_cli.models.base import Output, PrunedModel


@dataclass(frozen=True)
class StepOutput:
    """The weighted parts of the loss, and what the student's forward pass cost.

    macs and dense_macs are means over the batch's samples; tokens_kept is the share of each site's tokens left after
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
        task: Task,
        student: PrunedModel,
        teacher: PrunedModel | None,
        heads: AuxiliaryHeads | None,
        weights: LossWeights,
        *,
        guided: Mapping[str, frozenset[int]] | None = None,
        guidance_scale: float = 1.0,
    ) -> None:
        """Hold the student and what teaches it; `guided` names layers of image sites whose guidance is taught."""
        super().__init__()
        self.task = task
        self.student = student
        self.heads = heads
        self.weights = weights
        self.guided = dict(guided or {})
        self.guidance_scale = guidance_scale
        # No module itself, so that the frozen model is neither trained, wrapped nor saved with the state.
        self.teacher: Teacher | CachedTeacher | None = None
        if teacher is not None:
            self.teacher = Teacher(task, teacher, weights, guided=any(self.guided.values()))

    def forward(self, batch: Batch) -> StepOutput:
        """Compute the parts of the loss on one batch."""
        device = next(self.student.parameters()).device
        learn = self.student.alignment is not None and bool(self.weights.alignment)
        output: Output = self.task.forward(self.student, batch, device, Asked(training=True, learn=learn))
        losses = self.task.losses(output, batch)
        if output.aligned is not None:
            losses["alignment"] = self.weights.alignment * aligned_loss(output)
        if self.teacher is not None:
            losses |= distillation_losses(
                output,
                self.task.compared(output),
                self.teacher.teach(batch, device, output),
                self.guided,
                self.weights,
                self.guidance_scale,
            )
        if self.heads is not None:
            labels = {name: label.to(device) for name, label in batch.auxiliary.items()}
            losses |= self.heads(output, labels)
        cost = CostMeter()
        cost.add(self.student, output)
        return StepOutput(
            losses=losses,
            macs=sum(cost.macs) / len(cost.macs),
            dense_macs=sum(cost.dense_macs) / len(cost.dense_macs),
            tokens_kept={
                site.name: sum(output.traces[site.name][-1].leaving) / output.traces[site.name][0].spans.total
                for site in self.student.sites
            },
        )
