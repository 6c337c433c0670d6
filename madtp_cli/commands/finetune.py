"""`madtp finetune`."""

from __future__ import annotations

from madtp_cli.commands import options, training


def finetune(
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
    """Train a model at fixed pruning, dense, or from scratch.

    Nothing moves the pruning strength: it is the recipe's, or the checkpoint's own.
    """
    training.run(
        "finetune",
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
