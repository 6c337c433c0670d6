"""Whole runs of a tiny model: what they choose, refuse, keep when they fail, and go on with."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from madtp_cli.data.shapes import ShapesPairs, accuracy
from madtp_cli.engine import run
from madtp_cli.engine.evaluation.evaluate import evaluate, measure_reduction
from madtp_cli.engine.finishing import finish
from madtp_cli.engine.finishing.finish import Effort
from madtp_cli.engine.tasks.nlvr2 import Nlvr2
from madtp_cli.engine.training.fit import Job, Run
from madtp_cli.engine.training.teacher import CachedTeacher, Teacher
from madtp_cli.errors import Interrupted, MadtpError, RecipeError, SourceError, UsageError
from madtp_cli.models.checkpoints import open_checkpoint
from madtp_cli.models.spec import PruningSpec
from madtp_cli.pruning import Madtp
from madtp_cli.recipe import Recipe
from madtp_cli.results import PruneResult
from tests.tiny_runs import DENSE, FOLDER, PRUNE, interrupt_at, names, same, tiny, train, watch, weights

pytestmark = pytest.mark.usefixtures("untimed")


def block(folder: Path) -> dict[str, Any]:
    """Read the madtp block of a checkpoint's config.json."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))["madtp"]
    return found


def left(folder: Path) -> set[str]:
    """List what a run left beside its recipe."""
    return names(folder) - {"tiny.yaml"}


# One seed ----------------------------------------------------------------------------------------------------


def test_one_seed_gives_one_dense_model(dense: Path, tmp_path: Path) -> None:
    train(tiny(tmp_path, DENSE), "finetune")
    assert same(weights(tmp_path / "out"), weights(dense))
    train(tiny(tmp_path, DENSE, "training.seed=1"), "finetune", overwrite=True)
    assert not same(weights(tmp_path / "out"), weights(dense))


def test_one_seed_gives_one_pruned_model(dense: Path, pruned: Path, tmp_path: Path) -> None:
    train(tiny(tmp_path, PRUNE, checkpoint=dense))
    assert same(weights(tmp_path / "out"), weights(pruned))
    assert block(tmp_path / "out") == block(pruned)
    train(tiny(tmp_path, PRUNE, "training.seed=1", checkpoint=dense), overwrite=True)
    assert not same(weights(tmp_path / "out"), weights(pruned))


# From the recipe to the loop ---------------------------------------------------------------------------------


def caught_job(patch: pytest.MonkeyPatch, recipe: Recipe, command: str = "prune") -> Job:
    """Return what a run hands to the loop, without training."""
    jobs: list[Job] = []

    def keep(job: Job, *arguments: Any, **options: Any) -> Run:
        jobs.append(job)
        raise Interrupted("enough")

    patch.setattr(run, "fit", keep)
    with pytest.raises(Interrupted):
        train(recipe, command)
    return jobs[0]


def test_the_loop_gets_what_the_recipe_says(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = ["training.ramp=0.6", "alignment.weight=0.7", "pruning.layers.vision=1-2"]
    job = caught_job(monkeypatch, tiny(tmp_path, PRUNE, *changes, checkpoint=dense))
    assert job.controller is not None
    assert (job.controller.goal, job.controller.ramp) == (0.3, 0.6)
    assert job.step.weights.alignment == 0.7
    assert job.step.guided == {"vision": {1, 2}}
    assert job.step.guidance_scale == 16**-0.5  # logits over the root of alignment.dim decide, so they are taught
    assert isinstance(job.step.teacher, Teacher)
    assert same({**job.step.teacher.model.state_dict()}, weights(dense))
    assert (len(job.train), len(job.validation), job.settings.steps) == (256, 64, 10)
    assert job.folder == tmp_path / "out.partial"


@pytest.mark.parametrize(("guidance", "merge_gradient"), [(1.0, False), (0.0, True)])
def test_merge_weights_carry_gradient_only_where_nothing_else_teaches_the_selection(
    guidance: float, merge_gradient: bool, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = caught_job(monkeypatch, tiny(tmp_path, PRUNE, f"distillation.guidance={guidance}", checkpoint=dense))
    plan = job.step.student.plan
    assert plan is not None
    assert isinstance(plan.pruner, Madtp)
    assert plan.pruner.merge_gradient is merge_gradient


def test_without_a_teacher_or_guidance_there_is_less_to_learn(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = caught_job(monkeypatch, tiny(tmp_path, PRUNE, "training.teacher=false", checkpoint=dense))
    assert alone.step.teacher is None
    random = caught_job(monkeypatch, tiny(tmp_path, PRUNE, "pruning.method=random", checkpoint=dense))
    assert random.step.guided == {}
    scratch = caught_job(monkeypatch, tiny(tmp_path, DENSE), "finetune")
    assert scratch.step.teacher is None
    assert scratch.controller is None


# The test split ----------------------------------------------------------------------------------------------


def test_the_test_split_is_read_once_when_all_is_decided(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[str, int]] = []
    watch(monkeypatch, lambda split, start: reads.append((split, start)))
    train(tiny(tmp_path, PRUNE, checkpoint=dense))
    # 96 samples are a batch of 64 and the rest, read by the dense and by the pruned model.
    assert reads[-4:] == [("test", 0), ("test", 64)] * 2
    assert {"train", "validation"} == {split for split, _ in reads[:-4]}


def test_a_model_from_scratch_reads_it_once_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[str, int]] = []
    watch(monkeypatch, lambda split, start: reads.append((split, start)))
    result = train(tiny(tmp_path, DENSE), "finetune")
    assert reads[-2:] == [("test", 0), ("test", 64)]
    assert [split for split, _ in reads].count("test") == 2
    assert result.dense is not None
    assert (result.pruned, result.budget) == (None, None)


# The budget --------------------------------------------------------------------------------------------------


def test_the_budget_is_judged_by_the_test_split(dense: Path, pruned: Path) -> None:
    """What the folder says is what a fresh evaluation of the folder finds."""
    result = PruneResult.from_json((pruned / "profile.json").read_text(encoding="utf-8"))
    assert result.budget is not None
    assert result.pruned is not None
    assert result.dense is not None
    task, data = Nlvr2(accuracy), ShapesPairs("test", 96)
    found = evaluate(open_checkpoint(str(pruned)).build(), task, data, batch_size=32)
    assert result.budget.reached_reduction == pytest.approx(found.cost.reduction)
    assert result.pruned.metrics == pytest.approx(found.metrics)
    assert result.pruned.gmacs == pytest.approx(found.cost.gmacs)
    assert result.budget.met is (abs(found.cost.reduction - 0.3) <= 0.05) is True
    before = evaluate(open_checkpoint(str(dense)).build(), task, data, batch_size=32)
    assert result.dense.metrics == pytest.approx(before.metrics)
    assert result.dense.gmacs == pytest.approx(before.cost.gmacs) == pytest.approx(found.cost.dense_gmacs)
    assert block(pruned)["budget"] == {
        "target_reduction": 0.3,
        "reached_reduction": result.budget.reached_reduction,
        "met": True,
        "tolerance": 0.05,
    }


def test_a_missed_budget_is_marked(dense: Path, tmp_path: Path) -> None:
    result = train(tiny(tmp_path, PRUNE, "budget.tolerance=1e-9", "training.steps=1", checkpoint=dense))
    assert result.budget is not None
    assert result.budget.met is False
    assert block(tmp_path / "out")["budget"]["met"] is False
    assert names(tmp_path / "out") == FOLDER


def test_a_budget_in_gmacs_is_the_same_goal(dense: Path, tmp_path: Path) -> None:
    model = open_checkpoint(str(dense)).build()
    gmacs = model.dense_gmacs(ShapesPairs("validation", 64).batch(0, 64).text_lengths)
    result = train(
        tiny(tmp_path, PRUNE, f"budget.gmacs={0.75 * gmacs}", "training.steps=0", checkpoint=dense), overwrite=True
    )
    assert result.budget is not None
    assert result.budget.target_reduction == pytest.approx(0.25)
    assert result.budget.reached_reduction == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize(
    ("budget", "asked"),
    [
        ("budget.reduction=0.99", "reduction 0.990"),
        ("budget.gmacs=1e-6", "1e-06 gmacs (reduction 1.000)"),
        ("budget.gmacs=7", "7.0 gmacs (reduction -"),
    ],
)
def test_an_impossible_budget_is_refused_before_training(
    budget: str, asked: str, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    watch(monkeypatch, lambda split, start: reads.append(split))
    with pytest.raises(RecipeError) as caught:
        train(tiny(tmp_path, PRUNE, budget, "pruning.method=random", checkpoint=dense))
    data = ShapesPairs("validation", 64)
    spec = PruningSpec(method="random", layers={"vision": (0, 1, 2), "text": (0, 1)})
    model = open_checkpoint(str(dense)).build(spec)
    most = measure_reduction(model, Nlvr2(accuracy), data, batch_size=64, limit=Effort().probe_samples, strength=0.999)
    gmacs = model.dense_gmacs(data.batch(0, 64).text_lengths)
    message = str(caught.value)
    assert message.startswith(f"--set {budget}: {asked}")
    assert message.endswith(
        f"cannot be reached: this model and method reach reductions 0.000 to {most:.3f} ({(1 - most) * gmacs:.4g} to "
        f"{gmacs:.4g} gmacs); change the budget or pruning.layers"
    )
    assert "train" not in reads
    assert left(tmp_path) == set()


# What is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "change", "key"),
    [("prune", "budget.reduction=0.3", "budget"), ("finetune", "pruning.strength=0.3", "pruning.strength")],
)
def test_pruning_needs_a_trained_model(command: str, change: str, key: str, tmp_path: Path) -> None:
    recipe = tiny(tmp_path, DENSE, change, "pruning.method=madtp")
    with pytest.raises(RecipeError) as caught:
        train(recipe, command)
    assert str(caught.value) == (
        f"--set {change}: {key} needs a trained model to prune, and model.checkpoint names none; train a dense one "
        "first, then give it with --checkpoint"
    )
    assert left(tmp_path) == set()


def test_an_incomplete_checkpoint_is_refused_before_training(dense: Path, tmp_path: Path) -> None:
    """The finished folder will need the tokenizer, so its lack must not show at the end of training."""
    half = tmp_path / "half"
    half.mkdir()
    for name in FOLDER - {"tokenizer.json"}:
        (half / name).write_bytes((dense / name).read_bytes())
    with pytest.raises(SourceError) as caught:
        train(tiny(tmp_path, PRUNE, checkpoint=half))
    assert str(caught.value) == f"{half / 'tokenizer.json'}: no such file; the checkpoint folder is incomplete"
    assert left(tmp_path) == {"half"}


def test_a_dry_run_writes_nothing(dense: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    recipe = tiny(tmp_path, PRUNE, checkpoint=dense)
    result = train(recipe, dry_run=True, console=console)
    assert (result.dry_run, result.checkpoint, result.seed, result.training_precision) == (True, None, 42, "fp32")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().replace("\n", "") == (
        f"prune tiny: 10 steps of 16 samples in fp32, towards reduction 0.300, from {dense}"
    )
    assert left(tmp_path) == set()


# Failures ----------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_leaves_no_checkpoint(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, DENSE, "training.learning_rate=1e30", "training.clip_norm=1e30")
    with pytest.raises(MadtpError, match=r"try a lower training.learning_rate"):
        train(recipe, "finetune")
    assert left(tmp_path) == {"out.partial"}
    train(tiny(tmp_path, DENSE), "finetune", overwrite=True)
    assert left(tmp_path) == {"out"}


def test_overwrite_replaces_only_after_success(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny(tmp_path, PRUNE, "training.steps=0", checkpoint=dense)
    train(recipe)
    (tmp_path / "out" / "note").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="out: it exists; choose another --output, or replace it with --overwrite"):
        train(recipe)
    with monkeypatch.context() as patch:
        patch.setattr(finish, "model_card", lambda *arguments, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(recipe, overwrite=True)
    assert names(tmp_path / "out") == {*FOLDER, "note"}
    assert left(tmp_path) == {"out", "out.partial"}
    train(recipe, overwrite=True)
    assert names(tmp_path / "out") == FOLDER
    assert left(tmp_path) == {"out"}


# Stopped and resumed -----------------------------------------------------------------------------------------


def test_an_interrupted_run_ends_as_the_uninterrupted_one(
    dense: Path, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(tmp_path, PRUNE, checkpoint=dense)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        with pytest.raises(Interrupted, match=r"stopped at step 7 of 10; the state is saved in .*out\.partial"):
            train(recipe)
    assert left(tmp_path) == {"out.partial"}
    with pytest.raises(UsageError, match=r"out\.partial: holds an unfinished run"):
        train(recipe)
    with pytest.raises(SourceError, match="its state belongs to another recipe"):
        train(tiny(tmp_path, PRUNE, "training.seed=1", checkpoint=dense), resume=True)
    with pytest.raises(SourceError, match="its state belongs to another recipe"):
        train(tiny(tmp_path, PRUNE, "pruning.method=none", "budget=null", checkpoint=dense), "finetune", resume=True)
    train(recipe, resume=True)
    assert same(weights(tmp_path / "out"), weights(pruned))
    assert block(tmp_path / "out") == block(pruned)
    assert left(tmp_path) == {"out"}
    with pytest.raises(UsageError, match="out: this run is already finished"):
        train(recipe, resume=True)


def test_a_cache_is_asked_instead_of_the_teacher_after_a_stop_too(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 samples are read four times in ten steps of 16: four batches are asked about, whoever stops when."""
    asked: list[int] = []
    ask = Teacher.run

    def watched(self: Teacher, batch: Any, *rest: Any) -> Any:
        asked.append(batch.samples)
        return ask(self, batch, *rest)

    monkeypatch.setattr(Teacher, "run", watched)
    changes = ["data.train_samples=64", "distillation.cache=true"]
    (tmp_path / "whole").mkdir()
    whole = tiny(tmp_path / "whole", PRUNE, *changes, checkpoint=dense)
    train(whole)
    assert asked == [16] * 4
    recipe = tiny(tmp_path, PRUNE, *changes, checkpoint=dense)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        with pytest.raises(Interrupted):
            train(recipe)
    assert asked == [16] * 8
    train(recipe, resume=True)
    assert asked == [16] * 8
    assert same(weights(tmp_path / "out"), weights(tmp_path / "whole" / "out"))
    assert left(tmp_path) == {"out", "whole"}
    assert names(tmp_path / "out") == FOLDER


def test_a_cache_that_cannot_be_written_ends_the_run(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CachedTeacher, "__init__", full)
    recipe = tiny(tmp_path, PRUNE, "data.train_samples=64", "distillation.cache=true", checkpoint=dense)
    with pytest.raises(MadtpError, match=r"out\.partial: cannot be written: .*No space left on device; make room"):
        train(recipe)


def test_nothing_is_lost_after_training_either(
    dense: Path, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(tmp_path, PRUNE, checkpoint=dense)

    def press(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finish, "evaluate", press)
        with pytest.raises(Interrupted) as caught:
            train(recipe)
    work = tmp_path / "out.partial"
    assert str(caught.value) == f"stopped after training; the state is saved in {work}, go on with --resume"
    reads: list[str] = []
    watch(monkeypatch, lambda split, start: reads.append(split))
    train(recipe, resume=True)
    assert "train" not in reads
    assert same(weights(tmp_path / "out"), weights(pruned))


def test_nothing_to_resume(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"out\.partial: nothing to resume there; run without --resume"):
        train(tiny(tmp_path, PRUNE, checkpoint=dense), resume=True)
    assert left(tmp_path) == set()


# Pruned checkpoints as a start -------------------------------------------------------------------------------


def test_recovery_keeps_how_a_checkpoint_prunes(pruned: Path, tmp_path: Path) -> None:
    """Its layers, strength and alignment tokens are its own, whatever the recipe's defaults are."""
    changes = ["alignment={tokens: 7, dim: 8}", "pruning.layers.text=none", "training.steps=4"]
    result = train(tiny(tmp_path, PRUNE, *changes, checkpoint=pruned), "finetune")
    kept, before = block(tmp_path / "out"), block(pruned)
    assert {**kept, "budget": None} == {**before, "budget": None}
    assert kept["strength"] > 0
    assert weights(tmp_path / "out").keys() == weights(pruned).keys()
    assert not same(weights(tmp_path / "out"), weights(pruned))
    assert result.pruned is not None
    assert result.dense is not None
    assert result.pruned.gmacs < 0.8 * result.dense.gmacs


def test_a_pruned_checkpoint_is_not_pruned_again(pruned: Path, tmp_path: Path) -> None:
    """Its weights are no dense model to compare with."""
    with pytest.raises(SourceError, match="is pruned already"):
        train(tiny(tmp_path, PRUNE, checkpoint=pruned))
    assert left(tmp_path) == set()


def test_finetune_needs_to_know_how_much_is_pruned(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"tiny\.yaml:\d+: pruning\.strength is null, and finetune needs one"):
        train(tiny(tmp_path, PRUNE, checkpoint=dense), "finetune")
    assert left(tmp_path) == set()


def test_random_pruning_brings_no_alignment_module(dense: Path, tmp_path: Path) -> None:
    """Oracle: as many parameters as the dense model."""
    result = train(tiny(tmp_path, PRUNE, "pruning.method=random", "training.steps=0", checkpoint=dense))
    assert result.dense is not None
    assert result.pruned is not None
    assert result.pruned.params == result.dense.params


def test_a_fixed_strength_is_trained_at(dense: Path, tmp_path: Path) -> None:
    changes = ["pruning.strength=0.45", "training.steps=2"]
    result = train(tiny(tmp_path, PRUNE, *changes, checkpoint=dense), "finetune")
    assert block(tmp_path / "out")["strength"] == 0.45
    assert result.budget is None
    assert result.layers[0].tokens_mean < 37


# Other ways --------------------------------------------------------------------------------------------------


def test_no_steps_only_calibrate(dense: Path, tmp_path: Path) -> None:
    result = train(tiny(tmp_path, PRUNE, "training.steps=0", checkpoint=dense))
    before, after = weights(dense), weights(tmp_path / "out")
    assert all(after[name].equal(value) for name, value in before.items())
    assert {name.partition(".")[0] for name in after.keys() - before.keys()} == {"alignment"}
    assert result.budget is not None
    assert result.budget.reached_reduction == pytest.approx(0.3, abs=0.05)


def test_random_pruning_goes_the_same_way(dense: Path, tmp_path: Path) -> None:
    changes = ["pruning.method=random", "training.steps=3"]
    result = train(tiny(tmp_path, PRUNE, *changes, checkpoint=dense))
    assert result.budget is not None
    assert result.budget.reached_reduction == pytest.approx(0.3, abs=0.05)
    assert block(tmp_path / "out")["method"] == "random"


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_weights_are_saved_as_float32(precision: str, dense: Path, tmp_path: Path) -> None:
    changes = [f"training.precision={precision}", "training.steps=2"]
    result = train(tiny(tmp_path, PRUNE, *changes, checkpoint=dense))
    assert (result.dtype, result.training_precision) == ("fp32", precision)
    assert {value.dtype for value in weights(tmp_path / "out").values()} == {torch.float32}


def test_a_model_that_was_never_trained_for_its_task_is_not_pruned(tmp_path: Path) -> None:
    """What would be distilled from it is noise."""
    with pytest.raises(SourceError, match="its tensors are for vqa and were never trained for nlvr2"):
        train(tiny(tmp_path, PRUNE, checkpoint=Path("builtin:shapes_vqa")))
    assert left(tmp_path) == set()
