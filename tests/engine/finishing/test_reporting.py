"""What goes into a report: which samples are kept and shown, what is known of them, and shares of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from madtp_cli.data.shapes import ShapesPairs, accuracy
from madtp_cli.data.shapes_single import ShapesRetrieval
from madtp_cli.engine.evaluation.evaluate import Evaluation, evaluate
from madtp_cli.engine.evaluation.meter import CostMeter
from madtp_cli.engine.finishing.reporting import EXAMPLES, EXTREMES, Keeper, Kept, shares, shown
from madtp_cli.engine.tasks.nlvr2 import Nlvr2
from madtp_cli.engine.tasks.retrieval import Retrieval
from tests.engine.tasks.tiny_shapes import DENSE, PRUNED, make_model, processor

DATA = ShapesPairs("test", 240)
TASK = Nlvr2(accuracy)


def kept(macs: Sequence[int], right: Sequence[bool] | None, size: int = 5) -> Keeper:
    """Keep samples of what costs so much and is right or not, in batches."""
    keeper = Keeper(TASK)
    for start in range(0, len(macs), size):
        stop = min(start + size, len(macs))
        keeper(DATA.batch(start, stop - start), macs[start:stop], None if right is None else right[start:stop])
    assert keeper.fault is None
    return keeper


def rows(groups: dict[str, list[Kept]]) -> dict[str, list[int]]:
    return {title: [one.row for one in group] for title, group in groups.items()}


def test_the_cheapest_and_the_most_expensive_are_kept() -> None:
    """Of costs 12, 11, ..., 1 in three batches, the last two and the first two."""
    extremes = kept(range(12, 0, -1), None).extremes()
    assert rows(extremes) == {"The cheapest samples": [11, 10], "The most expensive samples": [0, 1]}
    assert [one.macs for group in extremes.values() for one in group] == [1, 2, 12, 11]


def test_what_is_kept_is_the_sample_itself() -> None:
    """As if it had been read alone, with what was right of it."""
    for one in kept(range(12), [True] * 12).examples([True] * 12)["Right answers"]:
        alone = DATA.batch(one.row, 1)
        assert one.batch.images.equal(alone.images)
        assert one.batch.text.equal(alone.text)
        assert one.batch.image_index.tolist() == [[0, 1]]
        assert (one.batch.ids, one.reference) == (alone.ids, TASK.references(alone)[0])


def test_right_and_wrong_answers_are_shown_but_no_extremes_again() -> None:
    """Of twelve, every fourth is wrong: 3, 7 and 11, of which the last is the cheapest."""
    right = [row % 4 != 3 for row in range(12)]
    keeper = kept(range(12, 0, -1), right)
    extremes = keeper.extremes()
    examples = rows(keeper.examples(right, [one for group in extremes.values() for one in group]))
    assert examples == {"Right answers": [2, 4, 5], "Wrong answers": [3, 7]}


def test_wrong_answers_are_found_however_rare_they_are() -> None:
    """Two of 240."""
    right = [row not in (77, 191) for row in range(240)]
    keeper = kept([5] * 240, right, size=60)
    examples = rows(keeper.examples(right))
    assert examples["Wrong answers"] == [77, 191]
    assert len(examples["Right answers"]) == EXAMPLES
    assert sum(map(len, keeper.drawn.values())) <= 2 * (EXAMPLES + 2 * EXTREMES)


def test_what_only_the_whole_split_can_judge_is_judged_then() -> None:
    """A gallery says in the end who was wrong; a caption is never right or wrong."""
    right = [row % 2 == 0 for row in range(20)]
    keeper = kept([5] * 20, None)
    assert rows(keeper.examples(right)) == {"Right answers": [0, 2, 4], "Wrong answers": [1, 3, 5]}
    assert rows(keeper.examples(())) == {"Examples": [0, 1, 2]}


def test_every_sample_is_as_likely_to_be_drawn() -> None:
    """Those kept of 240 come from the last half as often as from the first: the draw is 48 of 240, and repeats."""
    one, other = kept([5] * 240, None, size=40), kept([5] * 240, None, size=7)
    drawn = [each.row for each in one.drawn[None]]
    assert drawn == [each.row for each in other.drawn[None]]
    assert len(set(drawn)) == 48
    assert 12 <= sum(row >= 120 for row in drawn) <= 36


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_samples_are_shown_once(count: int) -> None:
    """As of a smoke run."""
    keeper = kept(range(count), [True] * count)
    extremes = keeper.extremes()
    taken = [one for group in extremes.values() for one in group]
    groups = {**extremes, **keeper.examples([True] * count, taken)}
    assert sorted(one.row for group in groups.values() for one in group) == list(range(count))


def test_a_fault_ends_the_keeping_and_not_the_evaluation() -> None:
    class Mute(Nlvr2):
        def references(self, batch: Any) -> list[str]:
            raise RuntimeError("no words")

    task = Mute(accuracy)
    keeper = Keeper(task)
    found = evaluate(make_model("blip", "nlvr2"), task, ShapesPairs("test", 8), batch_size=4, keep=keeper)
    assert found.samples == 8
    assert str(keeper.fault) == "no words"


def evaluation(macs: Sequence[int]) -> Evaluation:
    return Evaluation({}, CostMeter(list(macs), [100] * len(macs)))


def test_shares_are_of_what_the_dense_model_keeps() -> None:
    """By hand, sample by sample; a tower in which every token stays is not among them."""
    tested, dense = evaluation([1, 1]), evaluation([2, 2])
    tested.cost.leaving.update({("vision", 0): [10, 5], ("vision", 1): [5, 2], ("text", 0): [7, 9]})
    dense.cost.leaving.update({("vision", 0): [10, 10], ("vision", 1): [10, 10], ("text", 0): [7, 9]})
    assert shares(tested, dense) == {"vision": {0: [1.0, 0.5], 1: [0.5, 0.2]}}


def test_what_is_shown_is_what_was_evaluated() -> None:
    """Run alone, a kept sample costs what it cost in its batch, and is answered as it was."""
    model, task, data = make_model("blip", "nlvr2", spec=PRUNED), TASK, ShapesPairs("test", 24)
    keeper = Keeper(task)
    tested = evaluate(model, task, data, batch_size=7, final=True, keep=keeper)
    chosen = [one for group in keeper.examples(tested.right).values() for one in group]
    assert len({tested.right[one.row] for one in chosen}) == 2
    for one, sample in zip(chosen, shown(model, processor("blip", "nlvr2"), task, tested, chosen), strict=True):
        assert sample.id == f"shapes/test/{one.row}"
        assert sample.gmacs == tested.cost.macs[one.row] / 1e9
        assert sample.answer == str(tested.predictions[one.row]).lower()
        assert sample.right is tested.right[one.row] is (sample.answer == sample.reference)


def test_what_a_gallery_answers_is_the_name_of_an_image() -> None:
    """Alone a text would find its only image; among all it found what the evaluation says."""
    model, data = make_model("clip", "retrieval", spec=DENSE), ShapesRetrieval("test", 9)
    task = Retrieval(lambda *scores: {})
    keeper = Keeper(task)
    tested = evaluate(model, task, data, batch_size=4, final=True, keep=keeper)
    samples = shown(model, processor("clip", "retrieval"), task, tested, keeper.drawn[None])
    assert [sample.answer for sample in samples] == list(tested.predictions)
    assert [sample.reference for sample in samples] == [sample.id for sample in samples]
    assert [sample.right for sample in samples] == [sample.answer == sample.id for sample in samples]
