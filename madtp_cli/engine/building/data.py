"""From a recipe's data and inference sections to splits and the task that reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from madtp_cli.data import custom, karpathy, nlvr2, nlvr_v1, scenes, sentences, shapes, shapes_single, vqav2
from madtp_cli.data.batch import Split
from madtp_cli.data.caption_metrics import caption_scores, official_caption_scores
from madtp_cli.data.metrics import nlvr2_scores, recalls, vqa_accuracy
from madtp_cli.data.order import Repeated, Shuffled
from madtp_cli.engine.building.data_files import (
    annotations_of,
    apart_note,
    check_apart,
    file_of,
    images_of,
    named,
    part_of,
    questions_of,
)
from madtp_cli.engine.tasks.base import Normalisation, Task
from madtp_cli.engine.tasks.caption import Caption, Writing
from madtp_cli.engine.tasks.nlvr2 import Nlvr2
from madtp_cli.engine.tasks.retrieval import Retrieval
from madtp_cli.engine.tasks.vqa import ANSWER_LIST, Answering, Vqa
from madtp_cli.errors import SourceError
from madtp_cli.models.family import family_of
from madtp_cli.models.processor import Processor
from madtp_cli.recipe import Recipe
from madtp_cli.recipe_sections import DataSection, SplitFiles

SPLITS = ("train", "validation", "test")
# BLIP's list of answers to rank has 3,128: those given most often in the training split.
ANSWERS = 3128
MOST_NAMED = 5  # images that a line names
SHAPES_SPLITS: Mapping[str, type[Any]] = {
    "nlvr2": shapes.ShapesPairs,
    "vqa": shapes_single.ShapesQuestions,
    "caption": shapes_single.ShapesCaptions,
    "retrieval": shapes_single.ShapesRetrieval,
}
KARPATHY: Mapping[str, type[Any]] = {"caption": karpathy.KarpathyCaptions, "retrieval": karpathy.KarpathyRetrieval}


@dataclass(frozen=True)
class DataFacts:
    """What a run has to know of a data set: the words and image side a model from scratch is made for, the side of the
    patches it has labels for (0 for none), the training-only labels of each task, and what a model made on it
    cannot do.
    """

    vocabulary: tuple[str, ...] = ()
    image_size: int | None = None
    labelled_patch: int = 0
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    limits: tuple[str, ...] = ("Trained and measured on the data named above only.",)


FACTS: Mapping[str, DataFacts] = {
    "shapes": DataFacts(
        tuple(sentences.VOCABULARY),
        scenes.IMAGE_SIZE,
        scenes.PATCH_SIZE,
        {
            "nlvr2": ("text_counts", "patches", "image_counts"),
            **dict.fromkeys(("vqa", "caption", "retrieval"), ("patches", "image_counts")),
        },
        (
            "Trained and measured on generated scenes of coloured shapes: it knows nothing of photographs.",
            "English sentences of the 61 words in its vocabulary only.",
        ),
    ),
}


def facts(name: str) -> DataFacts:
    """Return what is known of a data set."""
    return FACTS.get(name, DataFacts())


class Splits:
    """The three splits of a run, each opened when it is first asked for, and the task that reads them."""

    def __init__(
        self,
        open_split: Callable[[str], Split[Any]],
        make_task: Callable[[Splits], Task],
        notes: tuple[str, ...] = (),
    ) -> None:
        self._open = open_split
        self._make_task = make_task
        self.notes = notes
        """What a reader of the results should know of the splits."""

    @cached_property
    def train(self) -> Split[Any]:
        """The training split, in the order of training."""
        return self._open("train")

    @cached_property
    def validation(self) -> Split[Any]:
        """The split that chooses weights and strength."""
        return self._open("validation")

    @cached_property
    def test(self) -> Split[Any]:
        """The split that is read once."""
        return self._open("test")

    @cached_property
    def task(self) -> Task:
        """How a model is run, trained and scored on them."""
        return self._make_task(self)

    def open(self) -> None:
        """Open all three and the task now, so that what is missing is found before anything is computed.

        Raises SourceError.
        """
        for name in SPLITS:
            len(getattr(self, name))
        self.task  # noqa: B018

    def named(self, name: str) -> Split[Any]:
        """Return `validation` (or `val`) or `test`."""
        return self.test if name == "test" else self.validation

    def broken(self) -> dict[str, tuple[str, ...]]:
        """Name the missing and unreadable images met so far, by split."""
        return {
            name: tuple(found) for name, split in self._opened().items() if (found := getattr(split, "broken", None))
        }

    def left_out(self) -> dict[str, int]:
        """Count the samples left out so far for a broken image, by split."""
        return {name: getattr(split, "left_out", 0) for name, split in self._opened().items()}

    def _opened(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in SPLITS if name in self.__dict__}


def data_notes(splits: Splits) -> list[str]:
    """Say what a reader of the results should know of the splits, and what was left out of each."""
    left_out = splits.left_out()
    return [
        *splits.notes,
        *(
            f"{name}: {_counted(len(found), 'image')} and {_counted(left_out[name], 'sample')} left out "
            f"(data.max_broken): {', '.join(found[:MOST_NAMED])}"
            + (f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else "")
            for name, found in splits.broken().items()
        ),
    ]


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def open_splits(recipe: Recipe, processor: Processor, folder: Path | None = None) -> Splits:
    """Make a recipe's data ready to open; raises SourceError once a split is opened that is not there.

    `folder` is that of a checkpoint to evaluate, which may hold the answers that it ranks.
    """
    note = apart_note(recipe.data)
    return Splits(
        partial(_open, recipe, processor), lambda _: make_task(recipe, processor, folder), (note,) if note else ()
    )


def make_task(recipe: Recipe, processor: Processor, folder: Path | None = None) -> Task:
    """Put together how the recipe's task is run, trained and scored."""
    return TASKS[recipe.task](recipe, processor, folder)


def _nlvr2(recipe: Recipe, processor: Processor, folder: Path | None) -> Task:
    metric = shapes.accuracy if recipe.data.name == "shapes" else nlvr2_scores
    return Nlvr2(metric, _normalisation(processor))


def _vqa(recipe: Recipe, processor: Processor, folder: Path | None) -> Task:
    how = recipe.inference
    words: tuple[str, ...] = ()
    if how.answers == "rank":
        words = _candidates(recipe, folder)
    answering = Answering(
        by=how.answers,
        candidates=words,
        candidate_ids=tuple(tuple(processor.answer(word)) for word in words),
        decode=processor.decode,
        k=how.k_test,
        beams=how.beams,
        min_length=how.min_length or 1,
        max_length=how.max_length or 10,
    )
    metric = shapes_single.answered if recipe.data.name == "shapes" else vqa_accuracy
    return Vqa(metric, answering, _normalisation(processor), recipe.training.label_smoothing)


def _candidates(recipe: Recipe, folder: Path | None) -> tuple[str, ...]:
    """Return the answers to rank: the recipe's list, those a checkpoint brings, or those of the training split."""
    listed = recipe.inference.answer_list
    if folder is not None and (folder / ANSWER_LIST).is_file() and not (listed and Path(listed).is_file()):
        # A checkpoint's own recipe may name a list of the machine it was made on.
        return tuple(vqav2.read_answers(folder / ANSWER_LIST))
    if listed is not None:
        return tuple(vqav2.read_answers(Path(listed)))
    if recipe.data.name == "shapes":
        return shapes_single.answer_list()
    found = tuple(vqav2.frequent_answers(_training_answers(recipe.data), ANSWERS))
    if not found:
        raise SourceError(
            "the training split has no answers to rank: name a list of them in inference.answer_list, or set "
            "inference.answers to generate"
        )
    return found


def _training_answers(data: DataSection) -> Iterator[tuple[str, ...]]:
    """Yield the answers to the questions of the training split, without its images."""
    if data.name == "custom":
        assert data.source is not None
        if data.streaming:
            raise SourceError(
                "data.streaming: the answers to rank cannot be counted in a stream; name a list of them in "
                "inference.answer_list, or set inference.answers to generate"
            )
        return custom.given_answers(
            data.source, data.splits.train, data.columns or {}, config=data.config, part=part_of(data, "train")
        )
    return vqav2.given_answers(questions_of(data, "train"), annotations_of(data, "train"), part_of(data, "train"))


def _caption(recipe: Recipe, processor: Processor, folder: Path | None) -> Task:
    how, shaped = recipe.inference, recipe.data.name == "shapes"
    prompt = "" if shaped else how.prompt
    writing = Writing(
        prompt=tuple(processor.prompt(prompt)),
        decode=processor.decode,
        beams=how.beams,
        min_length=how.min_length or 5,
        max_length=how.max_length or 20,
    )
    return Caption(
        shapes_single.captioned if shaped else caption_scores,
        writing,
        _normalisation(processor),
        score="accuracy" if shaped else "cider_javafree",
        official=None if shaped else _official,
        label_smoothing=recipe.training.label_smoothing,
    )


def _official(
    predictions: Sequence[str], references: Sequence[tuple[str, ...]]
) -> tuple[Mapping[str, float], tuple[str, ...]]:
    found = official_caption_scores(predictions, references)
    return found.scores, tuple(
        dict.fromkeys(f"no official caption scores: {reason}" for reason in found.failures.values())
    )


def _retrieval(recipe: Recipe, processor: Processor, folder: Path | None) -> Task:
    return Retrieval(recalls, _normalisation(processor), k=recipe.inference.k_test)


TASKS: Mapping[str, Callable[[Recipe, Processor, Path | None], Task]] = {
    "nlvr2": _nlvr2,
    "vqa": _vqa,
    "caption": _caption,
    "retrieval": _retrieval,
}


def _normalisation(processor: Processor) -> Normalisation:
    return Normalisation(processor.mean, processor.std)


def _open(recipe: Recipe, processor: Processor, split: str) -> Split[Any]:
    """Open one split; positions in the training split run on without end, files shuffled anew in every epoch."""
    data = recipe.data
    if split == "train":
        check_apart(data)
    opened: Any = OPENERS[data.name](recipe, processor, split)
    if split == "train" and isinstance(opened, custom.CustomSplit):
        check_apart(data, opened.sizes)
    if recipe.task == "vqa" and hasattr(opened, "answers"):
        _check_answers(opened, split)
    if split != "train":
        return opened
    if data.name == "shapes":
        return Repeated(opened)
    if isinstance(opened, custom.CustomStream):
        return opened.shuffled(data.seed)
    return Shuffled(opened, data.seed)


def _open_shapes(recipe: Recipe, processor: Processor, split: str) -> Split[Any]:
    return generated_split(recipe, split)


def generated_split(recipe: Recipe, split: str) -> Split[Any]:
    """Open a split of the generated data, whose ids and pixels need no processor."""
    data = recipe.data
    samples = {"train": data.train_samples, "validation": data.validation_samples, "test": data.test_samples}[split]
    made: Split[Any] = SHAPES_SPLITS[recipe.task](
        split, samples, seed=data.seed, image_size=data.image_size or scenes.IMAGE_SIZE
    )
    return made


def _open_pairs(kind: type[Any], recipe: Recipe, processor: Processor, split: str) -> Split[Any]:
    data = recipe.data
    opened: Split[Any] = kind(
        file_of(data, split), images_of(data), processor, max_broken=data.max_broken, part=part_of(data, split)
    )
    return opened


def _open_vqav2(recipe: Recipe, processor: Processor, split: str) -> Split[Any]:
    data = recipe.data
    genome = None if data.genome_images is None else Path(data.genome_images)
    return vqav2.VqaQuestions(
        questions_of(data, split),
        annotations_of(data, split),
        images_of(data),
        processor,
        genome_images=genome,
        max_broken=data.max_broken,
        part=part_of(data, split),
    )


def _open_karpathy(recipe: Recipe, processor: Processor, split: str) -> Split[Any]:
    data = recipe.data
    more: dict[str, Any] = {"prompt": recipe.inference.prompt} if recipe.task == "caption" else {}
    if family_of(recipe.model.family).processing.whole_captions:
        more["max_tokens"] = processor.longest
    if isinstance(data.annotations, SplitFiles) and data.annotations.validation is None:
        raise SourceError(f"data.annotations.validation is missing; {data.name} has a validation split, name its file")
    file = file_of(data, split)
    shared = sum(file == file_of(data, other) for other in SPLITS) > 1
    opened: Split[Any] = KARPATHY[recipe.task](
        file, images_of(data), split, processor, max_broken=data.max_broken, shared=shared, **more
    )
    return opened


def _open_custom(recipe: Recipe, processor: Processor, split: str) -> Split[Any]:
    data = recipe.data
    assert data.source is not None
    return custom.open_custom(
        recipe.task,
        data.source,
        named(data.splits, split),
        data.columns or {},
        processor,
        data.streaming,
        images=None if data.images is None else Path(data.images),
        training=split == "train",
        samples=getattr(data.stream_samples, split) if data.stream_samples else None,
        prompt=recipe.inference.prompt if recipe.task == "caption" else "",
        max_broken=data.max_broken,
        config=data.config,
        part=part_of(data, split),
    )


OPENERS: Mapping[str, Callable[[Recipe, Processor, str], Split[Any]]] = {
    "shapes": _open_shapes,
    "nlvr2": partial(_open_pairs, nlvr2.Nlvr2Pairs),
    "nlvr_v1": partial(_open_pairs, nlvr_v1.NlvrV1Pairs),
    "vqav2": _open_vqav2,
    "coco": _open_karpathy,
    "flickr30k": _open_karpathy,
    "custom": _open_custom,
}


def _check_answers(opened: Any, split: str) -> None:
    """Refuse questions that cannot be learned or scored, before any is; raises SourceError."""
    given = list(opened.answers())
    if lacking := sum(not answers for answers in given):
        raise SourceError(
            f"{split}: {lacking} of {len(given)} questions have no answers, which training learns and evaluation "
            "compares with; VQAv2 publishes none for its test split, name a split that has them"
        )
