"""Checkpoints that several tests start from, each trained once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest


@pytest.fixture
def brief_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time models with one call per visit: real figures, quickly."""
    _time_briefly(monkeypatch)


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the latency out, where a test asks for something else."""
    from madtp_cli.engine.finishing import finish

    monkeypatch.setattr(finish, "compare_latency", lambda models, data, normalise, **options: {})


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a tiny dense model from scratch."""
    from tests.tiny_runs import DENSE

    return _train(tmp_path_factory.mktemp("dense"), DENSE, None)


@pytest.fixture(scope="session")
def pruned(tmp_path_factory: pytest.TempPathFactory, dense: Path) -> Path:
    """Prune the tiny dense model."""
    from tests.tiny_runs import PRUNE

    return _train(tmp_path_factory.mktemp("pruned"), PRUNE, dense)


def _train(folder: Path, text: str, checkpoint: Path | None) -> Path:
    from tests.tiny_runs import tiny, train

    with pytest.MonkeyPatch.context() as patch:
        _time_briefly(patch)
        train(tiny(folder, text, checkpoint=checkpoint), "prune" if checkpoint else "finetune")
    return folder / "out"


def _time_briefly(patch: pytest.MonkeyPatch) -> None:
    # Imported here: tests of what does not compute need no torch.
    from madtp_cli.costs import latency as costs
    from madtp_cli.engine import run
    from madtp_cli.engine.finishing.finish import Effort

    patch.setattr(run, "Effort", partial(Effort, latency_samples=32, latency_seconds=0.0))
    patch.setattr(costs, "VISIT_SECONDS", 0.0)
