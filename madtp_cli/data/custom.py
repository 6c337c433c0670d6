"""A user's own data: a Hugging Face data set, a folder or a file, with columns named in the recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np

from madtp_cli.data.annotations import Entry
from madtp_cli.data.batch import Batch, Preparation
from madtp_cli.data.custom_source import open_source
from madtp_cli.data.images import ImageFolder, ImageReader
from madtp_cli.data.packing import CaptionSample, Packer, PairSample, QuestionSample, Sample
from madtp_cli.data.words import (
    MAX_CAPTION_WORDS,
    MAX_SENTENCE_WORDS,
    answer_weights,
    clean_caption,
    clean_question,
)
from madtp_cli.errors import SourceError

BatchT = TypeVar("BatchT", bound=Batch)
T = TypeVar("T")
# What each task needs, and what it can use.
ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "nlvr2": (("left", "right", "text", "label"), ("id", "group")),
    "vqa": (("image", "question"), ("answers", "id", "group")),
    "caption": (("image", "captions"), ("id",)),
    "retrieval": (("image", "captions"), ("id",)),
}
_IMAGES = ("image", "left", "right")
Found = tuple[Sample, dict[str, Any]]
"""A sample, and the sources of its images by name."""
_SHUFFLE_ROWS = 1000  # rows of a stream that wait to be drawn from


def open_custom(
    task: str,
    source: str,
    split: str,
    columns: Mapping[str, str],
    prepare: Preparation,
    streaming: bool = False,
    *,
    images: Path | None = None,
    training: bool = False,
    samples: int | None = None,
    prompt: str = "",
    max_tokens: int | None = None,
    max_broken: int = 0,
    config: str | None = None,
) -> CustomSplit[Any] | CustomStream[Any]:
    """Open a split of a user's data for one of the four tasks; raises SourceError.

    `columns` says which column plays which role of ROLES; a role that is not named is read from the column of its own
    name. Images may be image columns, bytes, or paths relative to `images` (default: the folder of the source). With
    `training`, every caption of an image is learned. With `streaming`, rows are read in order and `samples` says how
    many there are where the source does not.
    """
    rows = open_source(source, split, config=config, streaming=streaming)
    where = f"{source} ({split})"
    base = Path(source).expanduser()
    reading = _Reading(
        task,
        where,
        _columns(task, columns, rows, where),
        base=ImageFolder(images).root if images else (base.parent if base.is_file() else base),
        # Retrieval ranks every caption; only training learns every caption of an image.
        every_caption=task == "retrieval" or training,
    )
    reader = ImageReader(prepare, max_broken=max_broken)
    packer = Packer(prepare, prompt, max_tokens)
    if streaming:
        return CustomStream(rows, reading, reader, packer, samples)
    return CustomSplit(rows, reading, reader, packer)


class _Custom(Generic[BatchT]):
    """What a table and a stream share: from rows to a batch."""

    def __init__(self, rows: Any, reading: _Reading, reader: ImageReader, packer: Packer) -> None:
        self.rows = rows
        self.reading = reading
        self._reader = reader
        self._packer = packer

    @property
    def broken(self) -> list[str]:
        """Name the images found missing or unreadable so far, each with the reason."""
        return self._reader.broken

    def pack(self, found: Sequence[Found]) -> BatchT:
        """Read the images of samples and return those that are whole as a batch."""
        sources = {name: source for _, images in found for name, source in images.items()}
        pixels = self._reader.read(sources)
        whole = [sample for sample, _ in found if all(name in pixels for name in sample.images)]
        return cast(BatchT, self._packer.pack(self.reading.task, whole, pixels))


class CustomSplit(_Custom[BatchT]):
    """Serve a table, whose rows can be read in any order."""

    def __init__(self, rows: Any, reading: _Reading, reader: ImageReader, packer: Packer) -> None:
        super().__init__(rows, reading, reader, packer)
        missing = reading.missing(rows)
        reader.report_missing(missing)
        self._index = [place for place in reading.places(rows) if not missing or not self._lacks(place[0], missing)]
        if not self._index:
            raise SourceError(f"{reading.where}: has no samples whose images are there")

    def __len__(self) -> int:
        return len(self._index)

    def batch(self, start: int, size: int) -> BatchT:
        """Return samples start to start + size, without those whose images are broken."""
        if start < 0 or size < 1 or start + size > len(self):
            raise ValueError(f"there are samples 0 to {len(self) - 1}, got start {start} and size {size}")
        return self.gather(range(start, start + size))

    def gather(self, indices: Sequence[int]) -> BatchT:
        """Return the samples of some indices in their order, without those whose images are broken."""
        places = [self._index[index] for index in indices]
        rows = {row: self.reading.samples(self.rows[row], row) for row in dict.fromkeys(row for row, _ in places)}
        return self.pack([rows[row][number] for row, number in places])

    def answers(self) -> Iterator[tuple[str, ...]]:
        """Yield what the annotators of each question answered."""
        column = self.reading.columns.get("answers")
        for row, value in enumerate(self.rows[column] if column else ()):
            yield _answers(Entry({"answers": value}, f"{self.reading.where}: row {row}"))

    def _lacks(self, row: int, missing: Mapping[str, None]) -> bool:
        columns = [self.reading.columns[role] for role in _IMAGES if role in self.reading.columns]
        values = self.rows[row]
        return any(_path_of(values[column]) in missing for column in columns)


class CustomStream(_Custom[BatchT]):
    """Serve rows as they come over the network; reading on is fast, going back starts again."""

    def __init__(
        self, rows: Any, reading: _Reading, reader: ImageReader, packer: Packer, samples: int | None = None
    ) -> None:
        super().__init__(rows, reading, reader, packer)
        self._stream: Iterator[Found] = iter(())
        self._position = -1
        known = (rows.info.splits or {}).get(str(rows.split))
        if samples is None and known is not None and known.num_examples:
            samples = known.num_examples
        if samples is None:
            raise SourceError(f"{reading.where}: a stream does not say how many samples it has; give their number")
        self._samples: int = samples

    def __len__(self) -> int:
        return self._samples

    def batch(self, start: int, size: int) -> BatchT:
        """Return samples start to start + size, without those whose images are broken."""
        if start < 0 or size < 1 or start + size > len(self):
            raise ValueError(f"there are samples 0 to {len(self) - 1}, got start {start} and size {size}")
        if start != self._position:
            self._stream = islice(self.reading.stream(self.rows), start, None)
        found = list(islice(self._stream, size))
        self._position = start + size
        if len(found) < size:
            text = f"ended after {start + len(found)} samples, not {len(self)}; give that as their number"
            raise SourceError(f"{self.reading.where}: {text}")
        return self.pack(found)

    def shuffled(self, seed: int) -> ShuffledStream[BatchT]:
        """Return the stream in another order in every epoch, for training."""
        return ShuffledStream(self, seed)


class ShuffledStream(Generic[BatchT]):
    """Serve a stream endlessly, as `order.Shuffled` does a split, each epoch drawn from a buffer of rows."""

    def __init__(self, split: CustomStream[BatchT], seed: int) -> None:
        self.split = split
        self.seed = seed
        self._stream: Iterator[Found] = iter(())
        self._position = -1

    def __len__(self) -> int:
        return len(self.split)

    @property
    def broken(self) -> list[str]:
        """Name the broken images of the stream."""
        return self.split.broken

    def batch(self, start: int, size: int) -> BatchT:
        """Return the samples at positions start to start + size, which may reach into the next epoch."""
        if start != self._position:
            self._stream = self._from(start)
        self._position = start + size
        return self.split.pack(list(islice(self._stream, size)))

    def _from(self, start: int) -> Iterator[Found]:
        epoch, skip = divmod(start, len(self))
        reading = self.split.reading
        while True:
            mixed = _mixed(enumerate(self.split.rows), np.random.default_rng([self.seed, epoch]))
            samples = chain.from_iterable(reading.samples(row, number) for number, row in mixed)
            count = 0
            for count, found in enumerate(islice(samples, len(self)), start=1):
                if count > skip:
                    yield found
            if count < len(self):
                text = f"ended after {count} samples, not {len(self)}; give that as their number"
                raise SourceError(f"{reading.where}: {text}")
            epoch, skip = epoch + 1, 0


def _mixed(rows: Iterable[T], rng: np.random.Generator) -> Iterator[T]:
    """Yield rows in an order drawn within a window that moves over them.

    `datasets` shuffles streams too, but its rows then no longer say which they are.
    """
    waiting: list[T] = []
    for row in rows:
        if len(waiting) < _SHUFFLE_ROWS:
            waiting.append(row)
            continue
        place = int(rng.integers(_SHUFFLE_ROWS))
        waiting[place], row = row, waiting[place]
        yield row
    for place in rng.permutation(len(waiting)).tolist():
        yield waiting[place]


@dataclass(frozen=True)
class _Reading:
    """How rows become samples."""

    task: str
    where: str
    columns: Mapping[str, str]
    """Column of each role."""
    base: Path
    """Where paths of images start."""
    every_caption: bool

    def stream(self, rows: Iterable[dict[str, Any]]) -> Iterator[Found]:
        """Yield the samples of rows in order."""
        for number, row in enumerate(rows):
            yield from self.samples(row, number)

    def places(self, rows: Any) -> list[tuple[int, int]]:
        """Return row and number of each sample; a row with several captions has several."""
        if "captions" not in self.columns or not self.every_caption:
            return [(row, 0) for row in range(len(rows))]
        return [
            (row, number)
            for row, given in enumerate(rows[self.columns["captions"]])
            for number in range(1 if isinstance(given, str) else len(given or ()))
        ]

    def missing(self, rows: Any) -> dict[str, None]:
        """Return the paths of images that are not there."""
        paths = {
            path: None
            for role in _IMAGES
            if role in self.columns
            for path in map(_path_of, rows[self.columns[role]])
            if path is not None
        }
        return {path: None for path in paths if not (self.base / path).is_file()}

    def samples(self, row: Mapping[str, Any], number: int) -> list[Found]:
        """Return the samples of a row with the sources of their images by name."""
        values = {role: row[column] for role, column in self.columns.items()}
        entry = Entry(values, f"{self.where}: row {number}")
        images = [self._source(values[role], f"{number}/{role}") for role in _IMAGES if role in values]
        names = tuple(name for name, _ in images)
        samples = _ROW[self.task](entry, str(values.get("id", number)), names, self.every_caption)
        return [(sample, dict(images)) for sample in samples]

    def _source(self, value: Any, name: str) -> tuple[str, Any]:
        """Return the name of an image and where its pixels come from."""
        path = _path_of(value)
        if path is not None:
            return path, self.base / path
        return name, value.get("bytes") if isinstance(value, dict) else value


def _path_of(value: Any) -> str | None:
    """Return the path of an image that is one: a text, or an undecoded image without bytes of its own."""
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else None
    return value if isinstance(value, str) else None


def _columns(task: str, columns: Mapping[str, str], rows: Any, where: str) -> dict[str, str]:
    """Return the column of each role that the data can fill; raises SourceError where a needed one is missing."""
    needed, optional = ROLES[task]
    there = list(rows.column_names or ())
    if unknown := sorted(set(columns) - {*needed, *optional}):
        raise SourceError(
            f"data.columns.{unknown[0]}: the task {task} has no such role; try one of {', '.join((*needed, *optional))}"
        )
    chosen = {role: columns.get(role, role) for role in (*needed, *optional)}
    for role, column in chosen.items():
        if column not in there and (role in needed or role in columns):
            raise SourceError(
                f"{where}: no column {column!r} for {role}, got {', '.join(there) or 'none'}; "
                f"name it in data.columns.{role}"
            )
    return {role: column for role, column in chosen.items() if column in there}


def _pair(entry: Entry, name: str, images: tuple[str, ...], _: bool) -> list[Sample]:
    text = clean_caption(entry.text("text"), MAX_SENTENCE_WORDS)
    group = str(entry.values.get("group", ""))
    return [PairSample(id=name, images=images, text=text, group=group, label=entry.truth("label"))]


def _question(entry: Entry, name: str, images: tuple[str, ...], _: bool) -> list[Sample]:
    given = _answers(entry)
    return [
        QuestionSample(
            id=name,
            images=images,
            text=clean_question(entry.text("question")),
            group=str(entry.values.get("group", "")),
            answers=answer_weights(given),
            references=given,
        )
    ]


def _answers(entry: Entry) -> tuple[str, ...]:
    """Return answers that are a text, a list of texts, or the official list of {answer: text}."""
    value = entry.values.get("answers")
    if value is None:
        return ()
    if isinstance(value, dict):
        value = value.get("answer")
    if isinstance(value, list):
        value = [item.get("answer") if isinstance(item, dict) else item for item in value]
    return Entry({"answers": value}, entry.where).texts("answers")


def _captioned(entry: Entry, name: str, images: tuple[str, ...], every: bool) -> list[Sample]:
    captions = entry.texts("captions")
    return [
        CaptionSample(
            id=f"{name}#{number}" if every else name,
            images=images,
            text=clean_caption(caption, MAX_CAPTION_WORDS),
            references=captions,
        )
        for number, caption in enumerate(captions if every else captions[:1])
    ]


_ROW = {"nlvr2": _pair, "vqa": _question, "caption": _captioned, "retrieval": _captioned}
