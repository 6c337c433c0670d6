"""One training step: which losses there are, what they weigh, what learns and what it cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from madtp_cli.data.batch import PairBatch
from madtp_cli.data.sentences import VOCABULARY
from madtp_cli.data.shapes import ShapesPairs, accuracy
from madtp_cli.engine.tasks.base import Asked
from madtp_cli.engine.tasks.nlvr2 import Nlvr2
from madtp_cli.engine.training.auxiliary import AuxiliaryHeads
from madtp_cli.engine.training.losses import aligned_loss, logit_loss
from madtp_cli.engine.training.settings import LossWeights
from madtp_cli.engine.training.step import StepOutput, TrainingStep
from madtp_cli.engine.training.teacher import Teacher
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.blip.nlvr import BlipForNlvr
from madtp_cli.models.spec import PruningSpec

CPU = torch.device("cpu")
TASK = Nlvr2(accuracy)
SPEC = PruningSpec(
    method="madtp",
    layers={"vision": (0, 1), "text": ()},
    alignment_tokens=3,
    alignment_dim=8,
    projection="per_layer",
)
WEIGHTS = LossWeights(alignment=0.5, logits=2.0, temperature=3.0, guidance=0.25, features=0.1)


def model(spec: PruningSpec | None = None, seed: int = 0) -> BlipForNlvr:
    torch.manual_seed(seed)
    config = small_config(
        image_size=96,
        patch_size=16,
        vocab_size=len(VOCABULARY),
        vision_layers=2,
        vision_width=24,
        text_layers=2,
        text_width=24,
        merge_from=1,
    )
    if spec is None:
        return BlipForNlvr(config)
    return BlipForNlvr(
        config, alignment=spec.alignment(BlipForNlvr.sites_of(config)), plan=spec.plan(), strength=spec.strength
    )


@pytest.fixture(scope="module")
def batch() -> PairBatch:
    return ShapesPairs("train", 64).batch(0, 24)


def taught(strength: float, weights: LossWeights = WEIGHTS, **options: Any) -> TrainingStep:
    student = model(replace(SPEC, strength=strength))
    return TrainingStep(TASK, student, model(seed=1), None, weights, guided={"vision": frozenset({0, 1})}, **options)


def test_without_teacher_and_alignment_there_is_the_task_alone(batch: PairBatch) -> None:
    step = TrainingStep(TASK, model(), None, None, WEIGHTS)
    output = step(batch)
    assert output.losses.keys() == {"task"}
    logits = TASK.forward(step.student, batch, CPU).logits
    torch.testing.assert_close(output.losses["task"], cross_entropy(logits, batch.labels))


def test_every_part_is_there_and_weighted(batch: PairBatch) -> None:
    step = taught(0.5)
    output = step(batch)
    assert output.losses.keys() == {"task", "alignment", "logits", "features", "guidance"}
    student = TASK.forward(step.student, batch, CPU, Asked(learn=True))
    assert isinstance(step.teacher, Teacher)
    teacher = TASK.forward(step.teacher.model, batch, CPU)
    expected = {
        "task": cross_entropy(student.logits, batch.labels),
        "alignment": 0.5 * aligned_loss(student),
        "logits": 2.0 * logit_loss(student.logits, teacher.logits, 3.0),
        "features": 0.1 * (student.encoded - teacher.encoded).square().mean(),
    }
    for name, loss in expected.items():
        torch.testing.assert_close(output.losses[name], loss, msg=name)
    assert 4 * taught(0.5, replace(WEIGHTS, guidance=0.0625))(batch).losses["guidance"].item() == pytest.approx(
        output.losses["guidance"].item()
    )


def test_a_weight_of_zero_leaves_its_part_out(batch: PairBatch) -> None:
    nothing = LossWeights(alignment=0.0, logits=0.0, guidance=0.0, features=0.0)
    assert taught(0.5, nothing)(batch).losses.keys() == {"task"}


@pytest.mark.parametrize(("weight", "learns"), [(0.5, True), (0.0, False)])
def test_aligned_features_are_computed_only_to_be_taught(
    weight: float, learns: bool, batch: PairBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the alignment loss nobody reads them; the guidance is taught all the same."""
    asked: list[bool] = []
    forward = Nlvr2.forward

    def watched(self: Nlvr2, model: Any, batch: Any, device: Any, how: Asked) -> Any:
        asked.append(how.learn)
        return forward(self, model, batch, device, how)

    monkeypatch.setattr(Nlvr2, "forward", watched)
    losses = taught(0.5, replace(WEIGHTS, alignment=weight))(batch).losses
    assert asked == [learns, False]  # the student's pass, and the teacher's
    assert losses.keys() == {"task", "logits", "features", "guidance"} | ({"alignment"} if learns else set())
    torch.testing.assert_close(losses["guidance"], taught(0.5)(batch).losses["guidance"])


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(batch: PairBatch) -> None:
    student = model()
    output = TrainingStep(TASK, student, model(), None, WEIGHTS)(batch)
    assert output.losses["logits"].item() == pytest.approx(0, abs=1e-6)
    assert output.losses["features"].item() == pytest.approx(0, abs=1e-6)


def test_heads_add_their_losses(batch: PairBatch) -> None:
    step = TrainingStep(TASK, model(), None, AuxiliaryHeads(24, 24, {"text_counts": 1.0, "image_counts": 1.0}), WEIGHTS)
    assert step(batch).losses.keys() == {"task", "text_counts", "image_counts"}


def test_the_teacher_is_neither_trained_nor_saved(batch: PairBatch) -> None:
    step = taught(0.5)
    step.train()
    assert isinstance(step.teacher, Teacher)
    teacher = step.teacher.model
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert {key.partition(".")[0] for key in step.state_dict()} == {"student"}
    torch.stack(list(step(batch).losses.values())).sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_gradient_reaches_everything_that_counts(batch: PairBatch) -> None:
    step = taught(0.5)
    step.train()
    torch.stack(list(step(batch).losses.values())).sum().backward()
    still = [key for key, parameter in step.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert still == []


def test_guidance_teaches_the_alignment_tokens(batch: PairBatch) -> None:
    step = taught(0.5, LossWeights(alignment=0.0, logits=0.0, guidance=1.0))
    step.train()
    step(batch).losses["guidance"].backward()
    alignment = step.student.alignment
    assert alignment is not None
    assert alignment.tokens.grad is not None
    assert alignment.tokens.grad.any()


def test_costs_and_tokens_are_those_of_the_forward_pass(batch: PairBatch) -> None:
    """At strength 0 nothing is saved or dropped; above, the shares follow from the traces."""
    dense = taught(0.0)(batch)
    assert dense.reduction == pytest.approx(0)
    assert dense.tokens_kept == {"vision": 1.0, "text": 1.0}

    step = taught(0.5)
    pruned = step(batch)
    trace = TASK.forward(step.student, batch, CPU).traces["vision"]
    assert pruned.tokens_kept["vision"] == sum(trace[-1].leaving) / (37 * len(batch.images)) < 1
    assert pruned.tokens_kept["text"] == 1.0
    assert pruned.dense_macs == dense.macs
    assert 0 < pruned.reduction < 1


def test_the_reduction_is_the_share_saved() -> None:
    assert StepOutput({}, macs=3.0, dense_macs=4.0, tokens_kept={}).reduction == 0.25
