"""Pruning methods: functions of tensors that say where each token goes and never see a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from madtp_cli.pruning.base import Evidence, Pruner
from madtp_cli.pruning.madtp import Madtp
from madtp_cli.pruning.random import Random

PRUNERS: Mapping[str, Callable[..., Pruner]] = {"madtp": Madtp, "random": Random}

__all__ = ["PRUNERS", "Evidence", "Madtp", "Pruner", "Random"]
