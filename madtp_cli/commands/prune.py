"""`madtp prune`."""

from __future__ import annotations

from madtp_cli.commands import options, training


def prune(
    recipe: options.RecipeFile,
    checkpoint: options.Checkpoint = None,
    output: options.Output = None,
    settings: options.Settings = None,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    smoke: options.Smoke = False,
    random_init: options.RandomInit = False,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    precision: options.Precision = None,
    attention: options.Attention = "auto",
    seed: options.Seed = None,
    json_output: options.Json = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Fine-tune and prune a model until it meets a cost budget.

    Writes a checkpoint folder that loads in one line, and compares it with the dense model on the test split.
    Ends with exit code 5 if the budget was not reached; the checkpoint is kept then, and marked so.
    """
    training.run(
        "prune",
        recipe,
        checkpoint=checkpoint,
        output=output,
        settings=settings,
        resume=resume,
        dry_run=dry_run,
        overwrite=overwrite,
        device=device,
        precision=precision,
        attention=attention,
        seed=seed,
        json_output=json_output,
        verbose=verbose,
        quiet=quiet,
        random_init=random_init,
        smoke=smoke,
    )
