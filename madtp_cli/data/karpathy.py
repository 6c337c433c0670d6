"""COCO and Flickr30k with Karpathy's splits: captions to learn, and images to retrieve by caption.

Both annotation formats are read: Karpathy's own file (`dataset_coco.json`, `dataset_flickr30k.json`: all splits, one
entry per image) and BLIP's lists (one file per split; training with one entry per caption).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from madtp_cli.data.annotations import DOCS, Entry, read_entries
from madtp_cli.data.batch import CaptionBatch, Preparation, RetrievalBatch
from madtp_cli.data.file_split import FileSplit, Finder
from madtp_cli.data.images import ImageFolder
from madtp_cli.data.packing import CaptionSample
from madtp_cli.data.words import MAX_CAPTION_WORDS, clean_caption
from madtp_cli.errors import SourceError

MAX_CAPTION_TOKENS, MAX_RETRIEVAL_TOKENS = 40, 35  # as BLIP trains; CLIP reads up to 77
# Karpathy trains on what the COCO validation images leave over, too.
_SPLITS = {"train": ("train", "restval"), "validation": ("val",), "test": ("test",)}


@dataclass(frozen=True, slots=True)
class Captioned:
    """Hold an image and all its captions, as they were given."""

    image: str
    captions: tuple[str, ...]


class KarpathyCaptions(FileSplit[CaptionSample, CaptionBatch]):
    """Serve captions to learn: in training every caption is a sample, else every image is one, with its first."""

    task = "caption"

    def __init__(
        self,
        annotations: Path,
        images: Path,
        split: str,
        prepare: Preparation,
        *,
        prompt: str = "",
        max_words: int = MAX_CAPTION_WORDS,
        max_tokens: int | None = MAX_CAPTION_TOKENS,
        max_broken: int = 0,
        shared: bool = False,
    ) -> None:
        finder = Finder(ImageFolder(images))
        samples = [
            sample
            for found in _read(annotations, split, finder, shared)
            for sample in _samples(found, max_words, every=split == "train")
        ]
        super().__init__(
            samples,
            finder.missing,
            finder.folder,
            prepare,
            where=annotations,
            max_broken=max_broken,
            prompt=prompt,
            max_tokens=max_tokens,
        )


class KarpathyRetrieval(FileSplit[CaptionSample, RetrievalBatch]):
    """Serve every caption with its image; captions of one image follow each other."""

    task = "retrieval"

    def __init__(
        self,
        annotations: Path,
        images: Path,
        split: str,
        prepare: Preparation,
        *,
        max_words: int = MAX_CAPTION_WORDS,
        max_tokens: int | None = MAX_RETRIEVAL_TOKENS,
        max_broken: int = 0,
        shared: bool = False,
    ) -> None:
        finder = Finder(ImageFolder(images))
        samples = [
            sample
            for found in _read(annotations, split, finder, shared)
            for sample in _samples(found, max_words, every=True)
        ]
        super().__init__(
            samples,
            finder.missing,
            finder.folder,
            prepare,
            where=annotations,
            max_broken=max_broken,
            max_tokens=max_tokens,
        )


def _samples(found: Captioned, max_words: int, *, every: bool) -> Iterator[CaptionSample]:
    for number, caption in enumerate(found.captions if every else found.captions[:1]):
        yield CaptionSample(
            id=f"{found.image}#{number}" if every else found.image,
            images=(found.image,),
            text=clean_caption(caption, max_words),
            references=found.captions,
        )


def _read(path: Path, split: str, finder: Finder, shared: bool) -> list[Captioned]:
    """Return the images of a split; raises SourceError if the file has none, or is `shared` by splits and does not
    tell them apart.
    """
    if split not in _SPLITS:
        raise SourceError(f"{path}: there is no split {split!r}; try one of {', '.join(_SPLITS)}")
    captions: dict[str, list[str]] = {}
    seen: set[str] = set()
    for entry in read_entries(path, "images"):
        if "sentences" in entry.values:
            part = entry.text("split")
            seen.add(part)
            if part in _SPLITS[split]:
                texts = [sentence.text("raw") for sentence in entry.entries("sentences")]
                captions.setdefault(_image(entry, finder), []).extend(texts)
        elif shared:
            raise entry.error(
                "does not say which split it belongs to, but the file is given for several; name a file for each of "
                f"train, validation and test in data.annotations, {DOCS}"
            )
        else:
            name = entry.text("image")
            image = finder.find([name, f"images/{name}", name.rpartition("/")[2]])
            captions.setdefault(image, []).extend(entry.texts("caption"))
    if not captions:
        raise SourceError(f"{path}: has no images of the split {split}, got {', '.join(sorted(seen))}; {DOCS}")
    return [Captioned(image, tuple(texts)) for image, texts in captions.items() if texts]


def _image(entry: Entry, finder: Finder) -> str:
    name = entry.text("filename")
    folders = [f"{entry.values['filepath']}/"] if "filepath" in entry.values else ["", "flickr30k-images/"]
    return finder.find([f"{folder}{name}" for folder in (*folders, "", *(f"images/{place}" for place in folders))])
