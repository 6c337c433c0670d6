"""What the dense model says, kept on disk: the same as asking it, whatever batch a sample comes in, and asked once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from madtp_cli.data.batch import Batch
from madtp_cli.data.nlvr2 import Nlvr2Pairs
from madtp_cli.data.samples import write_samples
from madtp_cli.data.shapes import ShapesPairs, accuracy
from madtp_cli.data.shapes_single import ShapesCaptions, ShapesQuestions, answered, captioned
from madtp_cli.engine.tasks.base import Normalisation, Task
from madtp_cli.engine.tasks.caption import Caption, Writing
from madtp_cli.engine.tasks.nlvr2 import Nlvr2
from madtp_cli.engine.tasks.vqa import Answering, Vqa
from madtp_cli.engine.training.settings import LossWeights
from madtp_cli.engine.training.step import TrainingStep
from madtp_cli.engine.training.teacher import CachedTeacher, EntryFile, Teacher, sample_keys
from madtp_cli.errors import RecipeError
from tests.engine.tasks.tiny_shapes import LAYERS, PRUNED, make_model, processor, words_of

WEIGHTS = LossWeights(features=0.1)
TASKS: dict[str, tuple[Task, Any]] = {
    "nlvr2": (Nlvr2(accuracy), ShapesPairs("train", 64)),
    "vqa": (Vqa(answered, Answering("generate", (), (), words_of)), ShapesQuestions("train", 64)),
    "caption": (Caption(captioned, Writing((), words_of), score="accuracy"), ShapesCaptions("train", 64)),
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Remember the samples of every batch that a teacher is run on."""
    batches: list[int] = []
    run = Teacher.run

    def watched(self: Teacher, batch: Batch, *rest: Any) -> Any:
        batches.append(batch.samples)
        return run(self, batch, *rest)

    monkeypatch.setattr(Teacher, "run", watched)
    return batches


def step_of(
    name: str = "nlvr2",
    folder: Path | None = None,
    *,
    weights: LossWeights = WEIGHTS,
    seed: int = 1,
    task: Task | None = None,
    precision: str = "fp32",
) -> TrainingStep:
    """Make a pruned student and its teacher, which a folder caches; a seed is another teacher."""
    layers = {tower: LAYERS[tower] for tower in (("vision",) if name == "caption" else ("vision", "text"))}
    student = make_model("blip", name, replace(PRUNED, layers=layers))
    task = task or TASKS[name][0]
    step = TrainingStep(
        task, student, make_model("blip", name, seed=seed), None, weights, guided={"vision": frozenset({1})}
    )
    if folder is not None:
        assert isinstance(step.teacher, Teacher)
        step.teacher = CachedTeacher(step.teacher, folder, precision)
    return step


def losses(step: TrainingStep, batch: Batch) -> dict[str, Tensor]:
    return {name: loss.detach() for name, loss in step(batch).losses.items()}


def check_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys() == {"task", "alignment", "logits", "features", "guidance"}
    for name, loss in one.items():
        torch.testing.assert_close(loss, other[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", TASKS)
def test_the_losses_are_those_of_asking(name: str, tmp_path: Path, asked: list[int]) -> None:
    """Two passes over one epoch, the second in batches that share their images in other ways; asked in the first."""
    data = TASKS[name][1]
    plain, cached = step_of(name), step_of(name, tmp_path)
    for start in (0, 12):
        check_equal(losses(cached, data.batch(start, 12)), losses(plain, data.batch(start, 12)))
    asked.clear()
    found = {part: losses(cached, data.batch(*part)) for part in ((3, 9), (8, 10), (20, 1), (0, 12))}
    assert asked == []
    for part, second in found.items():
        check_equal(second, losses(plain, data.batch(*part)))


def test_a_sample_is_known_in_any_order(tmp_path: Path, asked: list[int]) -> None:
    """Files of NLVR2, gathered as shuffled epochs do; a batch with one new sample asks once, and then no more."""
    written = write_samples("nlvr2", "nlvr2", tmp_path / "data", 8)
    split = Nlvr2Pairs(
        Path(written["annotations"]["train"]), Path(written["images"]), processor("blip", "nlvr2"), max_broken=0
    )
    plain, cached = step_of(), step_of(folder=tmp_path)
    losses(cached, split.gather([0, 1, 2, 3, 4, 5]))
    asked.clear()
    for indices, times in (([5, 0, 3], 0), ([4, 6], 1), ([6, 2], 0), ([1, 1, 6], 0)):
        check_equal(losses(cached, split.gather(indices)), losses(plain, split.gather(indices)))
        assert len(asked) == times + 1  # once for the plain one
        asked.clear()


def test_the_gradient_is_that_of_asking(tmp_path: Path) -> None:
    """What is read from disk enters the losses of the student like what was computed."""
    batch = TASKS["nlvr2"][1].batch(0, 8)
    gradients = []
    for step in (step_of(), step_of(folder=tmp_path), step_of(folder=tmp_path)):
        torch.stack(list(step.train()(batch).losses.values())).sum().backward()
        gradients.append({key: p.grad for key, p in step.named_parameters() if p.grad is not None})
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-6)


def test_the_answers_outlive_the_process(tmp_path: Path, asked: list[int]) -> None:
    """Opened again, as by --resume, the file answers everything, bit by bit as before."""
    batch = TASKS["nlvr2"][1].batch(0, 12)
    first = losses(step_of(folder=tmp_path), batch)
    assert asked == [12]
    again = losses(step_of(folder=tmp_path), batch)
    assert asked == [12]
    assert all(first[name].equal(again[name]) for name in first)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"precision": "bf16"},
        {"weights": LossWeights(features=0.0)},
        {"task": Nlvr2(accuracy, Normalisation(mean=(0.5, 0.5, 0.5)))},
    ],
    ids=["weights", "precision", "losses", "normalisation"],
)
def test_another_teacher_is_asked_anew(change: dict[str, Any], tmp_path: Path, asked: list[int]) -> None:
    """The file of the first one is not read, and not kept either."""
    batch = TASKS["nlvr2"][1].batch(0, 4)
    losses(step_of(folder=tmp_path), batch)
    (before,) = tmp_path.iterdir()
    losses(step_of(folder=tmp_path, **change), batch)
    (after,) = tmp_path.iterdir()
    assert asked == [4, 4]
    assert before != after


def test_a_sample_is_what_is_read_of_it() -> None:
    """Its key follows a pixel, a word or an answer, and nothing that its batch mates are."""
    batch = TASKS["vqa"][1].batch(0, 6)
    keys = sample_keys(batch)
    assert len(set(keys)) == 6
    assert sample_keys(TASKS["vqa"][1].batch(2, 3)) == keys[2:5]
    images, text, answers = batch.images.clone(), batch.text.clone(), batch.answers.clone()
    images[batch.image_index[0], 2, 95, 95] += 1
    text[-2] += 1
    answers[batch.answer_lengths[0] + 1] += 1
    shared = [row for row in range(6) if batch.image_index[row] == batch.image_index[0]]
    second = int(batch.answer_index[1])
    for changed, rows in (
        (replace(batch, images=images), shared),
        (replace(batch, text=text), [5]),
        (replace(batch, answers=answers), [second]),
    ):
        assert [row for row in range(6) if sample_keys(changed)[row] != keys[row]] == rows


def _cut(content: bytes) -> bytes:
    return content[:-5]


def _cut_in_a_key(content: bytes) -> bytes:
    return content + b"some of a key"


def _spoil(content: bytes) -> bytes:
    return content[:-5] + b"12345"


@pytest.mark.parametrize(("spoil", "kept"), [(_cut, 3), (_cut_in_a_key, 4), (_spoil, 3)])
def test_what_was_interrupted_or_spoilt_is_asked_again(
    spoil: Callable[[bytes], bytes], kept: int, tmp_path: Path, asked: list[int]
) -> None:
    """The entries before it still count; after asking again all are there, when opened once more too."""
    batch = TASKS["nlvr2"][1].batch(0, 4)
    expected = losses(step_of(folder=tmp_path), batch)
    (path,) = tmp_path.iterdir()
    path.write_bytes(spoil(path.read_bytes()))
    assert len(EntryFile(path).read(sample_keys(batch))) == kept
    asked.clear()
    for times in (int(kept < 4), 0):
        check_equal(losses(step_of(folder=tmp_path), batch), expected)
        assert len(asked) == times
        asked.clear()


def test_entries_come_back_as_they_were(tmp_path: Path) -> None:
    """Types and shapes with them, in whatever order; a later one replaces an earlier one."""
    one = {"logits": torch.randn(3, 2), "encoded": torch.randn(4).bfloat16()}
    other = {"logits": torch.randn(0, 2)}
    file = EntryFile(tmp_path / "entries")
    file.write({b"1" * 16: one, b"2" * 16: one})
    file.write({b"2" * 16: other})
    for opened in (file, EntryFile(tmp_path / "entries")):
        found = opened.read([b"2" * 16, b"3" * 16, b"1" * 16])
        assert found.keys() == {b"1" * 16, b"2" * 16}
        for key, entry in ((b"1" * 16, one), (b"2" * 16, other)):
            assert found[key].keys() == entry.keys()
            assert all(found[key][name].equal(tensor) for name, tensor in entry.items())


def test_a_disk_without_room_for_all_samples_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: a sample is two logits, its features and the patches of two images, in float32."""
    usage = SimpleNamespace(free=2**26)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    batch, step = TASKS["nlvr2"][1].batch(0, 4), step_of(folder=tmp_path)
    assert isinstance(step.teacher, CachedTeacher)
    step.teacher.samples = 1_000_000
    width, patches = step.student.config.text_config.hidden_size, step.student.image_tokens - 1
    each = 4 * (2 + width + 2 * patches)
    with pytest.raises(RecipeError) as caught:
        step(batch)
    assert str(caught.value) == (
        "distillation.cache: the dense model's answers to 1,000,000 samples take about "
        f"{each * 1e6 / 2**30:.1f} GiB ({each / 2**20:.2f} MiB each), and {tmp_path} has 0.1 GiB left; "
        "set it to false, or choose an --output with more room"
    )
    usage.free = int(each * 1e6) + 1
    step(batch)


@pytest.mark.parametrize("cached", [False, True])
def test_nothing_is_asked_where_nothing_counts(cached: bool, tmp_path: Path, asked: list[int]) -> None:
    """Weights of zero: the dense model is not run for its own sake."""
    nothing = LossWeights(alignment=0.0, logits=0.0, guidance=0.0, features=0.0)
    step = step_of(folder=tmp_path if cached else None, weights=nothing)
    assert losses(step, TASKS["nlvr2"][1].batch(0, 4)).keys() == {"task"}
    assert asked == []
