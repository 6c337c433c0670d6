"""Plain numbers that a training run is made with."""

from __future__ import annotations

from dataclasses import dataclass

from madtp_cli.engine.training.optimizers import OptimizerName


@dataclass(frozen=True)
class FitSettings:
    """Plain numbers of a training run; steps count optimiser updates, batch_size samples."""

    steps: int
    batch_size: int
    optimizer: OptimizerName
    learning_rate: float
    alignment_learning_rate: float
    matrix_learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    warmup_steps: int
    decay_from: float
    clip_norm: float
    seed: int
    precision: str
    validate_every: int
    save_every: int | None
    """None saves no state: nothing to resume."""
    log_every: int
    validation_limit: int | None = None


@dataclass(frozen=True)
class LossWeights:
    """How much each part counts; a part that counts 0 is left out."""

    alignment: float = 0.1
    logits: float = 1.0
    temperature: float = 2.0
    guidance: float = 1.0
    features: float = 0.0
