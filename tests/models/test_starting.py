"""Starting a task from another's checkpoint: what goes along, what starts anew, and what cannot be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from madtp_cli.errors import SourceError
from madtp_cli.models.blip.layouts import TIED
from madtp_cli.models.blip.starting import HEADS, STARTS
from madtp_cli.models.layouts import PRETRAINED, to_hf
from madtp_cli.models.starting import start
from tests.models.released_states import released


def _state(kind: str) -> dict[str, Tensor]:
    return to_hf(released(kind, madtp=False))[0]


@pytest.mark.parametrize(("own", "task"), [(own, task) for own, tasks in STARTS.items() for task in tasks])
def test_what_starts_is_a_whole_model(own: str, task: str) -> None:
    """With the fresh keys, the keys are those of a real checkpoint for the task; what goes along is untouched."""
    state = _state(own)
    result = start(state, "blip", own, task, {"merge_from": 1}, "x")
    assert result.task == task
    whole = {*result.state, *result.fresh} | ({"temp"} if task == "retrieval" else set())
    assert whole == set(_state(task))
    for key, value in result.state.items():
        assert key not in state or value is state[key]
    expected = () if own in (PRETRAINED, task) and task != "nlvr2" else HEADS[task]
    assert tuple(key for key in result.fresh if "merge_layer" not in key) == expected
    assert result.notes[0].startswith(f"{task} started from {own}")
    assert result.started_from == own
    told = [note for note in result.notes if note.startswith("not in the checkpoint, so drawn at random: ")]
    assert [note.partition(": ")[2] for note in told] == ([", ".join(expected)] if expected else [])


@pytest.mark.parametrize("kind", ["nlvr2", "vqa", "caption", "retrieval"])
def test_the_same_task_changes_nothing(kind: str) -> None:
    """Asked for or not."""
    state = _state(kind)
    for task in (None, kind):
        result = start(state, "blip", kind, task, {"merge_from": 6}, "x")
        assert (result.state, result.fresh, result.notes, result.started_from) == (state, (), (), None)


def test_what_is_left_out_is_noted() -> None:
    """Captions from pretrained BLIP need no text encoder and no heads."""
    result = start(_state(PRETRAINED), "blip", PRETRAINED, "caption", {"merge_from": 6}, "x")
    assert result.notes == (
        "caption started from pretrained; left out: itm_head, temp, text_encoder, text_proj, vision_proj",
    )
    assert set(TIED) <= set(result.state)


@pytest.mark.parametrize(
    ("family", "own", "task", "message"),
    [
        (
            "blip",
            PRETRAINED,
            None,
            "is BLIP before finetuning, from which several tasks can start; say which: task",
        ),
        ("blip", "nlvr2", "vqa", "is for nlvr2, and vqa cannot start from it; it can be opened for nlvr2"),
        (
            "blip",
            "vqa",
            "nlvr",
            "is for vqa, and nlvr cannot start from it; it can be opened for vqa, nlvr2, ",
        ),
        (
            "clip",
            "retrieval",
            "nlvr2",
            "is for retrieval, and nlvr2 cannot start from it; it can be opened for retrieval",
        ),
    ],
)
def test_what_cannot_start_is_refused(family: str, own: str, task: str | None, message: str) -> None:
    """The message says what can."""
    with pytest.raises(SourceError) as caught:
        start({"x": torch.zeros(1)}, family, own, task, {"merge_from": 6}, "x.pth")
    assert str(caught.value).startswith(f"x.pth: {message}")


def test_what_was_learned_for_another_task_does_not_start_one() -> None:
    """Alignment tokens belong to their task."""
    state = to_hf(released("retrieval"))[0]
    with pytest.raises(SourceError, match=r"^x: holds alignment tokens that were learned for retrieval; start nlvr2"):
        start(state, "blip", "retrieval", "nlvr2", {"merge_from": 6}, "x")


def test_a_missing_part_is_named() -> None:
    """A text encoder alone writes no captions."""
    state = {key: value for key, value in _state("retrieval").items() if key.startswith(("vision_model", "text_enc"))}
    with pytest.raises(SourceError, match=r"^x: has no text_decoder, and caption cannot start without$"):
        start(state, "blip", PRETRAINED, "caption", {"merge_from": 6}, "x")
