"""What `prune` and `finetune` share: a recipe with its changes, the run, the report, the exit code."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

from madtp_cli.commands.options import Backend, recipe_changes, verbosity
from madtp_cli.commands.output import emit, open_console
from madtp_cli.errors import BudgetError, RecipeError, UsageError
from madtp_cli.recipe import Recipe, load_recipe
from madtp_cli.results import PruneResult


def run(
    command: Literal["prune", "finetune"],
    recipe: str,
    *,
    checkpoint: str | None,
    output: str | None,
    settings: Sequence[str] | None,
    resume: bool,
    dry_run: bool,
    overwrite: bool,
    device: str,
    precision: str | None,
    attention: Backend,
    seed: int | None,
    json_output: bool,
    verbose: int,
    quiet: bool,
    random_init: bool,
    smoke: bool,
) -> None:
    """Run a recipe and report; raises BudgetError after the report of a `prune` that missed its budget."""
    _check_alone()
    level = verbosity(verbose, quiet)
    changes = recipe_changes(settings, checkpoint=checkpoint, output=output, precision=precision, seed=seed)
    loaded = load_recipe(recipe, changes)
    if command == "prune":
        _check_prunes(loaded)
    _check_tries(loaded, random_init=random_init, smoke=smoke, dry_run=dry_run, resume=resume)
    if smoke and output is None:
        # Not in the way of the real run.
        loaded = loaded.model_copy(update={"output": f"{loaded.output}-smoke"})
        overwrite = True  # what an earlier smoke run left means nothing
    with open_console(json_output, level) as console:
        from madtp_cli.engine.building.attention import use_attention
        from madtp_cli.engine.run import finetune, prune

        use_attention(attention, device, loaded.training.precision)

        train = prune if command == "prune" else finetune
        result: PruneResult = train(
            loaded,
            name=loaded.name,
            resume=resume,
            dry_run=dry_run,
            overwrite=overwrite,
            device=device,
            console=console,
            verbosity=level,
            random_init=random_init,
            smoke=smoke,
        )
    emit(result, json_output, console)
    if smoke:
        console.print("smoke run: two samples, one step; the path works, the figures mean nothing")
    elif command == "prune" and result.budget is not None and not result.budget.met:
        reached, target = result.budget.reached_reduction, result.budget.target_reduction
        raise BudgetError(
            f"budget not reached: reduction {reached:.3f}, target {target:.3f}; "
            f"the checkpoint is kept and marked so: {result.checkpoint}"
        )


def _check_alone() -> None:
    """Refuse to be one of several processes, which would write over each other; raises UsageError."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: madtp trains in one process on one device so far; run it "
            "without accelerate launch or torchrun"
        )


def _check_tries(recipe: Recipe, *, random_init: bool, smoke: bool, dry_run: bool, resume: bool) -> None:
    """Refuse options that contradict each other; raises UsageError."""
    if random_init and not smoke:
        raise UsageError("--random-init is for trying a recipe with --smoke; a real run starts from trained weights")
    if random_init and recipe.model.checkpoint is None:
        raise UsageError(f"{recipe.name} trains from scratch anyway; leave --random-init out")
    if random_init and (recipe.model.checkpoint or "").startswith("builtin:"):
        raise UsageError(f"{recipe.model.checkpoint} comes with its weights; leave --random-init out")
    if smoke and (dry_run or resume):
        raise UsageError(f"--smoke and {'--dry-run' if dry_run else '--resume'} exclude each other; give one")


def _check_prunes(recipe: Recipe) -> None:
    """Refuse a recipe that says nothing to `prune`; raises RecipeError."""
    if recipe.budget is None:
        raise RecipeError(
            f"{recipe.where('budget')}: budget is missing, and prune needs one; try --set budget.reduction=0.5, "
            "or madtp finetune to train without one"
        )
    if recipe.pruning.strength is not None:
        raise RecipeError(
            f"{recipe.where('pruning.strength')}: pruning.strength is found by the budget in prune; remove it, "
            "or use madtp finetune to hold it"
        )
