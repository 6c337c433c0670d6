"""The README.md of a checkpoint folder: what the model is, what it can do, what it costs, and its limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePath

from madtp_cli.report import wording
from madtp_cli.report.comparison import Row, budget_line, by_tower, compare, headline, is_pruned, pruned_name
from madtp_cli.results import PruneResult

_CHECKPOINTS_OF_OURS = "builtin:"
_PAPER = "https://arxiv.org/abs/2403.02991"
_COST = (
    "`gmacs` are 1e9 multiply-adds of inference for one sample (what papers of this field call GFLOPs): the mean over "
    "the samples of the test split, the cost of choosing tokens included."
)


def model_card(
    result: PruneResult,
    *,
    base: str,
    recipe_name: str,
    data: str,
    seed: int,
    seconds: float,
    hardware: str,
    limits: Sequence[str],
    license: str | None = None,
) -> str:
    """Return the model card of a checkpoint as Markdown with a Hugging Face header.

    `base` names the checkpoint it was made from, empty for none. `license` is an SPDX name in lower case; None means
    apache-2.0 for what was made from a built-in checkpoint, and is left out otherwise: the base model's then applies.
    """
    if license is None and base.startswith(_CHECKPOINTS_OF_OURS):
        license = "apache-2.0"
    name = PurePath(result.checkpoint).name if result.checkpoint else recipe_name
    parts = [
        *_front_matter(result, license),
        f"# {name}",
        _summary(result),
        "## Load it",
        f'```python\nimport madtp_cli\n\nmodel, processor = madtp_cli.load("{name}")\n```',
        f"Measure it again: `madtp evaluate {name}`.",
        "## What it can do and what it costs",
        *_figures(result, hardware),
        "## How it was made",
        "\n".join(_origin(result, base, recipe_name, data, seed, seconds, hardware)),
        "## Limits",
        "\n".join(f"- {limit}" for limit in limits) or "- None stated.",
    ]
    if license is None and base:
        parts += ["## Licence", f"The licence of `{base}` applies."]
    return "\n\n".join(parts) + "\n"


def _front_matter(result: PruneResult, license: str | None) -> Iterator[str]:
    lines = ["---"]
    if license is not None:
        lines.append(f"license: {license}")
    lines += [
        "language: en",
        "library_name: madtp",
        "metrics:",
        f"- {_metric(result)}",
        "tags:",
        "- madtp",
        "- vision-language",
    ]
    if is_pruned(result):
        lines.append("- token-pruning")
    yield "\n".join([*lines, "---"])


def _metric(result: PruneResult) -> str:
    """Name the main metric as the Hugging Face hub does."""
    side = result.pruned or result.dense
    names = set(side.metrics) if side else set()
    return "recall" if "tr@1" in names else "cider" if any(name.startswith("cider") for name in names) else "accuracy"


def _summary(result: PruneResult) -> str:
    if not is_pruned(result):
        what = "A dense vision-language transformer: nothing of it is pruned."
    else:
        what = (
            "A vision-language transformer that drops tokens of its inputs as it reads them, made with madtp, "
            f"a toolkit around [multimodal alignment-guided dynamic token pruning]({_PAPER})."
        )
    verdict = [headline(result) or ""]
    if result.budget is not None:
        line = budget_line(result.budget)
        verdict.insert(0, line if result.budget.met else f"**{line}**")
    return "\n\n".join(part for part in (what, " ".join(verdict).strip()) if part)


def _figures(result: PruneResult, hardware: str) -> Iterator[str]:
    yield "\n".join(_table(compare(result.dense, result.pruned), pruned_name(result)))
    notes = ["Metrics are those of the test split, read once, after training.", _COST]
    if any(side is not None and side.latency_ms for side in (result.dense, result.pruned)):
        taken = ", ".join(part for part in (hardware, result.device, result.dtype) if part)
        notes.append(f"Latency is the median (p50) time of one batch, taken with: {taken}.")
    yield " ".join(notes)
    if result.layers:
        yield "Mean tokens kept after each layer:"
        yield "\n".join(
            f"- {tower}: {', '.join(f'{layer.tokens_mean:.1f}' for layer in layers)}"
            for tower, layers in by_tower(result.layers).items()
        )


def _table(rows: Sequence[Row], second: str) -> Iterator[str]:
    both = all(any(getattr(row, side) for row in rows) for side in ("dense", "pruned"))
    if both:
        yield f"| | dense | {second} | change |"
        yield "|---|---:|---:|---:|"
    else:
        yield "| | value |"
        yield "|---|---:|"
    for row in rows:
        label = f"{row.parent}, {row.label}" if row.inner else row.label
        values = [row.dense or "-", row.pruned or "-", row.change] if both else [row.pruned or row.dense]
        yield f"| {label} | {' | '.join(values)} |"


def _origin(
    result: PruneResult, base: str, recipe_name: str, data: str, seed: int, seconds: float, hardware: str
) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    yield f"- Made from: {f'`{base}`' if base else 'nothing, trained from scratch'}"
    yield f"- Command: `madtp {result.command}`, recipe `{recipe_name}` (spelled out in `recipe.yaml` beside this file)"
    yield f"- Data: {data}"
    yield f"- Seed: {seed}"
    yield f"- Time: {wording.duration(seconds)} on {hardware}"
    yield f"- Versions: {versions}"
