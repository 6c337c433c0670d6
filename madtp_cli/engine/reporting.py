"""What goes into report.html: how the test samples fared, and a few of them to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from madtp_cli.data.batch import Batch, Split
from madtp_cli.engine.build_data import SPLITS, Splits, data_notes, facts
from madtp_cli.engine.evaluate import Evaluation
from madtp_cli.engine.showcase import show_samples
from madtp_cli.engine.tasks.base import Task
from madtp_cli.models.base import PrunedModel
from madtp_cli.models.processor import Processor
from madtp_cli.recipe import Recipe
from madtp_cli.report.html import Story, report
from madtp_cli.report.survivors import Sample, spread
from madtp_cli.results import PruneResult

EXTREMES, EXAMPLES = 2, 3  # samples shown of each kind


def write_report(
    result: PruneResult,
    recipe: Recipe,
    model: PrunedModel,
    processor: Processor,
    splits: Splits,
    tested: Evaluation,
    dense: Evaluation,
    log: Path,
) -> str:
    """Return report.html; `tested` is what the model came to on the test split, `dense` the same without pruning."""
    extremes, examples = (
        {title: shown(model, processor, splits.task, splits.test, tested, rows) for title, rows in groups.items()}
        for groups in choose(tested, pruned=tested.cost.macs != dense.cost.macs)
    )
    return report(
        Story(
            result=result,
            recipe=recipe.to_yaml(),
            log=[json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()],
            score=splits.task.score,
            gmacs=[macs / 1e9 for macs in tested.cost.macs],
            dense_gmacs=[macs / 1e9 for macs in dense.cost.macs],
            kept=shares(tested, dense),
            extremes=extremes,
            examples=examples,
            setting=_setting(recipe, splits),
            notes=[*tested.notes, *data_notes(splits)],
            limits=facts(recipe.data.name).limits,
        )
    )


Groups = dict[str, list[int]]


def choose(tested: Evaluation, *, pruned: bool) -> tuple[Groups, Groups]:
    """Choose samples to show, by their place in an evaluation: the extremes in cost, and examples of answers.

    None is shown twice.
    """
    order = sorted(range(tested.samples), key=lambda row: tested.cost.macs[row])
    extremes: Groups = {}
    if pruned:
        extremes["The cheapest samples"] = order[:EXTREMES]
        extremes["The dearest samples"] = order[max(EXTREMES, len(order) - EXTREMES) :][::-1]
    taken = {row for rows in extremes.values() for row in rows}
    rest = [row for row in range(tested.samples) if row not in taken]
    if not tested.right:
        return extremes, {"Examples": spread(rest, EXAMPLES)}
    return extremes, {
        "Right answers": spread([row for row in rest if tested.right[row]], EXAMPLES),
        "Wrong answers": spread([row for row in rest if not tested.right[row]], EXAMPLES),
    }


def shares(tested: Evaluation, dense: Evaluation) -> dict[str, dict[int, list[float]]]:
    """Return the share of tokens that leave every layer, by tower, layer and image or text; towers that prune only."""
    kept: dict[str, dict[int, list[float]]] = {}
    for (tower, layer), left in tested.cost.leaving.items():
        entered = dense.cost.leaving[tower, layer]
        kept.setdefault(tower, {})[layer] = [here / before for here, before in zip(left, entered, strict=True)]
    return {tower: layers for tower, layers in kept.items() if min(map(min, layers.values())) < 1}


def shown(
    model: PrunedModel,
    processor: Processor,
    task: Task,
    data: Split[Any],
    tested: Evaluation,
    rows: Sequence[int],
) -> list[Sample]:
    """Run the samples of some places again, each alone, and add what only the whole split could tell."""
    batches = [_batch_of(data, tested.ids, row) for row in rows]
    samples = show_samples(model, task, batches, processor)
    done = []
    for row, sample in zip(rows, samples, strict=True):
        # What a gallery answers is the name of an image; what a sample answers alone says more of all else.
        said = tested.predictions[row] if task.name == "retrieval" else sample.answer
        done.append(replace(sample, answer=said, right=tested.right[row] if tested.right else None))
    return done


def _batch_of(data: Split[Any], ids: Sequence[str], row: int) -> Batch:
    """Read one sample again; those before it that were left out for a broken image have moved it on."""
    for index in range(row, len(data) - len(ids) + row + 1):
        batch: Batch = data.batch(index, 1)
        if batch.ids == (ids[row],):
            return batch
    raise LookupError(f"sample {ids[row]} is not found again")


def _setting(recipe: Recipe, splits: Splits) -> Mapping[str, str]:
    """Say in words what the run's settings were."""
    return {
        "made from": recipe.model.checkpoint or "nothing, trained from scratch",
        "recipe": recipe.name,
        "data": ", ".join(
            [recipe.data.name, *(f"{len(getattr(splits, name)):,} {name}" for name in SPLITS if name != "train")]
        ),
        "batch size": f"{recipe.training.batch_size} in training",
    }
