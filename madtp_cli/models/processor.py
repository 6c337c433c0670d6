"""From a user's images and texts to what a model takes, with HF's image processors and tokenizers.

One object prepares what a data set reads (`image`, `words`, `answer`) and what a user hands in (the call), so that the
two cannot differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from madtp_cli.errors import SourceError
from madtp_cli.families import OLDEST
from madtp_cli.models.family import family_of
from madtp_cli.models.weights import one_line, read_json

DECODE, ENCODE = "[DEC]", "[ENC]"
IMAGES = "preprocessor_config.json"
MERGED = "processor_config.json"  # where transformers 5 puts the same
FILES = (IMAGES, "tokenizer.json", "tokenizer_config.json")
# What tells that a folder has a tokenizer, whichever kind it is.
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json")


class Processor:
    """Prepare images and texts for one task: `model(**processor(images, texts))`.

    Images are pairs for nlvr2 and single ones otherwise; retrieval and caption models take a caption with each.
    """

    def __init__(
        self, image_processor: Any, tokenizer: Any, *, family: str = OLDEST, task: str = "nlvr2", longest: int = 512
    ) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.family = family
        self.task = task
        self.longest = longest

    @classmethod
    def from_words(
        cls, words: Sequence[str], image_size: int, *, family: str = OLDEST, task: str = "nlvr2", longest: int = 64
    ) -> Processor:
        """Make the processor of a model whose vocabulary is a list of whole words, special tokens first."""
        from transformers import BertTokenizer

        vocabulary = {word: index for index, word in enumerate(words)}
        tokenizer = BertTokenizer(vocab=vocabulary, extra_special_tokens=[DECODE, ENCODE])
        images = image_processor(family, image_size)
        return cls(images, tokenizer, family=family, task=task, longest=longest)

    @classmethod
    def from_folder(
        cls,
        folder: Path | None,
        *,
        family: str = OLDEST,
        task: str = "nlvr2",
        image_size: int | None = None,
        tokenizer: str | None = None,
        longest: int = 512,
    ) -> Processor:
        """Read the processor that lies in a checkpoint's folder, if there is one.

        `tokenizer` names another one: a folder, or a hub id. Without one in the folder, the published one of the family
        is taken, from the cache where there is no network. `image_size` is used where nothing lies beside the weights,
        or replaces what does. A folder that madtp wrote, and any without an `image_size`, must have all files. Raises
        SourceError if anything is missing or cannot be read.
        """
        if folder is not None and (image_size is None or _is_ours(folder)):
            for name in FILES if tokenizer is None else (IMAGES,):
                if not (folder / name).is_file():
                    raise SourceError(f"{folder / name}: no such file; the checkpoint folder is incomplete")
        kind = family_of(family).processing
        own = folder is not None and any((folder / name).is_file() for name in _TOKENIZERS)
        words = _tokenizer(str(folder) if own and tokenizer is None else tokenizer or kind.tokenizer, kind.tokens)
        if folder is not None and any((folder / name).is_file() for name in (IMAGES, MERGED)):
            images = _read(lambda: kind.images().from_pretrained(folder, local_files_only=True), str(folder))
            if image_size is not None:
                images = image_processor(family, image_size, mean=images.image_mean, std=images.image_std)
        else:
            assert image_size is not None
            images = image_processor(family, image_size)
        return cls(images, words, family=family, task=task, longest=longest)

    def save(self, folder: Path) -> None:
        """Write preprocessor_config.json and the tokenizer's files."""
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @property
    def mean(self) -> tuple[float, ...]:
        """What pixels are normalised by, in units of 0..1."""
        return tuple(self.image_processor.image_mean)

    @property
    def std(self) -> tuple[float, ...]:
        """What pixels are normalised by, in units of 0..1."""
        return tuple(self.image_processor.image_std)

    def image(self, image: Image) -> Any:
        """Resize and crop an image to [H, W, 3] uint8."""
        resize = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
        found = self.image_processor(_opaque(image), **resize)["pixel_values"]
        return np.ascontiguousarray(found[0].transpose(1, 2, 0).astype(np.uint8))

    def words(self, text: str) -> list[int]:
        """Return the ids of a text as the task's encoder (for captions: decoder) reads it, cut to what it takes."""
        ids = self.tokenizer(text, truncation=True, max_length=self.longest)["input_ids"]
        first = family_of(self.family).processing.openings.get(self.task)
        return list(ids) if first is None else [self._id(first), *ids[1:]]

    def answer(self, text: str) -> list[int]:
        """Return the ids of a text as the decoder writes it: [DEC], words, [SEP]."""
        ids = self.tokenizer(text, truncation=True, max_length=self.longest)["input_ids"]
        return [self._id(DECODE), *ids[1:]]

    def prompt(self, text: str) -> list[int]:
        """Return the ids of [DEC] and a prompt, left open."""
        return self.answer(text)[:-1]

    def prompt_length(self, prompt: str) -> int:
        """Return how many tokens [DEC] and a caption's prompt are."""
        return len(self.prompt(prompt))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the words of what a decoder wrote after its prompt, without special tokens."""
        return " ".join(self.tokenizer.decode(list(ids), skip_special_tokens=True).split())

    def __call__(self, images: Sequence[Any], texts: Sequence[str]) -> dict[str, Any]:
        """Return the model's arguments for one text per image (or pair).

        Raises TypeError for what are no lists of such, ValueError if the counts differ.
        """
        pairs = self.task == "nlvr2"
        _check_kinds(images, texts, pairs=pairs)
        if len(images) != len(texts):
            what = "pairs of images" if pairs else "images"
            noun = "sentences" if pairs else "texts"
            raise ValueError(f"got {len(images)} {what} for {len(texts)} {noun}; give one for each")
        flat = [_opaque(image) for image in ([image for pair in images for image in pair] if pairs else images)]
        ids = [self.words(text) for text in texts]
        return {
            "images": self.image_processor(flat, return_tensors="pt")["pixel_values"],
            "text": torch.tensor([token for text in ids for token in text]),
            "text_lengths": [len(text) for text in ids],
            "image_index": [(2 * row, 2 * row + 1) for row in range(len(ids))] if pairs else list(range(len(ids))),
        }

    def _id(self, token: str) -> int:
        number: int = self.tokenizer.convert_tokens_to_ids(token)
        return number


def _check_kinds(images: Any, texts: Any, *, pairs: bool) -> None:
    """Refuse one image or text in the place of a list, and pairs in the place of images; raises TypeError."""
    give = "processor([(left, right)], [text])" if pairs else "processor([image], [text])"
    if isinstance(texts, str):
        raise TypeError(f"got one string for the texts; give a list of them: {give}")
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise TypeError(f"got a {type(wrong[0]).__name__} among the texts; give a list of strings: {give}")
    if _is_image(images):
        raise TypeError(
            f"got one image ({type(images).__name__}); give a list of {'pairs' if pairs else 'them'}: {give}"
        )
    for image in images:
        if pairs and (_is_image(image) or len(image) != 2):
            found = "one" if _is_image(image) else len(image)
            raise TypeError(f"nlvr2 takes two images with each text, got {found}; give a list of pairs: {give}")
        if not pairs and isinstance(image, (tuple, list)):
            raise TypeError(f"got a {type(image).__name__} where one image goes with each text: {give}")


def _opaque(image: Any) -> Any:
    """Drop the transparency of a PIL image as BLIP's own code does; transformers would lay it on white."""
    if not isinstance(image, Image):
        return image
    opaque = image.convert("RGB")
    opaque.info.pop("transparency", None)  # a colour that is meant to be clear survives the conversion
    return opaque


def _is_image(value: Any) -> bool:
    """Tell one image (of PIL, an array, a tensor or a path) from several."""
    return isinstance(value, (Image, str, Path)) or getattr(value, "ndim", 0) in (2, 3)


def _is_ours(folder: Path) -> bool:
    """Tell whether madtp wrote a checkpoint folder; what another vocabulary would do to its model nobody would see."""
    config = folder / "config.json"
    return config.is_file() and "madtp" in read_json(config)


def check_tokenizer(processor: Processor, config: Any, where: str) -> None:
    """Refuse a tokenizer that was not the model's, whose every answer would be noise; raises SourceError.

    Its ids must fit the vocabulary, and the special ones that the task uses be those of the configuration, which may
    leave some open.
    """
    text = config.text_config
    last = max(processor.tokenizer.get_vocab().values())
    faults = []
    if last >= text.vocab_size:
        faults.append(f"it has {last + 1} words and the model {text.vocab_size}")
    for name, key, found, wanted in family_of(processor.family).processing.special_ids(processor, text, last):
        if wanted is not None and found != wanted:
            faults.append(f"{name} is {found} and in the model {wanted} (model.config.{key})")
    if faults:
        raise SourceError(
            f"{where}: the tokenizer {processor.tokenizer.name_or_path or 'given'} is not the one of the model: "
            f"{'; '.join(faults)}; name the model's as model.tokenizer, or mend model.config if that is what is wrong"
        )


def image_processor(family: str, size: int, **normalise: Any) -> Any:
    """Make the family's image processor, for square images of a size."""
    kind = family_of(family).processing
    return kind.images()(**kind.squared(size), **{f"image_{name}": value for name, value in normalise.items()})


def _tokenizer(name: str, tokens: Sequence[str]) -> Any:
    """Open a tokenizer and give it special tokens if it lacks them."""
    folder = Path(name)
    if not folder.is_dir():
        folder = _fetched(name)
    elif not any((folder / file).is_file() for file in _TOKENIZERS):
        # transformers would make an empty one up.
        raise SourceError(
            f"{folder}: has no tokenizer files (tokenizer.json, vocab.txt or vocab.json); name a folder that has, or a "
            "hub id, as model.tokenizer"
        )
    tokenizer = _read(lambda: _tokenizer_class().from_pretrained(folder, local_files_only=True), str(folder))
    if missing := [token for token in tokens if token not in tokenizer.get_vocab()]:
        tokenizer.add_special_tokens({"additional_special_tokens": missing})
    return tokenizer


def _tokenizer_class() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer


def _fetched(name: str) -> Path:
    """Return the folder of a tokenizer of the hub, from the cache if it is there; raises SourceError."""
    from huggingface_hub import snapshot_download

    wanted = ["*token*.json", "vocab*", "merges.txt", "config.json"]
    for cached in (True, False):
        try:
            folder = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=cached))
        except Exception as error:  # the hub's client raises many kinds
            cause = _cause(error, name)
            continue
        if any((folder / file).is_file() for file in _TOKENIZERS):
            return folder
        cause = "it has none of " + ", ".join(_TOKENIZERS)
    raise SourceError(
        f"{name}: this tokenizer is neither a folder here nor in the cache, and cannot be fetched ({cause}); where "
        f"there is a network, run: hf download {name} --include '*token*.json' 'vocab*' merges.txt config.json "
        "--local-dir FOLDER; then name the folder with --set model.tokenizer=FOLDER"
    )


def _cause(error: Exception, name: str) -> str:
    """Say in a few words why the hub gave nothing."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.errors import RepositoryNotFoundError as NotFoundError

    if isinstance(error, GatedRepoError):
        return f"it is gated: ask for access at https://huggingface.co/{name} and log in with hf auth login"
    if isinstance(error, NotFoundError):
        return "the hub has no such repository, or it is private"
    if isinstance(error, HFValidationError):
        return "that is no id of the hub"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, (LocalEntryNotFoundError, ConnectionError)):
        return "there is no network"
    return one_line(error)[:200] or type(error).__name__


def _read(read: Any, where: str) -> Any:
    try:
        return read()
    except Exception as error:  # transformers raises many kinds
        message = " ".join(str(error).split())
        raise SourceError(f"{where}: its processor cannot be read: {message}") from error
