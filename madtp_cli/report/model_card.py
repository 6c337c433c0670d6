"""The README.md of a checkpoint folder: what the model is, what it can do, what it costs, and its limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import yaml

from madtp_cli.models.fetch import hub_id
from madtp_cli.models.spec import PruningSpec
from madtp_cli.report import wording
from madtp_cli.report.comparison import Row, budget_line, busy, by_tower, compare, headline, is_pruned, pruned_name
from madtp_cli.results import PruneResult

_CHECKPOINTS_OF_OURS = "builtin:"
_PAPER = "https://arxiv.org/abs/2403.02991"
_COST = (
    "`gmacs` are 1e9 multiply-adds of inference for one sample (what papers of this field call GFLOPs): the mean over "
    "the samples of the test split, the cost of choosing tokens included."
)
_METRIC_IDS = {"cider_javafree": "cider", "bleu4_javafree": "bleu", "bleu4": "bleu", "mean": "recall"}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a model was made of, and how: what a result does not know.

    `kind` is what the hub calls the task, and `pipeline` its pipeline for it, where it has one.
    `base` names the checkpoint it started from, empty for none; `source` is the hub id or path of custom data.
    `license` is an SPDX name in lower case; None means apache-2.0 for what came from a built-in checkpoint, and
    otherwise that the base model's applies. `report` says whether a report.html lies beside the card.
    """

    base: str
    recipe_name: str
    family: str
    task: str
    data: str
    spec: PruningSpec
    kind: str
    pipeline: str | None = None
    source: str | None = None
    limits: Sequence[str] = ()
    license: str | None = None
    report: bool = False

    @property
    def terms(self) -> str | None:
        """The licence, where it is known."""
        return "apache-2.0" if self.license is None and self.base.startswith(_CHECKPOINTS_OF_OURS) else self.license

    @property
    def base_name(self) -> str:
        """The base checkpoint as others can know it."""
        return wording.unplaced(self.base)


def model_card(result: PruneResult, origin: Origin) -> str:
    """Return the model card of a checkpoint as Markdown, with a header that the Hugging Face hub reads."""
    name = PurePath(result.checkpoint).name if result.checkpoint else origin.recipe_name
    parts = [
        f"---\n{yaml.safe_dump(front_matter(result, origin, name), sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        _summary(result),
        "The whole course of it, with pictures of which tokens are kept: [report.html](report.html)." * origin.report,
        "## Load it",
        "\n".join(_loading(name)),
        "## What it can do and what it costs",
        *_figures(result),
        "## How it was made",
        "\n".join(_making(result, origin)),
        "## Reproduce it",
        "\n".join(_again(result, name)),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(result, origin)),
    ]
    if origin.terms is None and origin.base:
        parts += ["## Licence", f"The licence of what it was made from (`{origin.base_name}`) applies."]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(result: PruneResult, origin: Origin, name: str) -> dict[str, Any]:
    """Return what the hub reads of a card; a base model and data are named where they are the hub's."""
    base, data = hub_id(origin.base), hub_id(origin.source or "")
    pruned = is_pruned(result)
    header = {
        "license": origin.terms,
        "language": "en",
        "library_name": "madtp",
        "pipeline_tag": origin.pipeline,
        "base_model": base and base[0],
        "base_model_relation": base and "finetune",
        "datasets": [data[0]] if data else None,
        "metrics": list(dict.fromkeys(metric["type"] for metric in _measured(result))),
        "tags": ["madtp", "vision-language", *(["token-pruning"] if pruned else []), origin.family, origin.task],
        "model-index": None if result.smoke else _index(result, origin, name),
    }
    return {key: value for key, value in header.items() if value is not None}


def _index(result: PruneResult, origin: Origin, name: str) -> list[dict[str, Any]] | None:
    """Return the hub's record of results: metrics of the test split, that of every family of samples left out."""
    if not (metrics := _measured(result)):
        return None
    source = hub_id(origin.source or "")
    data = {"type": source[0] if source else origin.data, "name": origin.data, "split": "test"}
    return [{"name": name, "results": [{"task": {"type": origin.kind}, "dataset": data, "metrics": metrics}]}]


def _measured(result: PruneResult) -> list[dict[str, Any]]:
    side = result.pruned or result.dense
    metrics = {name: value for name, value in side.metrics.items() if "/" not in name} if side else {}
    return [
        {"type": _metric_id(name), "value": round(value, 4), "name": wording.metric_name(name)}
        for name, value in metrics.items()
    ]


def _metric_id(name: str) -> str:
    """Name a metric as the hub does."""
    return "recall" if "@" in name else _METRIC_IDS.get(name, name)


def _summary(result: PruneResult) -> str:
    if not is_pruned(result):
        what = "A dense vision-language transformer: nothing of it is pruned."
    else:
        what = (
            "A vision-language transformer that drops tokens of its inputs as it reads them, made with madtp, "
            f"a toolkit around [multimodal alignment-guided dynamic token pruning]({_PAPER})."
        )
    if result.smoke:
        return f"{what}\n\n**A smoke run: one step on two samples. No figure here means anything.**"
    verdict = [headline(result) or ""]
    if result.budget is not None:
        line = budget_line(result.budget)
        verdict.insert(0, line if result.budget.met else f"**{line}**")
    return "\n\n".join(part for part in (what, " ".join(verdict).strip()) if part)


def _loading(name: str) -> Iterator[str]:
    yield "```python"
    yield "import madtp_cli\n"
    yield f'model, processor = madtp_cli.load("{name}")  # the path of this folder, or its id on the Hugging Face hub'
    yield "```"


def _figures(result: PruneResult) -> Iterator[str]:
    yield "\n".join(_table(compare(result.dense, result.pruned), pruned_name(result)))
    count = f"{result.samples:,} samples of the " if result.samples else ""
    notes = [f"Metrics are those of the {count}test split, read once, after training.", _COST]
    if broken := sum(map(len, result.broken_images.values())):
        notes.insert(1, f"{broken:,} images were missing or unreadable; their samples were left out.")
    if any(side is not None and side.latency_ms for side in (result.dense, result.pruned)):
        notes.append(f"Latency is the median (p50) time of one batch, taken with: {_taken_with(result)}.")
        notes += [warning] if (warning := busy(result.dense)) else []
    yield " ".join(notes)
    if result.layers:
        yield "Mean tokens kept after each layer:"
        yield "\n".join(
            f"- {tower}: {', '.join(f'{layer.tokens_mean:.1f}' for layer in layers)}"
            for tower, layers in by_tower(result.layers).items()
        )


def _taken_with(result: PruneResult) -> str:
    """Say on what, by how many threads, in what precision and with what attention the figures were taken."""
    attention = result.attention_backend and f"attention backend {result.attention_backend}"
    threads = result.device == "cpu" and wording.threads(result.threads)
    parts = (result.processor, threads, result.device, result.dtype, attention)
    return ", ".join(part for part in parts if part)


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


def _making(result: PruneResult, origin: Origin) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    yield f"- Made from: {f'`{origin.base_name}`' if origin.base else 'nothing, trained from scratch'}"
    yield f"- Pruning: {_pruning(origin.spec)}"
    yield f"- Command: `madtp {result.command}`, recipe `{origin.recipe_name}` (spelled out in `recipe.yaml`)"
    yield f"- Data: {origin.data}{f' from `{wording.unplaced(origin.source)}`' if origin.source else ''}"
    yield f"- Seed: {result.seed}"
    trained = f", trained in {result.training_precision}" if result.training_precision else ""
    yield f"- Time: {wording.duration(result.seconds)} on {result.processor or result.device}{trained}"
    yield f"- Versions: {versions}"


def _pruning(spec: PruningSpec) -> str:
    if spec.method == "none":
        return "none"
    how = f"{spec.variant}, {spec.tokens}, " if spec.method == "madtp" else ""
    layers = ", ".join(f"{tower} {_runs(chosen)}" for tower, chosen in spec.layers.items() if chosen)
    return f"{spec.method} ({how}strength {spec.strength:.4f}) in layers: {layers or 'none'}"


def _runs(numbers: Sequence[int]) -> str:
    """Write numbers in order with runs drawn together: `0-2 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _again(result: PruneResult, name: str) -> Iterator[str]:
    yield "```"
    yield f"madtp evaluate {name}"
    yield f"madtp {result.command} --recipe {name}/recipe.yaml --output {name}-again"
    yield "```\n"
    yield (
        "The first measures this model again on the test split, the second trains it again; on another processor or "
        "number of threads sums round otherwise, and weights differ a little."
    )


def _limits(result: PruneResult, origin: Origin) -> Iterator[str]:
    yield from origin.limits
    if is_pruned(result):
        adaptive = origin.spec.method == "madtp" and origin.spec.tokens == "adaptive"
        follows = "it keeps other numbers of tokens" if adaptive else "texts have other lengths"
        yield f"Cost, accuracy and latency are those of these data: on others {follows}, so measure there."
        yield "Pruned further it cannot be: a smaller one is made from the dense checkpoint."
    if result.budget is not None and not result.budget.met and not result.smoke:
        yield "The budget was missed: it costs more, or prunes more, than was asked."
