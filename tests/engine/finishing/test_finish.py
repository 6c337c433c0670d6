"""The checkpoint folder that a run leaves: what is in it, and that it says the truth."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from madtp_cli.engine.finishing import finish
from madtp_cli.errors import Interrupted
from madtp_cli.models.checkpoints import open_checkpoint
from madtp_cli.recipe import load_recipe
from madtp_cli.report.comparison import headline
from madtp_cli.results import PruneResult, versions
from tests.tiny_runs import FOLDER, PRUNE, interrupt_at, names, tiny, train, weights


def result_of(folder: Path) -> PruneResult:
    return PruneResult.from_json((folder / "profile.json").read_text(encoding="utf-8"))


def test_a_folder_holds_what_is_promised_and_nothing_else(dense: Path, pruned: Path) -> None:
    for folder in (dense, pruned):
        assert names(folder) == FOLDER
        assert names(folder.parent) == {"out", "tiny.yaml"}


def test_whoever_may_read_one_file_may_read_all(pruned: Path) -> None:
    assert len({path.stat().st_mode for path in pruned.iterdir()}) == 1


def test_the_configuration_says_how_the_model_prunes(dense: Path, pruned: Path) -> None:
    block = json.loads((pruned / "config.json").read_text(encoding="utf-8"))["madtp"]
    strength, budget = block.pop("strength"), block.pop("budget")
    assert block == {
        "family": "blip",
        "task": "nlvr2",
        "method": "madtp",
        "variant": "normalised",
        "tokens": "adaptive",
        "temperature": 1.0,
        "layers": {"vision": [0, 1, 2], "text": [0, 1]},
        "alignment_tokens": 4,
        "alignment_dim": 16,
        "projection": "per_layer",
    }
    assert 0 < strength < 1
    assert budget.keys() == {"target_reduction", "reached_reduction", "met", "tolerance"}
    plain = json.loads((dense / "config.json").read_text(encoding="utf-8"))["madtp"]
    assert (plain["method"], plain["budget"]) == ("none", {})


def test_the_recipe_is_spelled_out_and_reads_back(dense: Path, pruned: Path) -> None:
    text = (pruned / "recipe.yaml").read_text(encoding="utf-8")
    first = text.splitlines()[0]
    assert first == f"# Made with {', '.join(f'{name} {version}' for name, version in versions().items())}."
    recipe = load_recipe(pruned / "recipe.yaml")
    assert recipe.model.checkpoint == str(dense)
    assert recipe.output == str(pruned)
    assert recipe.training.seed == 42
    assert yaml.safe_load(text)["training"]["clip_norm"] == 1.0  # a default


def test_the_profile_is_the_document_of_the_run(dense: Path, pruned: Path) -> None:
    result = result_of(pruned)
    assert (result.command, result.checkpoint, result.device, result.dtype) == ("prune", str(pruned), "cpu", "fp32")
    assert result.dense is not None
    assert result.pruned is not None
    for side, folder in ((result.dense, dense), (result.pruned, pruned)):
        assert side.latency_ms.keys() == {"1", "32"}
        assert all(value > 0 for value in side.latency_ms.values())
        assert side.latency_runs.keys() == side.samples_per_second.keys() == side.peak_mib.keys() == {"1", "32"}
        assert side.params == sum(value.numel() for value in weights(folder).values())
        assert "accuracy" in side.metrics
        assert side.size_mib == sum(value.nbytes for value in weights(folder).values()) / 2**20
    assert [(layer.tower, layer.layer) for layer in result.layers] == [
        *(("vision", 0), ("vision", 1), ("vision", 2)),
        *(("text", 0), ("text", 1)),
    ]
    means = [layer.tokens_mean for layer in result.layers]
    assert result.pruned.tokens_kept["vision"] == pytest.approx(sum(means[:3]) / 3 / 37)
    assert result.dense.tokens_kept == {"vision": 1.0, "text": 1.0}
    assert (result.dense.macs_ratio, result.dense.efficiency) == ({}, {})
    # Costs are of the test split, ratios of the samples that were timed: alike, not equal.
    reduced = result.pruned.gmacs / result.dense.gmacs
    assert result.pruned.macs_ratio == {size: pytest.approx(reduced, abs=0.05) for size in result.pruned.latency_ms}
    for size, ratio in result.pruned.time_ratio.items():
        assert ratio == pytest.approx(result.pruned.latency_ms[size] / result.dense.latency_ms[size])
        assert result.pruned.efficiency[size] == pytest.approx((1 - ratio) / (1 - result.pruned.macs_ratio[size]))
    assert (result.threads, result.attention_backend) == (torch.get_num_threads(), "auto")
    assert 37 > means[0] > means[1] > means[2]
    assert result.seconds > 0


def test_the_log_of_the_run_is_in_it(pruned: Path) -> None:
    log = [json.loads(line) for line in (pruned / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["step"] for entry in log if "losses" in entry] == [2, 4, 6, 8, 10]
    assert [entry["step"] for entry in log if "losses" not in entry] == [5, 10]


def test_the_card_states_what_was_measured(dense: Path, pruned: Path) -> None:
    card = (pruned / "README.md").read_text(encoding="utf-8")
    result = result_of(pruned)
    assert result.pruned is not None
    assert f"Metrics are those of the {result.samples} samples of the test split" in card
    assert result.samples == 96
    assert f"{100 * result.pruned.metrics['accuracy']:.1f}%" in card
    assert f"- Made from: `{dense.name}`" in card  # without the folders of this machine
    threads = torch.get_num_threads()
    spread = f"{threads} thread{'s' * (threads > 1)}"
    assert f"taken with: {result.processor}, {spread}, cpu, fp32, attention backend auto." in card
    assert "## Licence" not in (dense / "README.md").read_text(encoding="utf-8")
    assert "- Made from: nothing, trained from scratch" in (dense / "README.md").read_text(encoding="utf-8")


def test_the_report_tells_of_this_run(dense: Path, pruned: Path) -> None:
    """Its figures are those of profile.json, its samples those of the test split; dense models have one too."""
    result = result_of(pruned)
    assert result.report == str(pruned / "report.html")
    page = (pruned / "report.html").read_text(encoding="utf-8")
    assert f">{headline(result)}<" in page
    assert "shapes/test/" in page
    assert len(page) < 2**20
    assert "Tokens kept, text" in page
    assert "96 test" in page
    assert "[report.html](report.html)" in (pruned / "README.md").read_text(encoding="utf-8")
    plain = (dense / "report.html").read_text(encoding="utf-8")
    assert "Nothing is pruned" in plain
    assert "made from</dt><dd>nothing, trained from scratch" in plain


@pytest.mark.usefixtures("untimed")
def test_a_resumed_run_reports_all_its_sittings(
    dense: Path, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The curves are those of the run that was not interrupted, to the last digit."""
    recipe = tiny(tmp_path, PRUNE, checkpoint=dense)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        with pytest.raises(Interrupted):
            train(recipe)
    train(recipe, resume=True)
    curves, whole = (
        (folder / "report.html").read_text(encoding="utf-8").split("<h2>Training</h2>")[1].split("</section>")[0]
        for folder in (tmp_path / "out", pruned)
    )
    assert "at step 2 and" in curves
    assert curves == whole


@pytest.mark.usefixtures("untimed")
def test_a_report_that_fails_costs_nothing_else(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint is written and loads, the console says what is missing, and nothing points to it."""

    def broken(*given: object) -> str:
        raise RuntimeError("no font\nto write with")

    monkeypatch.setattr(finish, "write_report", broken)
    said = io.StringIO()
    recipe = tiny(tmp_path, PRUNE, "training.steps=1", "budget.tolerance=0.9", checkpoint=dense)
    result = train(recipe, console=Console(file=said, width=200))
    assert result.report is None
    assert names(tmp_path / "out") == FOLDER - {"report.html"}
    assert "report.html is missing, all else is there: RuntimeError: no font to write with" in said.getvalue()
    assert "report.html" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert result_of(tmp_path / "out").report is None


def test_the_strength_of_the_folder_is_the_calibrated_one(pruned: Path) -> None:
    checkpoint = open_checkpoint(str(pruned))
    assert checkpoint.build().strength == checkpoint.spec.strength
    assert checkpoint.budget["reached_reduction"] == pytest.approx(0.3, abs=0.05)
