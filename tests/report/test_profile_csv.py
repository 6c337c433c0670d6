"""CSV files of a profile, read back with the standard library."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from madtp_cli.report.profile_csv import to_csv
from madtp_cli.report.profile_rows import TOWERS
from madtp_cli.results import NamedProfile, ProfileResult
from tests.report.test_profile_tables import LAYERS, profile, sample

PAGE = Path(__file__).parents[2] / "docs" / "profile.md"
FULL = replace(
    profile(name="a", layers=LAYERS, samples=(sample(0), sample(2))), tokens_kept={"vision": 0.5}, size_mib=8.0
)


def read(result: ProfileResult, by: str, **options: int) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(result, by, **options), newline="")))


def test_modules_are_a_tree_with_levels() -> None:
    """Full figures, not the printed ones; what was not measured is empty."""
    rows = read(FULL, "module")
    assert [(row["level"], row["part"]) for row in rows[:3]] == [
        ("1", "vision_model"),
        ("2", "vision_model.embeddings"),
        ("2", "vision_model.encoder.layers"),
    ]
    attention = next(row for row in rows if row["part"].endswith("self_attn"))
    assert float(attention["gmacs"]) == pytest.approx(0.15)
    assert float(attention["gmacs_share"]) == pytest.approx(0.75)
    assert (attention["layers"], attention["params"], attention["time_share"]) == ("2", "60000", "")
    assert len(read(FULL, "module", depth=TOWERS)) == 3


def test_layers_and_samples() -> None:
    """One line for each; samples with the share of each tower's tokens that leave a layer."""
    assert [(row["tower"], row["layer"], row["tokens_entered"]) for row in read(FULL, "layer")] == [
        *(("vision", "0", "40"), ("vision", "1", "40"), ("text", "0", "12"))
    ]
    (first, second) = read(FULL, "sample")
    assert (first["id"], second["id"]) == ("test/2", "test/0")
    assert (float(second["gmacs"]), float(second["dense_gmacs"])) == (0.1, 0.5)
    assert float(first["tokens_kept_vision_left"]) == 0.5


def test_checkpoints_have_their_figures_by_batch_size() -> None:
    """Every checkpoint is a line, named in the first column; a dense one has no ratios."""
    known = {name: getattr(FULL, name) for name in ("gmacs", "params", "latency_ms")}
    other = NamedProfile(name="b", checkpoint="runs/b", **known)
    rows = read(replace(FULL, others=(other,)), "checkpoint")
    assert [row["checkpoint"] for row in rows] == ["a", "b"]
    assert [row["latency_ms_32"] for row in rows] == ["300.0", "300.0"]
    assert [row["time_ratio_1"] for row in rows] == ["0.5", ""]
    assert (rows[0]["size_mib"], rows[0]["tokens_kept_vision"]) == ("8.0", "0.5")


def test_names_with_commas_are_quoted() -> None:
    assert read(replace(FULL, name='a, "b"'), "layer")[0]["checkpoint"] == 'a, "b"'


def test_nothing_measured_is_a_line_of_names() -> None:
    assert to_csv(replace(FULL, samples=()), "sample") == "checkpoint\n"


@pytest.mark.parametrize("by", ["module", "layer", "sample", "checkpoint"])
def test_every_column_is_documented(by: str) -> None:
    """docs/profile.md names the columns of each kind; TOWER, N stand for a tower and a batch size."""
    (line,) = re.findall(rf"^\| `{by}` \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    documented = set(re.findall(r"`(\w+)`", line))
    columns = {re.sub("(?<=tokens_kept_).+", "TOWER", re.sub("(?<=_)[0-9]+$", "N", name)) for name in read(FULL, by)[0]}
    assert columns == documented
