"""The controller and the calibration on simulated models whose every property is known."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable

import pytest

from madtp_cli.budget import MAX_STRENGTH, BudgetController, calibrate, reachable

Plant = Callable[[float, float], float]  # strength, progress of training -> reduction

PLANTS: dict[str, Plant] = {
    "linear": lambda s, p: 0.9 * s,
    "steep": lambda s, p: min(0.95, 3 * s),
    "flat": lambda s, p: 0.7 * s,
    "saturating": lambda s, p: 0.85 * (1 - math.exp(-4 * s)),
    "dead zone": lambda s, p: max(0.0, (s - 0.4) / 0.6) * 0.9,
    "sigmoid": lambda s, p: 0.9 / (1 + math.exp(-14 * (s - 0.5))),
    "fine steps": lambda s, p: math.floor(s * 50) / 50 * 0.95,
    "drifting up": lambda s, p: min(0.97, (0.7 + 0.5 * p) * s),
    "drifting down": lambda s, p: (0.9 - 0.2 * p) * s,
    "bending": lambda s, p: 0.9 * s ** (1 + p),
}


def simulate(controller: BudgetController, plant: Plant, steps: int, noise: float = 0.0, seed: int = 0) -> list[float]:
    """Run a training of `steps`; return the true reduction of every step."""
    source = random.Random(seed)
    reductions = []
    strength = controller.strength
    for step in range(steps):
        progress = step / steps
        reductions.append(plant(strength, progress))
        strength = controller.update(reductions[-1] + source.gauss(0, noise), progress)
    return reductions


@pytest.mark.parametrize("name", PLANTS)
def test_the_second_half_of_training_is_at_the_goal(name: str) -> None:
    reductions = simulate(BudgetController(0.6), PLANTS[name], 600)[300:]
    assert sum(reductions) / len(reductions) == pytest.approx(0.6, abs=0.005)
    assert max(abs(reduction - 0.6) for reduction in reductions) < 0.02


@pytest.mark.parametrize("name", PLANTS)
@pytest.mark.parametrize("seed", range(3))
def test_noise_is_averaged_not_followed(name: str, seed: int) -> None:
    noise = 0.04
    reductions = simulate(BudgetController(0.6), PLANTS[name], 600, noise, seed)[300:]
    assert sum(reductions) / len(reductions) == pytest.approx(0.6, abs=0.01)
    spread = math.sqrt(sum((reduction - 0.6) ** 2 for reduction in reductions) / len(reductions))
    assert spread < noise


def test_coarse_steps_are_straddled() -> None:
    reductions = simulate(BudgetController(0.6), lambda s, p: math.floor(s * 8) / 8 * 0.95, 600)[300:]
    assert set(reductions) <= {4 / 8 * 0.95, 5 / 8 * 0.95, 6 / 8 * 0.95}


def test_the_reduction_follows_the_ramp() -> None:
    controller = BudgetController(0.6, ramp=0.5)
    reductions = simulate(controller, PLANTS["linear"], 400)
    for step in range(20, 400):
        assert reductions[step] == pytest.approx(controller.target(step / 400), abs=0.01)


def test_the_target_rises_over_the_ramp_and_stays() -> None:
    controller = BudgetController(0.8, ramp=0.4)
    assert controller.target(0.0) == 0.0
    assert controller.target(0.1) == pytest.approx(0.2)
    assert controller.target(0.4) == 0.8
    assert controller.target(1.0) == 0.8
    assert BudgetController(0.8, ramp=0.0).target(0.0) == 0.8


def test_an_unreachable_goal_ends_at_the_end_of_the_knob_and_comes_back() -> None:
    controller = BudgetController(0.9, ramp=0.1)
    simulate(controller, lambda s, p: 0.5 * s, 200)
    assert controller.strength == MAX_STRENGTH
    # Nothing was wound up: as soon as there is too much, the strength falls.
    assert controller.update(0.99) < MAX_STRENGTH


def test_the_strength_stays_within_its_range() -> None:
    controller = BudgetController(0.5, strength=0.2, max_strength=0.6)
    for measured in (2.0, 2.0, 2.0, 2.0, 2.0, 2.0):
        assert 0 <= controller.update(measured) <= 0.6
    assert controller.strength == 0.0
    for _ in range(100):
        assert 0 <= controller.update(-1.0) <= 0.6
    assert controller.strength == 0.6


@pytest.mark.parametrize("measured", [math.nan, math.inf, -math.inf])
def test_a_measurement_that_is_no_number_changes_nothing(measured: float) -> None:
    controller = BudgetController(0.5)
    simulate(controller, PLANTS["linear"], 50)
    before = controller.state_dict()
    assert controller.update(measured) == before["strength"]
    assert controller.state_dict() == before


@pytest.mark.parametrize("stop", [0, 1, 70])
def test_a_resumed_controller_goes_on_as_if_never_stopped(stop: int) -> None:
    whole, first, second = (BudgetController(0.6) for _ in range(3))
    plant = PLANTS["sigmoid"]

    def run(controller: BudgetController, steps: range) -> None:
        for step in steps:
            controller.update(plant(controller.strength, 0), step / 200)

    run(whole, range(200))
    run(first, range(stop))
    state = first.state_dict()
    assert all(type(value) is float for value in state.values())
    second.load_state_dict(json.loads(json.dumps(state)))
    run(second, range(stop, 200))
    assert second.state_dict() == whole.state_dict()


def test_a_foreign_state_is_refused() -> None:
    with pytest.raises(ValueError) as error:
        BudgetController(0.5).load_state_dict({"strength": 0.5})
    assert str(error.value).startswith("budget state has keys ['strength'], expected ['aim', ")


@pytest.mark.parametrize("name", PLANTS)
@pytest.mark.parametrize("goal", [0.05, 0.3, 0.5, 0.65])
def test_calibration_meets_the_goal_in_few_calls(name: str, goal: float) -> None:
    plant = PLANTS[name]
    found = calibrate(lambda strength: plant(strength, 0.5), goal, 0.01)
    assert found.met
    assert found.reduction == plant(found.strength, 0.5)
    assert abs(found.reduction - goal) <= 0.01
    assert len(found.tries) <= 10
    assert (found.strength, found.reduction) in found.tries


def test_a_good_start_is_kept() -> None:
    found = calibrate(lambda strength: 0.9 * strength, 0.45, 0.01, start=0.5)
    assert found.tries == ((0.5, 0.45),)
    assert found.met


def test_a_near_start_needs_fewer_calls_than_none() -> None:
    plant = PLANTS["sigmoid"]
    near = calibrate(lambda s: plant(s, 0), 0.8, 0.001, start=0.64)
    far = calibrate(lambda s: plant(s, 0), 0.8, 0.001)
    assert near.met
    assert far.met
    assert len(near.tries) < len(far.tries)


@pytest.mark.parametrize(("goal", "strength"), [(0.95, 0.9), (0.0, 0.1)])
def test_a_goal_out_of_range_ends_at_the_end(goal: float, strength: float) -> None:
    found = calibrate(lambda s: 0.1 + 0.8 * s, goal, 0.01, low=0.1, high=0.9)
    assert not found.met
    assert found.strength == strength
    assert all(0.1 <= tried <= 0.9 for tried, _ in found.tries)


def test_a_step_over_the_goal_gives_the_nearer_side_without_creeping() -> None:
    found = calibrate(lambda s: 0.2 if s < 0.7 else 0.65, 0.5, 0.01)
    assert not found.met
    assert found.reduction == 0.65
    assert len(found.tries) < 24


def test_calls_are_bounded() -> None:
    calls: list[float] = []

    def measure(strength: float) -> float:
        calls.append(strength)
        return 0.2 if strength < 0.7 else 0.65

    found = calibrate(measure, 0.5, 0.01, max_calls=3)
    assert len(calls) == 3
    assert [strength for strength, _ in found.tries] == calls


def test_calibration_survives_noise() -> None:
    source = random.Random(0)
    found = calibrate(lambda s: 0.9 * s + source.gauss(0, 0.003), 0.6, 0.01)
    assert found.met
    assert found.strength == pytest.approx(0.6 / 0.9, abs=0.02)


def test_the_reachable_range_is_measured_at_both_ends() -> None:
    assert reachable(lambda s: 0.1 + 0.5 * s) == (0.1, 0.1 + 0.5 * MAX_STRENGTH)
    assert reachable(lambda s: s, low=0.2, high=0.4) == (0.2, 0.4)
