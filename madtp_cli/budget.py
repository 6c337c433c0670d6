"""Reach a cost budget: a controller for the time of training, a calibration search for its end.

Both move one knob, the strength in [0, 1), that raises the reduction (share of the dense cost that is
saved, 0..1), and see only measured reductions. Nothing here knows what the knob does, and nothing imports
torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_STRENGTH = 0.999

# Share of the remaining error corrected per update. The loop is stable while gain * true slope < 2 * the
# slope it believes in, so 0.2 forgives a slope that is believed ten times too flat.
_GAIN = 0.2
_MAX_STEP = 0.05
# Reduction per unit of strength that the controller is ready to believe.
_SLOPE_LOW, _SLOPE_HIGH = 0.2, 5.0
# Share of new evidence in the moving averages: a memory of about 20 updates.
_FORGET = 0.05
# Variance of the strength below which the slope is not learned from noise (0.02 squared).
_STILL = 4e-4
# Stands in a saved state for a controller that has seen nothing yet: a number that any file can hold.
_NO_AIM = -1.0
# A bracket of strengths this narrow holds a step that jumps over the goal.
_NARROW = 1e-4


class BudgetController:
    """Find, while the model trains, the strength whose measured reduction is the target.

    Integral control, divided by a slope that is learned from the strengths and reductions seen (regression
    with forgetting, so it follows a model that changes under training), plus a feed-forward of the target's
    own rise. Noise is averaged over about 1 / gain updates; steps are bounded; the strength stays within
    [0, max_strength].
    """

    def __init__(
        self, goal: float, ramp: float = 0.3, *, strength: float = 0.0, max_strength: float = MAX_STRENGTH
    ) -> None:
        self.goal = goal
        self.ramp = ramp
        self.max_strength = max_strength
        self.strength = min(max(strength, 0.0), max_strength)
        self._aim: float | None = None
        self._slope = 1.0
        self._updates = 0.0
        self._mean_strength = 0.0
        self._mean_reduction = 0.0
        self._variance = 0.0
        self._covariance = 0.0

    def target(self, progress: float) -> float:
        """Return the reduction to aim for at a share of training in 0..1: it rises over the ramp to the goal."""
        if self.ramp <= 0 or progress >= self.ramp:
            return self.goal
        return self.goal * max(progress, 0.0) / self.ramp

    def update(self, measured_reduction: float, progress: float = 1.0) -> float:
        """Return the next strength, from the reduction measured at the present one.

        A measurement that is not a finite number changes nothing.
        """
        if not math.isfinite(measured_reduction):
            return self.strength
        self._learn_slope(measured_reduction)
        aim = self.target(progress)
        rise = 0.0 if self._aim is None else aim - self._aim
        self._aim = aim
        # The measurement belongs to the target it was taken under, so the target's rise comes on top.
        step = (_GAIN * (aim - rise - measured_reduction) + rise) / self._slope
        step = min(max(step, -_MAX_STEP), _MAX_STEP)
        self.strength = min(max(self.strength + step, 0.0), self.max_strength)
        return self.strength

    def state_dict(self) -> dict[str, float]:
        """Return what a resumed run needs, as plain numbers."""
        return {name: float(value) for name, value in self._state().items()}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from `state_dict()`; raises ValueError when the keys are others."""
        if set(state) != set(self._state()):
            raise ValueError(f"budget state has keys {sorted(state)}, expected {sorted(self._state())}")
        for name, value in state.items():
            setattr(self, name if name == "strength" else f"_{name}", float(value))
        if state["aim"] == _NO_AIM:
            self._aim = None

    def _state(self) -> dict[str, float]:
        return {
            "strength": self.strength,
            "aim": _NO_AIM if self._aim is None else self._aim,
            "slope": self._slope,
            "updates": self._updates,
            "mean_strength": self._mean_strength,
            "mean_reduction": self._mean_reduction,
            "variance": self._variance,
            "covariance": self._covariance,
        }

    def _learn_slope(self, reduction: float) -> None:
        """Regress reduction on strength over the recent updates.

        Levels, not differences: the strength of an update depends on the noise before it, never on its own, so
        the regression is not pulled by the loop.
        """
        self._updates += 1
        share = max(1 / self._updates, _FORGET)
        moved, changed = self.strength - self._mean_strength, reduction - self._mean_reduction
        self._mean_strength += share * moved
        self._mean_reduction += share * changed
        self._variance += share * ((1 - share) * moved * moved - self._variance)
        self._covariance += share * ((1 - share) * moved * changed - self._covariance)
        if self._updates > 2:
            # A strength that stood still tells nothing: then the belief stays nearly as it was.
            slope = (self._covariance + _STILL * self._slope) / (self._variance + _STILL)
            self._slope = min(max(slope, _SLOPE_LOW), _SLOPE_HIGH)


@dataclass(frozen=True)
class Calibration:
    """What a search found: the best strength, its reduction, whether it meets the goal, every (strength, reduction)."""

    strength: float
    reduction: float
    met: bool
    tries: tuple[tuple[float, float], ...]


def calibrate(
    measure: Callable[[float], float],
    goal: float,
    tolerance: float,
    low: float = 0.0,
    high: float = MAX_STRENGTH,
    max_calls: int = 24,
    start: float | None = None,
) -> Calibration:
    """Search the strength in [low, high] whose measured reduction is within `tolerance` of the goal.

    `measure` rises with the strength, perhaps in steps. The search widens from `start` (the middle if None)
    until the goal is bracketed, then takes secants and halvings in turn: a secant is fast on smooth
    functions, a halving bounds the calls on steps. Ends with the best strength seen, also when no strength
    meets the goal or after `max_calls`.
    """
    tries: list[tuple[float, float]] = []
    below: tuple[float, float] | None = None
    above: tuple[float, float] | None = None
    strength = (low + high) / 2 if start is None else min(max(start, low), high)
    width = (high - low) / 16
    while len(tries) < max_calls:
        reduction = measure(strength)
        tries.append((strength, reduction))
        if abs(reduction - goal) <= tolerance:
            break
        if reduction < goal:
            below = (strength, reduction)
        else:
            above = (strength, reduction)
        # A reduction seen before is the tread of a step: a secant would creep along it.
        tread = reduction in [seen for _, seen in tries[:-1]]
        following = _next_strength(below, above, goal, (low, high), width, halve=tread or len(tries) % 2 == 0)
        width *= 2
        if following is None:
            break
        strength = following
    best = min(tries, key=lambda pair: abs(pair[1] - goal))
    return Calibration(*best, met=abs(best[1] - goal) <= tolerance, tries=tuple(tries))


def _next_strength(
    below: tuple[float, float] | None,
    above: tuple[float, float] | None,
    goal: float,
    limits: tuple[float, float],
    width: float,
    halve: bool,
) -> float | None:
    """Return the next strength to measure, None when no other can be better."""
    low, high = limits
    if above is None:
        return None if below is None or below[0] >= high else min(below[0] + width, high)
    if below is None:
        return None if above[0] <= low else max(above[0] - width, low)
    gap = above[0] - below[0]
    if abs(gap) < _NARROW:
        return None
    share = (goal - below[1]) / (above[1] - below[1])
    # Keep off the ends, where a curved function would let a secant creep.
    return below[0] + gap * (0.5 if halve else min(max(share, 0.05), 0.95))


def reachable(measure: Callable[[float], float], low: float = 0.0, high: float = MAX_STRENGTH) -> tuple[float, float]:
    """Return the smallest and the largest reduction that the knob can give."""
    return measure(low), measure(high)
