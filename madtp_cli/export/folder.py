"""What lies beside exported graphs so that a folder runs without madtp: a description, a runtime, an example."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from string import Template
from typing import Any, Literal

import numpy as np
from PIL import Image

from madtp_cli.data.shapes import ShapesPairs
from madtp_cli.data.shapes_single import ShapesCaptions, ShapesQuestions
from madtp_cli.errors import SourceError
from madtp_cli.export import inputs, runtime
from madtp_cli.export.readme import readme
from madtp_cli.models.processor import Processor
from madtp_cli.results import Gmacs, versions

Format = Literal["onnx", "torch", "openvino"]
INFERENCE, EXAMPLE, README = "inference.json", "example.py", "README.md"
RUNTIME, INPUTS = "madtp_runtime.py", "madtp_inputs.py"
PICTURES = "examples"
# Read by both tokenizers before a folder is written: capitals, marks, accents, digits, scripts without spaces.
PROBES = (
    "",
    "There is a Red circle, isn't it?",
    "Ünïcödé naïveté 1/2 $3",
    "一个红色的圆 😀 [SEP] <|endoftext|>",
    "red " * 600,
)


@dataclass(frozen=True, kw_only=True)
class Port:
    """One input or output of a graph; an axis of any size has a name in the place of its size."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class GraphFile:
    """One file of the folder, and what goes in and comes out, in order."""

    file: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True, kw_only=True)
class TextInput:
    """How a text becomes ids: the ids that open and close it, and the most of them that a graph reads."""

    opens: int
    closes: int
    longest: int


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How a question is answered: the `compared` answers whose first word is likeliest are compared in full."""

    answers: tuple[str, ...]
    opens: int
    compared: int
    label_smoothing: float


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How text is written, the likeliest word each time: from a prompt's ids to the closing one; lengths count both."""

    prompt: tuple[int, ...]
    closes: int
    min_length: int
    max_length: int


@dataclass(frozen=True, kw_only=True)
class Inference:
    """`inference.json`: everything that is needed to run the folder's graphs; it grows, its names never change.

    image_tokens: of one image before pruning, class token included; tokens_kept: the mean number that leaves each
    layer, by tower, over the samples that the files were checked on. pruning: the settings of the method.
    """

    family: str
    task: str
    checkpoint: str
    format: Format
    mode: str
    precision: str
    opset: int | None
    graphs: Mapping[str, GraphFile]
    text: TextInput
    labels: tuple[str, ...] = ()
    ranking: Ranking | None = None
    writing: Writing | None = None
    image_size: int
    image_tokens: int
    pruning: Mapping[str, Any] = field(default_factory=dict)
    gmacs: Gmacs | None = None
    tokens_kept: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=versions)
    schema_version: int = runtime.SCHEMA_VERSION

    def to_json(self) -> str:
        """Return one JSON document, its schema_version first; raises ValueError for a number that is not finite."""
        data = {"schema_version": self.schema_version, **asdict(self)}
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def text_input(processor: Processor, longest: int | None = None) -> TextInput:
    """Describe how a processor's texts open and close; `longest` is what a graph of fixed shape reads."""
    opens, closes = processor.words("")
    return TextInput(opens=opens, closes=closes, longest=min(longest or processor.longest, processor.longest))


def write_companions(folder: Path, inference: Inference, processor: Processor) -> None:
    """Write what a folder of graphs needs to run without madtp, and a README.md that says how.

    Raises SourceError for a processor that the folder's own code would not agree with.
    """
    processor.save(folder)
    _check_agreement(folder, processor)
    (folder / INFERENCE).write_text(inference.to_json(), encoding="utf-8")
    (folder / INPUTS).write_text(_source(inputs), encoding="utf-8")
    own = _source(runtime).replace(f"from {inputs.__name__} import", f"from {Path(INPUTS).stem} import")
    (folder / RUNTIME).write_text(own, encoding="utf-8")
    (folder / EXAMPLE).write_text(_example(folder, inference.task), encoding="utf-8")
    (folder / README).write_text(readme(json.loads(inference.to_json())), encoding="utf-8")


def _source(module: Any) -> str:
    return Path(module.__file__).read_text(encoding="utf-8")


def _check_agreement(folder: Path, processor: Processor) -> None:
    """Hold the folder's own way of reading images and texts against the processor's."""
    try:
        words = inputs.read_tokenizer(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
        differ = [text for text in PROBES if words.ids(text) != _inside(processor, text)]
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise SourceError(f"the checkpoint's tokenizer cannot travel with an export: {error!r}") from error
    if differ:
        raise SourceError(
            f"the checkpoint's tokenizer cannot travel with an export: it reads {differ[0]!r} as "
            f"{_inside(processor, differ[0])}, and the code that would travel along as {words.ids(differ[0])}; name a "
            "tokenizer like BERT's or CLIP's as model.tokenizer"
        )
    picture = np.arange(40 * 70 * 3, dtype=np.uint32).reshape(40, 70, 3).astype(np.uint8)
    expected = processor.image_processor(picture, return_tensors="np")["pixel_values"][0]
    how = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    if not np.array_equal(inputs.Images(how).pixels(picture), expected):
        raise SourceError(
            "the checkpoint's preprocessor_config.json prepares images in a way that cannot travel with an export; the "
            "ways of BLIP and CLIP can"
        )


def _inside(processor: Processor, text: str) -> list[int]:
    ids: list[int] = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


# The example ---------------------------------------------------------------------------------------------------

_HEAD = Template('''"""python example.py $usage: run the exported model of this folder."""
import sys
from pathlib import Path

import madtp_runtime

here = Path(__file__).parent
if len(sys.argv) $wrong:
    sys.exit(__doc__)
''')
_ANSWER = """likely = "" if answer.probability is None else f" (probability {answer.probability:.3f})"
print(f"{text}: {answer.text}{likely}")
"""
_KEPT = """for name, counts in answer.tokens_kept.items():
    print(f"{name}: {counts[-1]} tokens kept; after each layer {counts}")
"""
_BODIES: Mapping[str, tuple[str, str, str]] = {
    "nlvr2": (
        'left.png right.png "a sentence"',
        "not in (1, 4)",
        "shown = (here / $left, here / $right, $text)\n"
        "left, right, text = sys.argv[1:] or shown\n"
        "answer = madtp_runtime.load(here).answer(left, right, text)\n" + _ANSWER + _KEPT,
    ),
    "vqa": (
        'image.png "a question"',
        "not in (1, 3)",
        "image, text = sys.argv[1:] or (here / $image, $text)\n"
        "answer = madtp_runtime.load(here).answer(image, text)\n" + _ANSWER + _KEPT,
    ),
    "caption": (
        "image.png",
        "> 2",
        "image = sys.argv[1] if sys.argv[1:] else here / $image\n"
        "answer = madtp_runtime.load(here).caption(image)\n"
        "print(answer.text)\n" + _KEPT,
    ),
    "retrieval": (
        'image.png "a caption" "another"',
        "== 2",
        "image, *texts = sys.argv[1:] or (here / $image, $text, $other)\n"
        "model = madtp_runtime.load(here)\n"
        "answer = model.embed_image(image)\n"
        "similarity = model.similarity([answer], [model.embed_text(text) for text in texts])[0]\n"
        "for text, cosine in zip(texts, similarity):\n"
        '    print(f"{cosine:.3f} {text}")\n' + _KEPT,
    ),
}


def _example(folder: Path, task: str) -> str:
    """Save generated pictures into the folder and return a script that shows them to the model."""
    pictures, texts = _shown(task)
    (folder / PICTURES).mkdir()
    names = dict(texts)
    for name, pixels in pictures.items():
        names[name] = f"{PICTURES}/{name}.png"
        Image.fromarray(pixels).save(folder / names[name])
    usage, wrong, body = _BODIES[task]
    values = {name: json.dumps(value, ensure_ascii=False) for name, value in names.items()}
    return _HEAD.substitute(usage=usage, wrong=wrong) + Template(body).substitute(values)


def _shown(task: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return generated pictures and texts to go with them, by name; they are ours to give away with any model."""
    if task == "nlvr2":
        pair = ShapesPairs("test", 1).sample(0)
        return {"left": pair.left, "right": pair.right}, {"text": pair.sentence}
    if task == "vqa":
        asked = ShapesQuestions("test", 1).sample(0)
        return {"image": asked.image}, {"text": asked.question}
    here, elsewhere = (ShapesCaptions("test", 2).sample(index) for index in (0, 1))
    return {"image": here.image}, {"text": here.captions[0], "other": elsewhere.captions[0]}
