"""Wording: every kind of number reads the same wherever it stands."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from madtp_cli.report import wording


def test_shares_read_as_percent_and_their_changes_as_points() -> None:
    assert wording.metric("accuracy", 0.961) == "96.1%"
    assert wording.metric("accuracy/both", 0.5) == "50.0%"
    assert wording.metric("cider", 1.2345) == "123.4"  # as papers give it
    assert wording.metric_change("accuracy/both", 0.974, 0.961) == "-1.3 points"
    assert wording.metric_change("cider", 1.0, 1.25) == "+25.0"


def test_a_change_that_rounds_to_nothing_has_no_sign() -> None:
    assert wording.metric_change("accuracy", 0.9740001, 0.974) == "0.0 points"
    assert wording.relative_change(1.0, 0.99999) == "0.0%"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.213, "0.2130"),
        (1.5, "1.500"),
        (26.5, "26.50"),
        (132.54, "132.5"),
        (12345.6, "12346"),
        (0.0, "0.0000"),
        (2.5e-5, "2.5e-05"),
    ],
)
def test_a_cost_shows_about_four_figures(value: float, text: str) -> None:
    assert wording.gmacs(value) == text


def test_a_change_of_nothing_is_a_dash() -> None:
    assert wording.relative_change(0.0, 1.0) == "-"
    assert wording.relative_change(0.32, 0.16) == "-50.0%"


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(20.0, 10.0, "2.00x faster"), (10.0, 11.0, "1.10x slower"), (10.0, 10.01, "no faster"), (0.0, 1.0, "-")],
)
def test_a_slower_model_is_called_slower(before: float, after: float, text: str) -> None:
    assert wording.speed(before, after) == text


def test_sizes_and_times_show_three_or_four_figures() -> None:
    assert [wording.parameters(number) for number in (12, 76_800, 1_963_212, 223_900_000)] == [
        "12",
        "76.80 k",
        "1.963 M",
        "223.9 M",
    ]
    assert [wording.milliseconds(value) for value in (8.305, 88.12, 180.3)] == ["8.30 ms", "88.1 ms", "180 ms"]
    assert [wording.mebibytes(value) for value in (7.61, 446.2)] == ["7.61 MiB", "446 MiB"]
    sizes = (0, 213, 1000, 7.61 * 2**10, 446 * 2**20, 5000 * 2**30)
    assert [wording.size(int(value)) for value in sizes] == [
        *("0 B", "213 B", "0.98 KiB", "7.61 KiB", "446 MiB", "5000 GiB")
    ]


def test_small_numbers_have_short_exponents() -> None:
    assert [wording.small(value) for value in (3e-6, 8e-4, 0.0)] == ["3.0e-6", "8.0e-4", "0"]


def test_losses_keep_their_width_unless_they_explode() -> None:
    assert [wording.loss(value) for value in (0.4123, 12.0, 123456.0)] == ["0.412", "12.000", "1.23e+05"]
    assert wording.loss(float("nan")) == "nan"


def test_clocks_and_durations() -> None:
    assert [wording.clock(value) for value in (0.2, 65, 3723, None, float("inf"))] == [
        "0:00",
        "1:05",
        "1:02:03",
        "-:--",
        "-:--",
    ]
    assert [wording.duration(value) for value in (4.24, 42, 336, 3723)] == ["4.2 s", "42 s", "5 min 36 s", "1 h 02 min"]


def test_slow_steps_are_timed_the_other_way_round() -> None:
    assert [wording.rate(value) for value in (3.14, 0.25, None)] == ["3.1 step/s", "4.0 s/step", "- step/s"]


def test_what_an_encoding_cannot_say_is_escaped() -> None:
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert wording.encodable(console, "runs/größe") == "runs/gr\\xf6\\xdfe"


@pytest.mark.parametrize(("value", "text"), [(0.5, "0.50"), (8.314, "8.31"), (88.14, "88.1"), (1802.4, "1802")])
def test_samples_per_second_have_three_figures(value: float, text: str) -> None:
    assert wording.figures(value) == text


def test_only_the_last_part_of_a_place_on_this_machine_is_told() -> None:
    assert wording.unplaced("/home/me/models/a.pth") == "a.pth"
    for elsewhere in ("builtin:shapes_nlvr", "Salesforce/blip-vqa-base", "runs/a", "https://host/a.pth"):
        assert wording.unplaced(elsewhere) == elsewhere


def test_threads_are_counted() -> None:
    assert [wording.threads(number) for number in (None, 1, 2)] == [None, "1 thread", "2 threads"]


def test_a_busy_machine_is_one_where_equal_calls_take_unequal_times() -> None:
    """From 1.3 times the median on."""
    assert wording.busy("one in ten calls", 100, 129) is None
    assert wording.busy("one in ten calls", 100, 130) == (
        "The machine was busy: one in ten calls took 1.3 times the median or longer. Take the ratios as rough."
    )


@pytest.mark.parametrize(
    ("name", "text", "times", "unit"),
    [
        ("accuracy", "Accuracy", 100, ", %"),
        ("tr@1", "TR@1", 100, ", %"),
        ("cider_javafree", "CIDEr (Java-free)", 100, ""),
        ("bleu4_javafree", "BLEU-4 (Java-free)", 100, ""),
        ("mean", "Mean recall", 100, ", %"),
        ("loss", "Loss", 1, ""),
    ],
)
def test_a_metric_is_named_and_scaled_for_an_axis(name: str, text: str, times: float, unit: str) -> None:
    assert (wording.metric_name(name), wording.scale(name), wording.unit(name)) == (text, times, unit)
