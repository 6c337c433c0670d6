"""A user's own data: a Hugging Face data set, a folder or a file, with columns named in the recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np

from madtp_cli.data.batch import Batch, Preparation
from madtp_cli.data.custom_rows import Found, Reading, columns_of
from madtp_cli.data.custom_source import open_source, sizes_of
from madtp_cli.data.holdout import Part
from madtp_cli.data.images import ImageFolder, ImageReader
from madtp_cli.data.packing import Packer
from madtp_cli.errors import SourceError

BatchT = TypeVar("BatchT", bound=Batch)
T = TypeVar("T")
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
    part: Part | None = None,
) -> CustomSplit[Any] | CustomStream[Any]:
    """Open a split of a user's data, or a part of one, for one of the four tasks; raises SourceError.

    `columns` says which column plays which role of ROLES; a role that is not named is read from the column of its own
    name. Images may be image columns, bytes, or paths relative to `images` (default: the folder of the source). With
    `training`, every caption of an image is learned; else rows about one image are one entry. With `streaming`, rows
    are read in order and `samples` says how many samples there are where the source does not.
    """
    rows = open_source(source, split, config=config, streaming=streaming)
    where = f"{source} ({split})"
    base = Path(source).expanduser()
    reading = Reading(
        task,
        where,
        columns_of(task, columns, rows, where),
        base=ImageFolder(images).root if images else (base.parent if base.is_file() else base),
        training=training,
        part=part,
    )
    reader = ImageReader(prepare, max_broken=max_broken)
    packer = Packer(prepare, prompt, max_tokens)
    if streaming:
        return CustomStream(rows, reading, reader, packer, samples)
    return CustomSplit(rows, reading, reader, packer)


def given_answers(
    source: str, split: str, columns: Mapping[str, str], *, config: str | None = None, part: Part | None = None
) -> Iterator[tuple[str, ...]]:
    """Yield what the annotators of each question of a table answered; no image has to be there."""
    rows = open_source(source, split, config=config)
    where = f"{source} ({split}, whose answers are ranked)"
    reading = Reading("vqa", where, columns_of("vqa", columns, rows, where), Path(), part=part)
    return _answers(rows, reading, (number for (number,) in reading.groups(rows)))


def _answers(rows: Any, reading: Reading, numbers: Iterable[int]) -> Iterator[tuple[str, ...]]:
    column = reading.columns.get("answers")
    given = [] if column is None else rows.select_columns([column])[:][column]
    for number in numbers:
        yield reading.answers({column: given[number]} if column else {}, number)


class _Custom(Generic[BatchT]):
    """What a table and a stream share: from rows to a batch."""

    def __init__(self, rows: Any, reading: Reading, reader: ImageReader, packer: Packer) -> None:
        self.rows = rows
        self.reading = reading
        self._reader = reader
        self._packer = packer
        self._spoilt: set[tuple[str, tuple[str, ...], str]] = set()
        self._unopened = 0

    @property
    def broken(self) -> list[str]:
        """Name the images found missing or unreadable so far, each with the reason."""
        return self._reader.broken

    @property
    def left_out(self) -> int:
        """Count the samples left out so far for such an image."""
        return self._unopened + len(self._spoilt)

    def pack(self, found: Sequence[Found]) -> BatchT:
        """Read the images of samples and return those that are whole as a batch."""
        sources = {name: source for _, images in found for name, source in images.items()}
        pixels = self._reader.read(sources)
        whole = [sample for sample, _ in found if all(name in pixels for name in sample.images)]
        if len(whole) < len(found):
            samples = (sample for sample, _ in found if not all(name in pixels for name in sample.images))
            # In training, samples may share an id.
            self._spoilt.update((sample.id, sample.images, sample.text) for sample in samples)
        return cast(BatchT, self._packer.pack(self.reading.task, whole, pixels))


class CustomSplit(_Custom[BatchT]):
    """Serve a table, whose rows can be read in any order."""

    def __init__(self, rows: Any, reading: Reading, reader: ImageReader, packer: Packer) -> None:
        super().__init__(rows, reading, reader, packer)
        self._groups = reading.groups(rows)
        missing = reading.missing(rows, self._groups)
        reader.report_missing(dict.fromkeys(path for paths in missing.values() for path in paths))
        places = reading.places(rows, self._groups)
        self._index = [place for place in places if place[0] not in missing]
        self._unopened = len(places) - len(self._index)
        if not self._index:
            raise SourceError(f"{reading.where}: has no samples whose images are there")

    def __len__(self) -> int:
        return len(self._index)

    @property
    def sizes(self) -> dict[str, int] | None:
        """Return how many rows each split of the source has, if it says so."""
        return sizes_of(self.rows)

    def batch(self, start: int, size: int) -> BatchT:
        """Return samples start to start + size, without those whose images are broken."""
        if start < 0 or size < 1 or start + size > len(self):
            raise ValueError(f"there are samples 0 to {len(self) - 1}, got start {start} and size {size}")
        return self.gather(range(start, start + size))

    def gather(self, indices: Sequence[int]) -> BatchT:
        """Return the samples of some indices in their order, without those whose images are broken."""
        places = [self._index[index] for index in indices]
        found = {
            group: self.reading.samples([(row, self.rows[row]) for row in self._groups[group]])
            for group in dict.fromkeys(group for group, _ in places)
        }
        return self.pack([found[group][number] for group, number in places])

    def answers(self) -> Iterator[tuple[str, ...]]:
        """Yield what the annotators of each question answered."""
        return _answers(self.rows, self.reading, (number for number, *_ in self._groups))


class CustomStream(_Custom[BatchT]):
    """Serve rows as they come over the network; reading on is fast, going back starts again."""

    def __init__(
        self, rows: Any, reading: Reading, reader: ImageReader, packer: Packer, samples: int | None = None
    ) -> None:
        super().__init__(rows, reading, reader, packer)
        self._stream: Iterator[Found] = iter(())
        self._position = -1
        known = (rows.info.splits or {}).get(str(rows.split))
        # The source counts rows, and a row may be several samples.
        if samples is None and reading.counts_rows and known is not None and known.num_examples:
            samples = known.num_examples
        if samples is None:
            raise SourceError(
                f"{reading.where}: a stream does not say how many samples it has; give their number in "
                "data.stream_samples"
            )
        self._samples: int = samples

    def __len__(self) -> int:
        return self._samples

    def batch(self, start: int, size: int) -> BatchT:
        """Return samples start to start + size, without those whose images are broken.

        Raises SourceError if the stream ends before its last sample, or goes on after it.
        """
        if start < 0 or size < 1 or start + size > len(self):
            raise ValueError(f"there are samples 0 to {len(self) - 1}, got start {start} and size {size}")
        if start != self._position:
            self._stream = islice(self.reading.stream(self.rows), start, None)
        found = list(islice(self._stream, size))
        self._position = start + size
        if len(found) < size:
            raise self.ended(start + len(found))
        if start + size == len(self) and next(self._stream, None) is not None:
            text = f"has more samples than {len(self)}; give their number in data.stream_samples"
            raise SourceError(f"{self.reading.where}: {text}")
        return self.pack(found)

    def ended(self, count: int) -> SourceError:
        """Make the error that a stream which ends early is."""
        text = f"ended after {count} samples, not {len(self)}; give that as their number in data.stream_samples"
        return SourceError(f"{self.reading.where}: {text}")

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

    @property
    def left_out(self) -> int:
        """Count the samples left out so far for such an image."""
        return self.split.left_out

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
            rows = reading.kept(enumerate(self.split.rows))
            mixed = _mixed(rows, np.random.default_rng([self.seed, epoch]))
            samples = chain.from_iterable(reading.samples([numbered]) for numbered in mixed)
            count = 0
            for count, found in enumerate(islice(samples, len(self)), start=1):
                if count > skip:
                    yield found
            if count < len(self):
                raise self.split.ended(count)
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
