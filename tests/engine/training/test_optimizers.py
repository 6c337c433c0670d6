"""Optimisers: which parameter belongs to which, and with what settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from madtp_cli.data.sentences import VOCABULARY
from madtp_cli.data.shapes import accuracy
from madtp_cli.engine.tasks.nlvr2 import Nlvr2
from madtp_cli.engine.training.optimizers import OptimizerName, make_optimizers
from madtp_cli.engine.training.settings import LossWeights
from madtp_cli.engine.training.step import TrainingStep
from madtp_cli.errors import RecipeError
from madtp_cli.models.blip.caption import BlipForCaption
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.blip.nlvr import BlipForNlvr
from madtp_cli.models.blip.retrieval import BlipForRetrieval
from madtp_cli.models.clip.configs import small_clip_config
from madtp_cli.models.clip.model import ClipForRetrieval
from madtp_cli.models.spec import PruningSpec

RATE, ALIGNMENT_RATE, MATRIX_RATE, DECAY = 1e-2, 2e-2, 3e-2, 0.1


@pytest.fixture(scope="module")
def step() -> TrainingStep:
    config = small_config(
        image_size=32,
        vocab_size=len(VOCABULARY),
        vision_layers=2,
        vision_width=24,
        text_layers=2,
        text_width=24,
        merge_from=1,
    )
    spec = PruningSpec(method="madtp", alignment_tokens=3, alignment_dim=8)
    student = BlipForNlvr(config, alignment=spec.alignment(BlipForNlvr.sites_of(config)))
    return TrainingStep(Nlvr2(accuracy), student, None, None, LossWeights())


def make(name: OptimizerName, module: nn.Module) -> list[Optimizer]:
    return make_optimizers(
        name,
        module,
        learning_rate=RATE,
        alignment_learning_rate=ALIGNMENT_RATE,
        matrix_learning_rate=MATRIX_RATE,
        weight_decay=DECAY,
        betas=(0.9, 0.98),
    )


def settings(optimizers: list[Optimizer], module: nn.Module) -> dict[str, tuple[str, float, float]]:
    """Map every parameter to its optimiser, learning rate and weight decay; each may occur once."""
    found: dict[int, tuple[str, float, float]] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert id(parameter) not in found
                found[id(parameter)] = (type(optimizer).__name__, group["lr"], group["weight_decay"])
    return {key: found.pop(id(parameter)) for key, parameter in module.named_parameters() if id(parameter) in found}


def test_norms_biases_embeddings_and_alignment_tokens_do_not_decay(step: TrainingStep) -> None:
    of = settings(make("adamw", step), step)
    assert of.keys() == dict(step.named_parameters()).keys()
    expected = {
        "student.vision_model.encoder.layers.0.mlp.fc1.weight": (RATE, DECAY),
        "student.vision_model.encoder.layers.0.mlp.fc1.bias": (RATE, 0),
        "student.vision_model.encoder.layers.0.layer_norm1.weight": (RATE, 0),
        "student.vision_model.embeddings.class_embedding": (RATE, 0),
        "student.vision_model.embeddings.position_embedding": (RATE, 0),
        "student.text_encoder.embeddings.word_embeddings.weight": (RATE, 0),
        "student.cls_head.0.weight": (RATE, DECAY),
        "student.alignment.tokens": (ALIGNMENT_RATE, 0),
        "student.alignment.maps.vision.0.weight": (ALIGNMENT_RATE, DECAY),
        "student.alignment.maps.vision.0.bias": (ALIGNMENT_RATE, 0),
    }
    for key, (rate, decay) in expected.items():
        assert of[key] == ("AdamW", rate, decay), key


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_takes_the_matrices_inside_the_blocks(step: TrainingStep) -> None:
    of = settings(make("muon", step), step)
    plain = settings(make("adamw", step), step)
    assert of.keys() == plain.keys()
    muon = {key for key, (name, _, _) in of.items() if name == "Muon"}
    blocks = ("student.vision_model.encoder.layers.", "student.text_encoder.encoder.layer.")
    shapes = {key: parameter.ndim for key, parameter in step.named_parameters()}
    assert muon == {key for key in shapes if key.startswith(blocks) and shapes[key] == 2}
    assert {of[key] for key in muon} == {("Muon", MATRIX_RATE, DECAY)}
    assert all(of[key] == plain[key] for key in of.keys() - muon)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_the_models_of_the_other_tasks() -> None:
    """A language head tied to the words is one embedding; temperatures do not decay, projections do."""
    sizes: dict[str, Any] = {"vision_layers": 1, "vision_width": 24, "text_layers": 1, "text_width": 24}
    blip = small_config(image_size=32, vocab_size=30, **sizes)
    writer = settings(make("muon", model := BlipForCaption(blip)), model)
    assert writer["text_decoder.bert.embeddings.word_embeddings.weight"] == ("AdamW", RATE, 0)
    assert "text_decoder.cls.predictions.decoder.weight" not in writer
    assert writer["text_decoder.bert.encoder.layer.0.crossattention.self.key.weight"] == ("Muon", MATRIX_RATE, DECAY)
    matcher = settings(make("muon", other := BlipForRetrieval(blip)), other)
    assert (matcher["temp"], matcher["itm_head.weight"]) == (("AdamW", RATE, 0), ("AdamW", RATE, DECAY))
    clip = settings(
        make(
            "muon", third := ClipForRetrieval(small_clip_config(image_size=32, vocab_size=30, eos_token_id=3, **sizes))
        ),
        third,
    )
    assert (clip["logit_scale"], clip["text_projection.weight"]) == (("AdamW", RATE, 0), ("AdamW", RATE, DECAY))
    assert clip["text_model.embeddings.token_embedding.weight"] == ("AdamW", RATE, 0)
    assert clip["text_model.encoder.layers.0.self_attn.q_proj.weight"] == ("Muon", MATRIX_RATE, DECAY)


def test_what_is_frozen_is_left_out(step: TrainingStep) -> None:
    part = step.student.cls_head.requires_grad_(False)
    try:
        assert not any(key.startswith("student.cls_head") for key in settings(make("adamw", step), step))
    finally:
        part.requires_grad_(True)


def test_decay_without_a_gradient_is_rate_times_decay() -> None:
    """With zero gradients AdamW only decays: w <- w (1 - lr * wd), and leaves biases alone."""
    layer = nn.Linear(3, 2)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    (optimizer,) = make("adamw", layer)
    assert isinstance(optimizer, AdamW)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before["weight"] * (1 - RATE * DECAY))
    assert layer.bias.equal(before["bias"])


def test_muon_needs_a_torch_that_has_it(step: TrainingStep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(RecipeError) as caught:
        make("muon", step)
    got: Any = torch.__version__
    assert str(caught.value) == f"training.optimizer muon needs torch 2.9 or newer, got {got}; try adamw"
