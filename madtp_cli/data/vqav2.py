"""VQAv2: questions about COCO images, officially or as BLIP lists them, with Visual Genome's questions for training."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from madtp_cli.data.annotations import DOCS, Entry, read_entries
from madtp_cli.data.batch import Preparation, QuestionBatch
from madtp_cli.data.file_split import FileSplit, Finder, Places, Unsought
from madtp_cli.data.holdout import Part
from madtp_cli.data.images import ImageFolder, stem
from madtp_cli.data.packing import QuestionSample
from madtp_cli.data.words import answer_weights, clean_question
from madtp_cli.errors import SourceError

GENOME_WEIGHT = 0.2  # of the one answer that a Visual Genome question has, as BLIP trains
MAX_QUESTION_TOKENS = 35
_YEARS = {"train": "train2014", "val": "val2014", "test": "test2015"}


class VqaQuestions(FileSplit[QuestionSample, QuestionBatch]):
    """Serve questions, of one or several files.

    `questions` are official question files, each with its official `annotations` (None where answers are not
    published), or BLIP's lists, which have both. An official image id means `COCO_<year>_<12 digits>.jpg` in the
    folder itself or in `<year>/`. BLIP's entries of `dataset: vg` lie in `genome_images`. The groups are the answer
    types (yes/no, number, other), empty where a file has none.
    """

    task = "vqa"

    def __init__(
        self,
        questions: Path | Sequence[Path],
        annotations: Path | Sequence[Path] | None,
        images: Path,
        prepare: Preparation,
        *,
        genome_images: Path | None = None,
        max_tokens: int | None = MAX_QUESTION_TOKENS,
        max_broken: int = 0,
        part: Part | None = None,
    ) -> None:
        finder = Finder(ImageFolder(images))
        genome = Finder(ImageFolder(genome_images.absolute())) if genome_images else None
        samples = list(_read(questions, annotations, finder, genome))
        missing = list(finder.missing)
        if genome is not None:
            missing += map(genome.full, genome.missing)
        super().__init__(
            samples,
            missing,
            finder.folder,
            prepare,
            where=_paths(questions)[0],
            max_broken=max_broken,
            max_tokens=max_tokens,
            part=part,
        )

    def answers(self) -> Iterator[tuple[str, ...]]:
        """Yield what the annotators of each question answered."""
        return (sample.references for sample in self.samples)


def read_answers(path: Path) -> list[str]:
    """Read the answers that rank inference chooses from: a JSON list of texts, as BLIP's answer_list.json."""
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file; {DOCS}") from None
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read as a JSON list of answers: {error}") from error
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise SourceError(f"{path}: must be a JSON list of answers; {DOCS}")
    return list(dict.fromkeys(answers))


def given_answers(
    questions: Path | Sequence[Path], annotations: Path | Sequence[Path] | None, part: Part | None = None
) -> Iterator[tuple[str, ...]]:
    """Yield what the annotators of each question answered, from the annotations alone: no image has to be there."""
    for sample in _read(questions, annotations, Unsought(), Unsought()):
        if part is None or part.takes(sample):
            yield sample.references


def frequent_answers(given: Iterable[tuple[str, ...]], most: int) -> list[str]:
    """Return the answers that most questions have, the most frequent first."""
    counts = Counter(answer for answers in given for answer in dict.fromkeys(answers))
    return [answer for answer, _ in counts.most_common(most)]


def _read(
    questions: Path | Sequence[Path],
    annotations: Path | Sequence[Path] | None,
    places: Places,
    genome: Places | None,
) -> Iterator[QuestionSample]:
    asked = _paths(questions)
    answered = _paths(annotations)
    if answered and len(answered) != len(asked):
        raise SourceError(
            f"{asked[0]}: got {len(asked)} files of questions and {len(answered)} of annotations; give one for each"
        )
    for index, path in enumerate(asked):
        if _is_list(path):
            yield from _listed(path, places, genome)
        else:
            yield from _official(path, answered[index] if answered else None, places)


def _paths(given: Path | Sequence[Path] | None) -> list[Path]:
    if given is None:
        return []
    return [given] if isinstance(given, Path) else list(given)


def _is_list(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(64).lstrip().startswith("[")
    except (OSError, UnicodeDecodeError):
        return False  # reading it says what is wrong


def _official(path: Path, annotations: Path | None, places: Places) -> Iterator[QuestionSample]:
    asked = read_entries(path, "questions")
    answers = {}
    if annotations is not None:
        answers = {entry.number("question_id"): entry for entry in read_entries(annotations, "annotations")}
    year = _year(path)
    for entry in asked:
        number = entry.number("question_id")
        if annotations is not None and number not in answers:
            raise entry.error(f"question_id {number} has no answers in {annotations}; are the files of the same split?")
        given, kind = _answers(answers[number]) if annotations is not None else ((), "")
        name = f"COCO_{year}_{entry.number('image_id'):012d}.jpg"
        yield QuestionSample(
            id=str(number),
            images=(places.find([f"{year}/{name}", name, f"images/{year}/{name}"]),),
            text=clean_question(entry.text("question")),
            group=kind,
            answers=answer_weights(given),
            references=given,
            unit=stem(name),
        )


def _answers(entry: Entry) -> tuple[tuple[str, ...], str]:
    given = tuple(answer.text("answer") for answer in entry.entries("answers"))
    if not given:
        raise entry.error(f"answers must not be empty; {DOCS}")
    return given, str(entry.values.get("answer_type", ""))


def _year(path: Path) -> str:
    """Return which images the questions of an official file are about, from its name or its data_subtype."""
    for text in (path.name, _subtype(path)):
        for split, year in _YEARS.items():
            if f"_{split}" in text or text.startswith(split):
                return year
    raise SourceError(
        f"{path}: neither its name nor its data_subtype says which images it is about; "
        f"name it as published, with one of {', '.join(_YEARS.values())}"
    )


def _subtype(path: Path) -> str:
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""  # reading it says what is wrong
    return str(head.get("data_subtype", "")) if isinstance(head, dict) else ""


def _listed(path: Path, places: Places, genome: Places | None) -> Iterator[QuestionSample]:
    for index, entry in enumerate(read_entries(path)):
        given = entry.texts("answer") if entry.values.get("answer") is not None else ()
        weights = answer_weights(given)
        name = entry.text("image")
        number = entry.values.get("question_id")
        if entry.values.get("dataset") != "vg":
            image = places.find([name, name.rpartition("/")[2]])
        elif genome is None:
            raise entry.error("is a Visual Genome question; give the folder of its images in data.genome_images")
        else:
            # Absolute, because it lies in another folder than the rest; numbered, because its ids are VQA's too.
            image = genome.full(genome.find([name, name.removeprefix("image/")]))
            weights, number = dict.fromkeys(weights, GENOME_WEIGHT), None
        yield QuestionSample(
            id=f"{path.stem}/{index}" if number is None else str(number),
            images=(image,),
            text=clean_question(entry.text("question")),
            group=str(entry.values.get("answer_type", "")),
            answers=weights,
            references=given,
            unit=stem(name),  # the same wherever the images lie
        )
