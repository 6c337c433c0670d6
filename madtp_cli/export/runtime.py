"""Run the exported model that lies beside this file. Needs numpy, Pillow and what runs the graphs (onnxruntime).

    import madtp_runtime
    model = madtp_runtime.load()                                  # or load("another/folder", threads=2)
    answer = model.answer("left.png", "right.png", "both images contain a dog")   # nlvr2
    answer = model.answer("image.png", "what colour is the dog")                  # vqa
    answer = model.caption("image.png")                                           # caption
    image, text = model.embed_image("image.png"), model.embed_text("a red car")   # retrieval
    model.similarity([image], [text]), model.match(image, text)                   # cosines [1, 1]; BLIP's second look

Images are paths, PIL images or uint8 arrays [H, W, 3]; what is prepared already (float32 pixels [3, H, W] for an image,
ids for a text) is taken as it is. `inference.json` says what the graphs take and give,
`preprocessor_config.json` how images are prepared and `tokenizer.json` how texts are read. Python 3.9 or newer.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from madtp_cli.export.inputs import Array, Images, ImageSource, read_tokenizer

SCHEMA_VERSION = 1  # of the inference.json that this module reads


class Answer(NamedTuple):
    """What a model says, and how.

    probability: of this answer among those compared, None for text written word by word. tokens_kept: by name (image,
    left, right, text) how many tokens left each layer. positions: by name the original index of each token that the
    last layer left: 0 is the class token, -1 a merged one.
    """

    text: str
    probability: float | None
    tokens_kept: dict[str, list[int]]
    positions: dict[str, list[int]]


class Embedded(NamedTuple):
    """An image or a text as a vector [d] of length one; what `match` reads besides; and tokens as in Answer."""

    vector: Array
    reads: dict[str, Array]
    tokens_kept: dict[str, list[int]]
    positions: dict[str, list[int]]


def load(folder: str | Path | None = None, threads: int | None = None) -> Any:
    """Open an export folder (the one this file lies in): a model with the methods of its task.

    `threads` is for the graphs; None lets their runtime choose. Raises ValueError for a folder this module cannot read.
    """
    where = Path(folder) if folder is not None else Path(__file__).parent
    about = json.loads((where / "inference.json").read_text(encoding="utf-8"))
    if about["schema_version"] > SCHEMA_VERSION:
        raise ValueError(
            f"{where / 'inference.json'}: schema_version is {about['schema_version']}, and this module reads "
            f"{SCHEMA_VERSION}; use the {Path(__file__).name} that came with the folder"
        )
    return MODELS[about["task"]](where, about, threads)


class Model:
    """What all tasks share: the folder's description, its images, its words and its graphs."""

    def __init__(self, folder: Path, about: dict[str, Any], threads: int | None) -> None:
        self.about = about
        self.images = Images(json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8")))
        self.words = read_tokenizer(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
        runner = RUNNERS[about["format"]]
        self.graphs = {name: Graph(folder, each, runner, threads) for name, each in about["graphs"].items()}

    def text_ids(self, text: str | Sequence[int], opens: int | None = None) -> list[int]:
        """Return the ids of a text as the task's first text graph reads it, cut to what it takes; ids stay.

        Warns of a text that is cut, and raises ValueError for ids that are too many.
        """
        how = self.about["text"]
        if not isinstance(text, str):
            if isinstance(text, bytes) or not hasattr(text, "__len__"):
                raise ValueError(f"got {type(text).__name__} for a text; give a string, or its ids")
            if len(text) > how["longest"]:
                raise ValueError(f"a text has {len(text)} ids, and {self._places()}")
            return list(text)
        inside = self.words.ids(text)
        if len(inside) + 2 > how["longest"]:
            warnings.warn(f"a text has {len(inside) + 2} tokens and is cut: {self._places()}", stacklevel=3)
        return [how["opens"] if opens is None else opens, *inside[: how["longest"] - 2], how["closes"]]

    def _places(self) -> str:
        wider = "; madtp export --text-tokens makes more" if self.about["mode"] == "static" else ""
        return f"this model reads at most {self.about['text']['longest']}{wider}"

    def _text(self, ids: Sequence[int]) -> dict[str, Array]:
        return {"text": np.array([ids], np.int64), "text_lengths": np.array([len(ids)], np.int64)}

    def _write(self, reads: Mapping[str, Array], how: Mapping[str, Any]) -> str:
        """Write word by word, always the likeliest one."""
        ids, decoder = list(how["prompt"]), self.graphs["decoder"]
        start, places = len(ids), decoder.fixed("ids", 1)
        most = how["max_length"] if places is None else min(how["max_length"], places + 1)
        while len(ids) < most:
            logits = decoder({**reads, "ids": np.array([ids], np.int64)})["logits"][0, len(ids) - 1]
            if len(ids) < how["min_length"]:
                logits[how["closes"]] = -np.inf
            if (word := int(logits.argmax())) == how["closes"]:
                break
            ids.append(word)
        return self.words.text(ids[start:])


class Nlvr2(Model):
    """Judge sentences about pairs of images."""

    def answer(self, left: ImageSource, right: ImageSource, sentence: str) -> Answer:
        """Say whether a sentence is true of two images."""
        pixels = np.stack([self.images.pixels(left), self.images.pixels(right)])
        found = self.graphs["model"]({"images": pixels[None], **self._text(self.text_ids(sentence))})
        best, probability = _likeliest(found["logits"][0])
        return Answer(self.about["labels"][best], probability, *_kept(found, ("left", "right")))


class Retrieval(Model):
    """Compare images with texts."""

    def embed_image(self, image: ImageSource) -> Embedded:
        """Encode an image, without any text."""
        found = self.graphs["image"]({"images": self.images.pixels(image)[None]})
        return Embedded(found["image_embeds"][0], _states(found), *_kept(found))

    def embed_text(self, text: str) -> Embedded:
        """Encode a text, without any image."""
        reads = self._text(self.text_ids(text))
        found = self.graphs["text"](reads)
        return Embedded(found["text_embeds"][0], reads, *_kept(found))

    def similarity(self, images: Sequence[Embedded], texts: Sequence[Embedded]) -> Array:
        """Return the cosine of every image and text: [I, S]."""
        return np.stack([each.vector for each in images]) @ np.stack([each.vector for each in texts]).T

    def match(self, image: Embedded, text: Embedded) -> float:
        """Read a text over an image and return the probability that they belong together (BLIP only).

        Raises ValueError for a model that has no such second look.
        """
        if "match" not in self.graphs:
            raise ValueError(f"a {self.about['family']} model compares by similarity alone; there is no graph to match")
        return float(_softmax(self.graphs["match"]({**image.reads, **text.reads})["match_logits"][0])[1])


class Vqa(Model):
    """Answer questions about an image."""

    def answer(self, image: ImageSource, question: str) -> Answer:
        """Choose among the answers of inference.json, or write one where it lists none."""
        found = self.graphs["model"]({"images": self.images.pixels(image)[None], **self._text(self.text_ids(question))})
        ranking = self.about["ranking"]
        if not ranking:
            return Answer(self._write(_states(found), self.about["writing"]), None, *_kept(found))
        best, probability = self._rank(_states(found), ranking)
        return Answer(ranking["answers"][best], probability, *_kept(found))

    @cached_property
    def _candidates(self) -> list[list[int]]:
        """The listed answers as the decoder writes them."""
        how = self.about["ranking"]
        return [self.text_ids(answer, how["opens"]) for answer in how["answers"]]

    def _rank(self, reads: Mapping[str, Array], how: Mapping[str, Any]) -> tuple[int, float]:
        """Compare the answers whose first word is likeliest by the smoothed log-probability of all their words."""
        decoder, candidates = self.graphs["decoder"], self._candidates
        first = decoder({**reads, "ids": np.array([[how["opens"]]], np.int64)})["logits"][0, 0]
        order = np.argsort(-first[[ids[1] for ids in candidates]], kind="stable")[: how["compared"]]
        scores = []
        for part in _parts(order.tolist(), decoder.fixed("ids", 0)):
            chosen = [candidates[index] for index in part]
            ids = np.zeros((len(chosen), max(map(len, chosen)) - 1), np.int64)
            for row, each in enumerate(chosen):
                ids[row, : len(each) - 1] = each[:-1]
            logits = decoder({**reads, "ids": ids})["logits"]
            scores += [_log_probability(row, each, how["label_smoothing"]) for row, each in zip(logits, chosen)]
        best, probability = _likeliest(np.array(scores))
        return int(order[best]), probability


class Caption(Model):
    """Describe images."""

    def caption(self, image: ImageSource) -> Answer:
        """Write what an image shows."""
        found = self.graphs["model"]({"images": self.images.pixels(image)[None]})
        return Answer(self._write(_states(found), self.about["writing"]), None, *_kept(found))


MODELS: Mapping[str, Any] = {"nlvr2": Nlvr2, "retrieval": Retrieval, "vqa": Vqa, "caption": Caption}


# Graphs --------------------------------------------------------------------------------------------------------


class Graph:
    """One graph of the folder: named arrays in, named arrays out, by whichever runtime its format needs."""

    def __init__(self, folder: Path, about: dict[str, Any], runner: Any, threads: int | None) -> None:
        self.inputs: dict[str, list[Any]] = {each["name"]: each["shape"] for each in about["inputs"]}
        self.outputs = [each["name"] for each in about["outputs"]]
        self._run = runner(folder / Path(about["file"]).name, threads)  # whatever it says, none outside the folder

    def fixed(self, name: str, axis: int) -> int | None:
        """Return the size that an input's axis must have, None where it is free."""
        size = self.inputs[name][axis]
        return size if isinstance(size, int) else None

    def __call__(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """Run; what is smaller than the graph's fixed shapes is filled up, and rows that were filled in are cut off.

        Raises ValueError for what is larger.
        """
        rows = max(len(given[name]) for name in self.inputs)
        fitted = {name: _fit(given[name], shape, name) for name, shape in self.inputs.items()}
        return {name: found[:rows] for name, found in zip(self.outputs, self._run(fitted))}


def _fit(value: Array, shape: Sequence[Any], name: str) -> Array:
    """Repeat the last row up to a fixed batch, and put zeros behind what is shorter on a fixed axis."""
    missing = [size - have if isinstance(size, int) else 0 for size, have in zip(shape, value.shape)]
    if min(missing) < 0:
        raise ValueError(f"{name} is {list(value.shape)}, and the graph takes {list(shape)}")
    if not any(missing):
        return value
    value = np.pad(value, [(0, missing[0]), *[(0, 0)] * (value.ndim - 1)], mode="edge")
    return np.pad(value, [(0, 0), *((0, more) for more in missing[1:])])


def _onnx(path: Path, threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)


def _openvino(path: Path, threads: int | None) -> Any:
    import openvino

    # In float32 whatever the CPU has: tokens are chosen by scores that lie close together.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    # Copied, because the next call writes into the same memory.
    return lambda inputs: [found.copy() for found in compiled(inputs).to_tuple()]


def _torch(path: Path, threads: int | None) -> Any:
    import torch

    if threads:
        torch.set_num_threads(threads)
    program = torch.export.load(path).module()

    def run(inputs: Mapping[str, Array]) -> list[Array]:
        with torch.inference_mode():
            return [
                found.numpy() for found in program(**{name: torch.from_numpy(each) for name, each in inputs.items()})
            ]

    return run


RUNNERS: Mapping[str, Any] = {"onnx": _onnx, "openvino": _openvino, "torch": _torch}


def _states(found: Mapping[str, Array]) -> dict[str, Array]:
    return {name: found[name] for name in ("states", "states_lengths") if name in found}


def _kept(found: Mapping[str, Array], images: Sequence[str] = ("image",)) -> tuple[Any, Any]:
    """Sort what graphs say about the tokens of one sample: counts by layer, and positions that hold one."""
    counts, positions = {}, {}
    for tower, names in (("vision", images), ("text", ("text",))):
        if f"{tower}_kept" in found:
            for name, count, place in zip(names, _rows(found[f"{tower}_kept"]), _rows(found[f"{tower}_positions"])):
                counts[name] = count.tolist()
                positions[name] = [index for index in place.tolist() if index > -2]
    return counts, positions


def _rows(values: Array) -> Array:
    """Return the first sample's values as a row for each image, or for the text: [rows, N]."""
    return values[0].reshape(-1, values.shape[-1])


def _softmax(values: Array) -> Array:
    shifted = np.exp((values - values.max()).astype(np.float64))
    return shifted / shifted.sum()


def _likeliest(scores: Array) -> tuple[int, float]:
    share = _softmax(scores)
    return int(share.argmax()), float(share.max())


def _log_probability(logits: Array, ids: Sequence[int], smoothing: float) -> float:
    """Sum the log-probabilities of ids after the first, smoothed as in BLIP's training: logits [L, V]."""
    total = 0.0
    for row, target in zip(logits.astype(np.float64), ids[1:]):
        log_share = row - row.max() - np.log(np.exp(row - row.max()).sum())
        total += (1 - smoothing) * log_share[target] + smoothing * log_share.mean()
    return total


def _parts(values: Sequence[int], most: int | None) -> Iterator[Sequence[int]]:
    size = most or max(len(values), 1)
    return (values[start : start + size] for start in range(0, len(values), size))
