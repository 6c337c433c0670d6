"""A keep schedule for a wanted reduction, and the same schedule given for free: what is left out is scoring.

*Scoring* is all that MADTP computes to decide where tokens go: alignment logits, attention statistics, ranking and the
selection itself. Its time is that of the pruned model less that of a twin to which the same selections are handed ready
made, and which asks for no statistics. *Compaction* is timed where it happens.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.speed.subjects import Inputs, Subject, build
from madtp_cli.costs import analytic
from madtp_cli.engine.profiling.costs import at_strength
from madtp_cli.errors import UsageError
from madtp_cli.models.base import PrunedModel
from madtp_cli.models.tower import PruningPlan
from madtp_cli.pruning.base import Evidence, Need, Pruner
from madtp_cli.tokens import Selection, compact

THIN = 8  # channels of a model that is run for its token counts alone
BISECTIONS = 20


@dataclass(frozen=True)
class Schedule:
    """A strength and what it costs: mean MACs of a sample with and without pruning."""

    strength: float
    macs: float
    dense_macs: float

    @property
    def reduction(self) -> float:
        """Share of the MACs saved, 0..1."""
        return 1 - self.macs / self.dense_macs


def thin_config(config: Any) -> Any:
    """Return a configuration whose model has the same tokens in the same layers and hardly any channels."""
    sections = config.to_dict()
    for name in ("vision_config", "text_config"):
        sections[name] |= {"hidden_size": THIN, "intermediate_size": THIN, "num_attention_heads": 1}
    sections["text_config"]["encoder_hidden_size"] = THIN
    return type(config).from_dict(sections)


@torch.inference_mode()
def cost(model: PrunedModel, thin: PrunedModel, inputs: Inputs, strength: float) -> Schedule:
    """Count a model at a strength by the tokens of its thin twin; with shares, they do not depend on the weights."""
    output = at_strength(thin, strength)(**inputs.packed())
    mean = analytic.total(model.macs(output)).double().mean().item()
    return Schedule(strength, mean, 1e9 * model.dense_gmacs(output.text_lengths))


def schedule_for(
    subject: Subject, model: PrunedModel, inputs: Inputs, reduction: float, *, uneven: bool = False
) -> Schedule:
    """Bisect the strength that saves a share of the MACs, for batches of `uneven` lengths or others.

    Raises UsageError if none saves that much.
    """
    thin = build(subject, thin_config(model.config))
    few = Inputs(inputs.images[: model.images_per_text].cpu().float(), inputs.ids[:1].cpu())
    low, high = 0.0, 1 - 1e-6
    best = cost(model, thin, few, high)
    if best.reduction < reduction:
        asked, advice = f"--reduction {reduction:g}", "give less, or let more layers prune"
        if uneven:
            asked, advice = (
                f"the reduction of ragged batches, {reduction:g}",
                "try --no-ragged, or let more layers prune",
            )
        raise UsageError(
            f"{asked}: {subject.title} saves at most {best.reduction:.3f} of its MACs, with one token left in every "
            f"layer that prunes; {advice}"
        )
    for _ in range(BISECTIONS):
        middle = cost(model, thin, few, (low + high) / 2)
        low, high = (low, middle.strength) if middle.reduction >= reduction else (middle.strength, high)
        best = min(best, middle, key=lambda found: abs(found.reduction - reduction))
    return best


@dataclass
class _Recorder:
    """A method that also keeps what it selects, in the order of its calls."""

    method: Pruner
    needs: frozenset[Need]
    couples: bool
    selections: list[Selection] = field(default_factory=list)

    def select(self, evidence: Evidence, strength: float) -> Selection:
        """Select as the method does."""
        self.selections.append(self.method.select(evidence, strength))
        return self.selections[-1]


@dataclass
class _Given:
    """A method that selects what it was given, over and over, and looks at nothing."""

    selections: list[Selection]
    calls: int = 0
    needs: frozenset[Need] = frozenset()
    couples: bool = False

    def select(self, evidence: Evidence, strength: float) -> Selection:
        """Return the next selection."""
        self.calls += 1
        return self.selections[(self.calls - 1) % len(self.selections)]


@torch.inference_mode()
def with_given_selections(model: PrunedModel, inputs: Inputs) -> PrunedModel:
    """Return a model that prunes these inputs as this one does, without computing what for."""
    assert model.plan is not None
    method = model.plan.pruner
    recorder = _Recorder(method, method.needs, method.couples)
    _with_method(model, recorder)(**inputs.packed())
    return _with_method(model, _Given(recorder.selections))


def _with_method(model: PrunedModel, method: Pruner) -> PrunedModel:
    """Return the model under another method; the two share their weights."""
    assert model.plan is not None
    twin = copy.copy(model)
    twin.plan = PruningPlan(method, model.plan.layers)
    return twin


@dataclass
class _Stopwatch:
    """Adds up stretches of time without waiting for the device in between."""

    device: torch.device
    clock: Callable[[], float] = time.perf_counter
    stretches: list[tuple[Any, Any]] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time what runs inside."""
        start = self._mark()
        yield
        self.stretches.append((start, self._mark()))

    def seconds(self) -> float:
        """Return the sum, once the device has caught up."""
        if self.device.type != "cuda":
            return sum(end - start for start, end in self.stretches)
        torch.cuda.synchronize(self.device)
        return sum(start.elapsed_time(end) for start, end in self.stretches) / 1e3

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@torch.inference_mode()
def compaction_share(
    model: PrunedModel, inputs: Inputs, calls: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the share of a forward pass's time that goes into `compact`: the median of so many passes.

    On a GPU its own events are the clock.
    """
    shares = []
    for _ in range(calls):
        whole, within = (_Stopwatch(inputs.images.device, clock) for _ in range(2))
        with patch("madtp_cli.models.tower.compact", partial(_timed_compact, within)), whole.running():
            model(**inputs.packed())
        shares.append(within.seconds() / whole.seconds())
    return median(shares)


def _timed_compact(watch: _Stopwatch, *args: Any, **options: Any) -> Any:
    with watch.running():
        return compact(*args, **options)
