"""What goes into report.html: how the test samples fared, and a few of them to look at."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from random import Random

from madtp_cli.data.batch import Batch
from madtp_cli.engine.building.data import SPLITS, Splits, data_notes, facts
from madtp_cli.engine.evaluation.evaluate import Evaluation
from madtp_cli.engine.evaluation.examples import show_samples
from madtp_cli.engine.evaluation.samples import one_sample
from madtp_cli.engine.tasks.base import Task
from madtp_cli.models.base import PrunedModel
from madtp_cli.models.processor import Processor
from madtp_cli.recipe import Recipe
from madtp_cli.report.html import Story, report
from madtp_cli.report.kept_tokens import Sample
from madtp_cli.report.wording import unplaced
from madtp_cli.results import PruneResult

EXTREMES, EXAMPLES = 2, 3  # samples shown of each kind
# Kept of each kind: those shown, and as many more as may turn out to be among the extremes; of answers that only the
# whole split can judge, enough that some are wrong.
_KEPT: Mapping[bool | None, int] = {True: EXAMPLES + 2 * EXTREMES, False: EXAMPLES + 2 * EXTREMES, None: 48}


@dataclass(frozen=True)
class Kept:
    """One sample of an evaluation: its place in it, what it cost in multiply-adds, itself, and what would be right."""

    row: int
    macs: int
    batch: Batch
    reference: str


class Keeper:
    """Keeps some of the samples that an evaluation reads, which are read once: the extremes in cost, and by the way
    they are answered an even draw of all, the same whenever the evaluation is.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.seen = 0
        self.cheapest: list[Kept] = []
        self.expensive: list[Kept] = []
        self.drawn: dict[bool | None, list[Kept]] = {kind: [] for kind in _KEPT}
        self.fault: Exception | None = None
        """What went wrong, which is no reason to end the evaluation."""
        self._counts: Counter[bool | None] = Counter()
        self._random = Random(0)

    def __call__(self, batch: Batch, macs: Sequence[int], right: Sequence[bool] | None) -> None:
        """Take in a batch of an evaluation."""
        if self.fault is None:
            try:
                self._take(batch, macs, right)
            except Exception as error:
                self.fault = error

    def _take(self, batch: Batch, macs: Sequence[int], right: Sequence[bool] | None) -> None:
        references = self.task.references(batch)
        kept: dict[int, Kept] = {}

        def keep(row: int) -> Kept:
            if row not in kept:
                kept[row] = Kept(self.seen + row, macs[row], one_sample(batch, row), references[row])
            return kept[row]

        order = sorted(range(len(macs)), key=lambda row: macs[row])
        self.cheapest = sorted([*self.cheapest, *map(keep, order[:EXTREMES])], key=lambda one: one.macs)[:EXTREMES]
        costly = [*self.expensive, *map(keep, order[::-1][:EXTREMES])]
        self.expensive = sorted(costly, key=lambda one: -one.macs)[:EXTREMES]
        for row, kind in enumerate([None] * len(macs) if right is None else right):
            place = self._place(kind)
            if place is not None:
                self.drawn[kind][place : place + 1] = [keep(row)]
        self.seen += len(macs)

    def _place(self, kind: bool | None) -> int | None:
        """Draw the place of one more sample of a kind among those kept: each seen so far is as likely to be."""
        self._counts[kind] += 1
        if self._counts[kind] <= _KEPT[kind]:
            return self._counts[kind] - 1
        place = self._random.randrange(self._counts[kind])
        return place if place < _KEPT[kind] else None

    def extremes(self) -> dict[str, list[Kept]]:
        """Return the cheapest and the most expensive samples, none of them twice."""
        taken = {one.row for one in self.cheapest}
        return {
            "The cheapest samples": self.cheapest,
            "The most expensive samples": [one for one in self.expensive if one.row not in taken],
        }

    def examples(self, right: Sequence[bool], without: Iterable[Kept] = ()) -> dict[str, list[Kept]]:
        """Return examples of right and wrong answers, as the whole split has judged, or just examples."""
        taken = {one.row for one in without}
        drawn = sorted((one for kind in self.drawn.values() for one in kind), key=lambda one: one.row)
        rest = [one for one in drawn if one.row not in taken]
        if not right:
            return {"Examples": rest[:EXAMPLES]}
        return {
            "Right answers": [one for one in rest if right[one.row]][:EXAMPLES],
            "Wrong answers": [one for one in rest if not right[one.row]][:EXAMPLES],
        }


def write_report(
    result: PruneResult,
    recipe: Recipe,
    model: PrunedModel,
    processor: Processor,
    splits: Splits,
    tested: Evaluation,
    dense: Evaluation,
    keeper: Keeper,
    log: Path,
) -> str:
    """Return report.html; `tested` is what the model came to on the test split, `dense` the same without pruning.

    Raises whatever went wrong while samples were kept.
    """
    if keeper.fault is not None:
        raise keeper.fault
    extremes = keeper.extremes() if tested.cost.macs != dense.cost.macs else {}
    examples = keeper.examples(tested.right, chain.from_iterable(extremes.values()))
    extreme, example = (
        {title: shown(model, processor, splits.task, tested, kept) for title, kept in groups.items()}
        for groups in (extremes, examples)
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
            reads={site.name: site.reads for site in model.sites},
            extremes=extreme,
            examples=example,
            setting=_setting(recipe, splits),
            notes=[*tested.notes, *data_notes(splits)],
            limits=facts(recipe.data.name).limits,
        )
    )


def shares(tested: Evaluation, dense: Evaluation) -> dict[str, dict[int, list[float]]]:
    """Return the share of tokens that leave every layer, by tower, layer and image or text; towers that prune only."""
    kept: dict[str, dict[int, list[float]]] = {}
    for (tower, layer), left in tested.cost.leaving.items():
        entered = dense.cost.leaving[tower, layer]
        kept.setdefault(tower, {})[layer] = [here / before for here, before in zip(left, entered, strict=True)]
    return {tower: layers for tower, layers in kept.items() if min(map(min, layers.values())) < 1}


def shown(
    model: PrunedModel, processor: Processor, task: Task, tested: Evaluation, kept: Sequence[Kept]
) -> list[Sample]:
    """Run samples again, each alone, and add what only the whole split could tell."""
    samples = show_samples(model, task, [one.batch for one in kept], processor, labelled=False)
    done = []
    for one, sample in zip(kept, samples, strict=True):
        # What a gallery answers is the name of an image; what a sample answers alone says more of all else.
        said = tested.predictions[one.row] if task.name == "retrieval" else sample.answer
        right = tested.right[one.row] if tested.right else None
        done.append(replace(sample, answer=said, reference=one.reference, right=right))
    return done


def _setting(recipe: Recipe, splits: Splits) -> Mapping[str, str]:
    """Say in words what the run's settings were."""
    return {
        "made from": unplaced(recipe.model.checkpoint) if recipe.model.checkpoint else "nothing, trained from scratch",
        "recipe": recipe.name,
        "data": ", ".join(
            [recipe.data.name, *(f"{len(getattr(splits, name)):,} {name}" for name in SPLITS if name != "train")]
        ),
        "batch size": f"{recipe.training.batch_size} in training",
    }
