"""Print how much of a reduction in multiply-adds arrives as time: python -m benchmarks.speed.

    python -m benchmarks.speed --checkpoint runs/shapes_nlvr_p80
    python -m benchmarks.speed --strength 0.1 0.2 --method random

Dense and pruned run in turn on the same real samples, at batch 1 and 32. A dense checkpoint is pruned by a method with
untrained alignment tokens, which costs the same as with trained ones.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Literal

import torch
from rich.console import Console

from madtp_cli import results
from madtp_cli.engine.build_data import SHAPES_SPLITS
from madtp_cli.engine.latency import BATCH_SIZES, SAMPLES, time_models
from madtp_cli.engine.profile import analytic_costs, at_strength
from madtp_cli.engine.samples import fit_samples, spread_samples
from madtp_cli.engine.tasks.base import Normalisation
from madtp_cli.models.checkpoints import Checkpoint, open_checkpoint
from madtp_cli.models.spec import PruningSpec
from madtp_cli.report.profile_tables import latency_table

# Reductions of about 0.5 and 0.8 on the built-in model if every sample keeps the same share per layer.
STRENGTHS = (0.12, 0.25)


def main() -> None:
    """Time a checkpoint at several strengths and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="builtin:shapes_nlvr")
    parser.add_argument("--strength", type=float, nargs="+", help="the checkpoint's own by default")
    parser.add_argument("--method", choices=("madtp", "random"), default="madtp", help="for a dense checkpoint")
    parser.add_argument(
        "--tokens", choices=("adaptive", "scheduled"), default="scheduled", help="for a dense checkpoint"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="time per model and batch size")
    options = parser.parse_args()

    checkpoint = open_checkpoint(options.checkpoint)
    spec = pruning_of(checkpoint, options.method, options.tokens)
    strengths = options.strength or ([checkpoint.spec.strength] if checkpoint.spec.strength else STRENGTHS)
    torch.manual_seed(0)
    model = checkpoint.build(spec)
    samples = fit_samples(
        spread_samples(SHAPES_SPLITS[checkpoint.task]("validation", 2000), SAMPLES), model, Normalisation()
    )
    costs = {strength: analytic_costs(at_strength(model, strength), samples) for strength in strengths}
    candidates = {str(strength): (at_strength(model, strength), samples) for strength in (0.0, *strengths)}
    timed = time_models(candidates, batch_sizes=BATCH_SIZES, seconds=options.seconds)

    console = Console(highlight=False)
    console.print(f"{options.checkpoint}: {spec.method} {spec.tokens}, {torch.get_num_threads()} CPU threads, fp32")
    for strength in strengths:
        result = results.ProfileResult(
            command="benchmark",
            checkpoint=options.checkpoint,
            gmacs=costs[strength].gmacs(),
            params=sum(parameter.numel() for parameter in model.parameters()),
            latency_ms={str(size): found[str(strength)].p50_ms for size, found in timed.items()},
            latency_p90_ms={str(size): found[str(strength)].p90_ms for size, found in timed.items()},
            dense_latency_ms={str(size): found["0.0"].p50_ms for size, found in timed.items()},
        )
        console.print(f"\nstrength {strength:.4g}, reduction {result.gmacs.reduction:.3f}")
        console.print(latency_table(result))


def pruning_of(checkpoint: Checkpoint, method: str, tokens: Literal["adaptive", "scheduled"]) -> PruningSpec:
    """Return how a checkpoint prunes; a dense one gets the method in all of its vision layers."""
    if checkpoint.spec.method != "none":
        return checkpoint.spec
    layers = {"vision": tuple(range(checkpoint.towers["vision"][0]))}
    spec = PruningSpec(method=method, tokens=tokens, strength=0.5, layers=layers)
    return replace(spec, alignment_tokens=16, alignment_dim=96) if method == "madtp" else spec


if __name__ == "__main__":
    main()
