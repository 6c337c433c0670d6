"""The report of `profile` as a whole: what each view leads to, several checkpoints, widths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from madtp_cli.report.profile_report import print_profile
from madtp_cli.results import Gmacs, NamedProfile, Picture, ProfileResult
from tests.report.test_profile_tables import LAYERS, profile, sample
from tests.report.test_terminal import console, lines, printed, words

FULL = profile(
    device="cpu",
    name="x",
    layers=LAYERS,
    samples=(sample(0), sample(1)),
    tokens_kept={"vision": 0.375, "text": 1.0},
    size_mib=8.0,
)


def shown(result: ProfileResult = FULL, width: int = 80, **view: Any) -> list[list[str]]:
    target = console(width)
    print_profile(target, result, **view)
    return words(target)


def others(*names: str) -> ProfileResult:
    known = {name: getattr(FULL, name) for name in ("gmacs", "params", "latency_ms", "modules", "tokens_kept")}
    dense = Gmacs(dense=0.5, pruned=0.5, reduction=0.0)
    return replace(
        FULL, others=tuple(NamedProfile(name=name, checkpoint=name, **{**known, "gmacs": dense}) for name in names)
    )


def test_modules_are_a_tree_and_layers_have_bars() -> None:
    """Without a choice both are shown; with one, that one."""
    both = shown()
    assert ["part", "params", "gmacs", "share"] in both
    assert ["tokens", "kept", "after", "mean", "min", "max"] in both
    tree = shown(by="module")
    assert ["part", "params", "gmacs", "share"] in tree
    assert not [row for row in tree if row[:2] == ["tokens", "kept"]]
    assert ["tokens", "kept", "after", "mean", "min", "max", "gmacs", "params"] in shown(by="layer")
    samples = shown(by="sample")
    assert ["test/1", "0.1010", "79.8%", "50.0%", "100.0%"] in samples
    assert not [row for row in samples if row[:1] == ["part"]]


def test_depth_reaches_the_tree() -> None:
    assert not [row for row in shown(depth=1) if "encoder.layers" in row]
    assert [row for row in shown(depth=4) if row[:4] == ["│", "│", "├──", "0"]]


def test_nothing_kept_back_needs_no_bars() -> None:
    """A dense model's layers all look the same."""
    dense = replace(FULL, gmacs=Gmacs(dense=0.5, pruned=0.5, reduction=0.0))
    assert not [row for row in shown(dense) if row[:2] == ["tokens", "kept"]]


def test_no_samples_are_said() -> None:
    """Where costs are arithmetic nothing was run."""
    target = console()
    print_profile(target, replace(FULL, samples=()), by="sample")
    assert "No sample was run: costs are arithmetic for texts of one length." in lines(target)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "runs/x: 121.0 k parameters"),
        ({"recipe": "tiny"}, "runs/x in the recipe tiny: 121.0 k parameters"),
        ({"checkpoint": None, "recipe": "tiny"}, "tiny, random weights: 121.0 k parameters"),
        ({"checkpoint": None, "recipe": "tiny", "device": None}, "tiny, no weights: 121.0 k parameters"),
    ],
)
def test_the_first_line_says_whose_weights_these_are(changes: dict[str, Any], line: str) -> None:
    target = console()
    print_profile(target, replace(FULL, **changes))
    assert lines(target)[1] == line


def test_several_checkpoints_stand_side_by_side() -> None:
    """Each figure one row; what a checkpoint does not have is empty, and a row that none has is not there."""
    rows = shown(others("b"))
    assert rows[1] == ["2", "checkpoints,", "on", "the", "same", "samples"]
    assert rows[3] == ["x", "b"]
    for row in (
        ["gmacs", "per", "sample", "0.2000", "0.5000"],
        ["without", "pruning", "0.5000", "0.5000"],
        ["reduction", "60.0%", "0.0%"],
        ["vision", "tokens", "kept", "37.5%", "37.5%"],
        ["latency,", "batch", "32", "300", "ms", "300", "ms"],
        ["time", "ratio", "x0.50"],
        ["efficiency", "0.83"],
        ["parameters", "121.0", "k", "121.0", "k"],
        ["checkpoint", "8.00", "MiB"],
    ):
        assert row in rows
    assert not [row for row in rows if row[:1] == ["part"]]
    assert [row for row in shown(others("b"), every=True) if row[:2] == ["batch", "model"]]


def test_each_checkpoint_has_its_own_view_if_asked() -> None:
    rows = shown(others("b"), by="module")
    assert [row[0] for row in rows if "gmacs" in row and row[0] in ("x:", "b:")] == ["x:", "b:"]
    assert len([row for row in rows if row[:1] == ["part"]]) == 2


@pytest.mark.parametrize("width", [80, 120])
def test_more_checkpoints_than_fit_go_below(width: int) -> None:
    """Nothing is cut off or wrapped, whatever their names and the width."""
    names = [f"runs/a_long_name_{number}" for number in range(9)]
    target = console(width)
    print_profile(target, others(*names))
    assert max(len(line) for line in lines(target)) <= width
    found = [word for row in words(target) for word in row if word.startswith("runs/a_long")]
    assert found == names
    heads = [row for row in words(target) if row[:1] == ["x"] or (row and row[0] in names)]
    assert len(heads[0]) == (width - 21) // 23 + 1


def test_pictures_are_listed_with_their_folder() -> None:
    drawn = Picture(file="out/a.png", id="a", answer="true", reference=None, gmacs=FULL.gmacs)
    rows = shown(replace(FULL, pictures=(drawn,)))
    assert ["a.png", "0.2000", "60.0%", "true"] in rows
    assert ["pictures", "out"] in rows


def test_a_pipe_without_unicode_gets_a_report_too() -> None:
    """Rails and bars in ASCII, nothing escaped."""
    target = console(encoding="ascii")
    print_profile(target, FULL)
    text = printed(target)
    assert "`-- alignment" in text
    assert "\\u" not in text
    assert "?" not in text


def test_shares_of_time_are_said_to_be_of_what() -> None:
    """Of a dense model nothing is chosen; without times there is nothing to say."""
    clocked = replace(FULL, modules=tuple(replace(module, time_share=0.1) for module in FULL.modules))
    said = "of a call at batch 1; between the parts, tokens are chosen and moved"
    assert ["time", *said.split()] in shown(clocked)
    dense = replace(clocked, gmacs=Gmacs(dense=0.5, pruned=0.5, reduction=0.0))
    assert ["time", "of", "a", "call", "at", "batch", "1"] in shown(dense)
    assert not [row for row in shown() if row[:1] == ["time"]]
