"""Pruning methods: functions of tensors that say where each token goes and never see a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from madtp_cli.pruning.base import STATISTICS, Evidence, Need, Pruner
from madtp_cli.pruning.madtp import Madtp
from madtp_cli.pruning.random import Random

PRUNERS: Mapping[str, type[Any]] = {"madtp": Madtp, "random": Random}

__all__ = ["PRUNERS", "STATISTICS", "Evidence", "Madtp", "Need", "Pruner", "Random"]
