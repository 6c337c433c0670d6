"""Plots: the numbers that they are drawn from, in the page's own colours, with ids of their own."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from madtp_cli.report import plots
from madtp_cli.report.plots import MOST_POINTS, Plot
from tests.report.stories import LOG, STORY


def drawn() -> list[Plot]:
    """Draw every kind."""
    found = [
        plots.losses(LOG),
        plots.cost(LOG),
        plots.strength(LOG),
        plots.score_against_cost(LOG, "accuracy", 0.32, {"dense": (0.32, 0.97), "compressed": (0.16, 0.95)}),
        *(plots.kept(tower, layers, "images") for tower, layers in STORY.kept.items()),
        plots.histogram(STORY.gmacs, STORY.dense_gmacs),
    ]
    return [plot for plot in found if plot is not None]


def texts(plot: Plot) -> list[str]:
    return ["".join(element.itertext()).strip() for element in ElementTree.fromstring(plot.svg).iter("text")]


PLOTS = {plot.name: plot for plot in drawn()}


def test_every_plot_is_there_and_says_what_it_shows() -> None:
    assert list(PLOTS) == ["losses", "cost", "strength", "score", "kept-vision", "samples"]
    captions = {name: plot.caption for name, plot in PLOTS.items()}
    assert captions["losses"] == "In all 0.550 at step 2 and 0.028 at step 40."
    assert captions["cost"] == "The last batch cost 0.1600 gmacs per sample, target 0.1600, 0.3200 without pruning."
    assert captions["strength"] == "0 prunes nothing; it ended at 0.4000. The temperature was 1 throughout."
    assert captions["score"].startswith("Validations at steps 20 to 40: the last one 94.0%.")
    assert captions["kept-vision"] == (
        "After the last layer, half of the 40 test images keep 60% to 79% of their vision tokens, "
        "all of them 50% to 89%."
    )
    assert captions["samples"] == "From 0.1500 to 0.1890 gmacs, mean 0.1695; without pruning 0.3200 to 0.3200."


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_a_drawing_is_an_element_of_the_page(plot: Plot) -> None:
    """Well-formed; colours are the page's variables but for none; ids and what refers to them begin with its name."""
    root = ElementTree.fromstring(plot.svg)
    assert root.tag == "svg"
    assert root.attrib.keys() == {"viewBox", "aria-hidden"}
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", re.sub(r'"#[^"]*"|url\(#[^)]*\)', "", plot.svg))
    ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))
    assert all(name.startswith(f"{plot.name}-") for name in ids)
    for target in re.findall(r'(?:url\(|href=")#([^)"]*)', plot.svg):
        assert target in ids
    assert "http" not in plot.svg


def test_the_same_data_give_the_same_drawing() -> None:
    again = {plot.name: plot.svg for plot in drawn()}
    assert again == {name: plot.svg for name, plot in PLOTS.items()}


def test_axes_and_curves_are_named() -> None:
    assert {"task", "alignment", "loss", "step"} <= set(texts(PLOTS["losses"]))
    assert {"measured", "target", "without pruning", "gmacs per sample"} <= set(texts(PLOTS["cost"]))
    assert {"dense, test", "compressed, test", "first", "last", "Accuracy, %"} <= set(texts(PLOTS["score"]))
    assert {"median", "middle half", "tokens kept, %"} <= set(texts(PLOTS["kept-vision"]))


def test_what_was_not_logged_is_not_drawn() -> None:
    dense = [{**entry, "gmacs": None, "strength": None} for entry in LOG]
    assert plots.losses([]) is None
    assert plots.cost(dense) is None
    assert plots.strength(dense) is None
    assert plots.score_against_cost(LOG, "cider", 0.32, {}) is None


def test_a_temperature_that_changes_is_drawn() -> None:
    warmer = [{**entry, "temperature": entry["step"] / 10} for entry in LOG]
    plot = plots.strength(warmer)
    assert plot is not None
    assert "temperature" in texts(plot)
    assert "throughout" not in plot.caption


def test_a_run_of_many_steps_is_drawn_by_means() -> None:
    """1,000 logged steps are 250 points of four each: the mean of 1 to 4 first, that of the last four last."""
    entries: list[dict[str, Any]] = [
        {"step": step, "losses": {"task": 2.0 * step, "total": 1.0}} for step in range(1, 1001)
    ]
    x, y = plots._points(entries, lambda entry: entry["losses"]["task"])
    assert len(x) == 250 <= MOST_POINTS
    assert (x[0], y[0], x[-1], y[-1]) == (2.5, 5.0, 998.5, 1997.0)
    plot = plots.losses(entries)
    assert plot is not None
    assert plot.caption.endswith("Every point is the mean of 4 logged steps.")
    assert len(plot.svg) < 30_000


def test_one_step_and_one_validation_are_enough() -> None:
    """A smoke run logs no more."""
    few = [LOG[0], LOG[-1]]
    found = [
        plots.losses(few),
        plots.cost(few),
        plots.strength(few),
        plots.score_against_cost(few, "accuracy", 0.32, {}),
        plots.kept("text", {0: [0.5, 0.5]}, "texts"),
        plots.histogram([0.1, 0.1], [0.3, 0.3]),
    ]
    assert all(found)
    assert plots.kept("text", {0: [0.5, 0.5]}, "texts").caption == (
        "After the last layer, all of the 2 test texts keep 50% of their text tokens."
    )


def test_a_loss_of_nothing_is_drawn() -> None:
    """A logarithm has no place for zero."""
    zero = [{**LOG[0], "losses": {"task": 0.0, "total": 0.0}}]
    assert plots.losses(zero) is not None


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    import matplotlib

    before = matplotlib.rcParams["font.size"]
    plots.histogram([0.1, 0.2], [0.3, 0.3])
    assert matplotlib.rcParams["font.size"] == before
