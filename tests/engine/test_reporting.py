"""What goes into a report: which samples are chosen, what is known of them, and shares of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from madtp_cli.data.shapes import ShapesPairs, accuracy
from madtp_cli.data.shapes_single import ShapesRetrieval
from madtp_cli.engine.evaluate import Evaluation, evaluate
from madtp_cli.engine.reporting import EXAMPLES, EXTREMES, choose, shares, shown
from madtp_cli.engine.tally import Tally
from madtp_cli.engine.tasks.nlvr2 import Nlvr2
from madtp_cli.engine.tasks.retrieval import Retrieval
from tests.engine.tasks.tiny_shapes import DENSE, PRUNED, make_model, processor


def evaluation(macs: Sequence[int], right: Sequence[bool] = ()) -> Evaluation:
    return Evaluation(
        {}, Tally(list(macs), [100] * len(macs)), ids=[f"s{row}" for row in range(len(macs))], right=right
    )


def test_the_cheapest_the_dearest_the_right_and_the_wrong_are_shown() -> None:
    """Costs 12, 11, ..., 1: the last two are the cheapest; of six right and two wrong in between, three and two."""
    right = [row % 4 != 3 for row in range(12)]
    extremes, examples = choose(evaluation(range(12, 0, -1), right), pruned=True)
    assert extremes == {"The cheapest samples": [11, 10], "The dearest samples": [0, 1]}
    assert examples == {"Right answers": [2, 5, 9], "Wrong answers": [3, 7]}


def test_nothing_is_dear_where_nothing_is_pruned() -> None:
    extremes, examples = choose(evaluation([5] * 9, [True] * 9), pruned=False)
    assert extremes == {}
    assert examples == {"Right answers": [0, 4, 8], "Wrong answers": []}


def test_without_right_answers_there_are_examples() -> None:
    """A caption is neither right nor wrong."""
    _, examples = choose(evaluation(range(9)), pruned=True)
    assert examples == {"Examples": [2, 4, 6]}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_samples_are_shown_once(count: int) -> None:
    """As of a smoke run."""
    extremes, examples = choose(evaluation(range(count), [True] * count), pruned=True)
    rows = [row for groups in (extremes, examples) for chosen in groups.values() for row in chosen]
    assert sorted(rows) == list(range(count)) if count <= 2 * EXTREMES + EXAMPLES else len(set(rows)) == len(rows)


def test_shares_are_of_what_the_dense_model_keeps() -> None:
    """By hand, sample by sample; a tower in which every token stays is not among them."""
    tested, dense = evaluation([1, 1]), evaluation([2, 2])
    tested.cost.leaving.update({("vision", 0): [10, 5], ("vision", 1): [5, 2], ("text", 0): [7, 9]})
    dense.cost.leaving.update({("vision", 0): [10, 10], ("vision", 1): [10, 10], ("text", 0): [7, 9]})
    assert shares(tested, dense) == {"vision": {0: [1.0, 0.5], 1: [0.5, 0.2]}}


class Lossy:
    """A split whose samples 0 and 3 have broken images and are left out."""

    def __init__(self) -> None:
        self.whole = ShapesPairs("test", 24)

    def __len__(self) -> int:
        return 24

    def batch(self, start: int, size: int) -> Any:
        """Return what is left of some samples."""
        if size == 1 and start in (0, 3):
            return replace(self.whole.batch(start, 1), text_lengths=[], ids=())
        return self.whole.batch(start, size)


def test_samples_are_found_again_behind_those_that_were_left_out() -> None:
    """The third of what was evaluated is sample 4."""
    model, task, data = make_model("blip", "nlvr2", spec=PRUNED), Nlvr2(accuracy), Lossy()
    ids = [f"shapes/test/{row}" for row in range(24) if row not in (0, 3)]
    tested = Evaluation({}, Tally([0] * 22, [0] * 22), ids=ids, right=[row == 2 for row in range(22)])
    first, third = shown(model, processor("blip", "nlvr2"), task, data, tested, [0, 2])
    assert (first.id, first.right) == ("shapes/test/1", False)
    assert (third.id, third.right) == ("shapes/test/4", True)
    with pytest.raises(LookupError, match="sample gone is not found again"):
        shown(model, processor("blip", "nlvr2"), task, data, replace(tested, ids=["gone", *ids[1:]]), [0])


def test_what_a_gallery_answers_is_the_name_of_an_image() -> None:
    """Alone a text would find its only image; among all it found what the evaluation says."""
    model, task, data = (
        make_model("clip", "retrieval", spec=DENSE),
        Retrieval(lambda *_: {}),
        ShapesRetrieval("test", 9),
    )
    tested = evaluate(model, task, data, batch_size=4, final=True)
    samples = shown(model, processor("clip", "retrieval"), task, data, tested, range(9))
    assert [sample.answer for sample in samples] == list(tested.predictions)
    assert [sample.reference for sample in samples] == list(tested.ids)
    assert [sample.right for sample in samples] == [sample.answer == sample.id for sample in samples]
