"""Graphs that do almost nothing, but whose answers can be told by hand: they show what surrounds a graph at work.

- nlvr2: the likelier answer is "true" where the right image is lighter, and the logits are the two mean pixels;
- the decoder of vqa and caption: the logits of what follows a word are a row of TABLE, whatever it reads;
- retrieval: an image is the means of its three channels, a text how often it has each of three ids; both of length one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

from madtp_cli.export.folder import (
    Format,
    GraphFile,
    Inference,
    Port,
    Ranking,
    Writing,
    text_input,
    write_companions,
)
from madtp_cli.models.processor import Processor

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", "red", "green", "blue", "a", "circle")
PAD, SEP, DEC, ENC, RED, GREEN, BLUE, A, CIRCLE = 0, 3, 5, 6, 7, 8, 9, 10, 11
SIZE = 8

TABLE = np.zeros((len(WORDS), len(WORDS)), np.float32)
"""Logits [V, V] of the word that follows each word: [DEC] a circle [SEP], but "red" is the likeliest short answer."""
TABLE[DEC, [A, RED, GREEN, BLUE]] = 3, 2, 2.5, 1
TABLE[A, [CIRCLE, RED]] = 4, 3.5
TABLE[CIRCLE, [SEP, A]] = 5, 4
TABLE[[RED, GREEN, BLUE], [SEP, CIRCLE, SEP]] = 6, 6, 0.5

_HEAD = '<ir_version: 9, opset_import: ["" : 17]>\n'
_GRAPHS: Mapping[str, Mapping[str, str]] = {
    "nlvr2": {
        "model": """
g (float[{B},2,3,8,8] images, int64[{B},{L}] text, int64[{B}] text_lengths)
  => (float[{B},2] logits, int64[{B},2,3] vision_kept, int64[{B},1] text_kept,
      int64[{B},2,3] vision_positions, int64[{B},{L}] text_positions) {{
  logits = ReduceMean <axes = [2, 3, 4], keepdims = 0> (images)
  three = Constant <value = int64[1,1,3] {{5, 4, 3}}> ()
  rows = Shape <start = 0, end = 1> (images)
  end = Constant <value = int64[2] {{2, 3}}> ()
  shape = Concat <axis = 0> (rows, end)
  vision_kept = Expand (three, shape)
  origin = Constant <value = int64[1,1,3] {{0, -1, -2}}> ()
  vision_positions = Expand (origin, shape)
  axis = Constant <value = int64[1] {{1}}> ()
  text_kept = Unsqueeze (text_lengths, axis)
  text_positions = Identity (text)
}}"""
    },
    "retrieval": {
        "image": """
g (float[{B},3,8,8] images) => (float[{B},3] image_embeds, float[{B},3] states, int64[{B}] states_lengths) {{
  mean = ReduceMean <axes = [2, 3], keepdims = 0> (images)
  image_embeds = LpNormalization <axis = 1, p = 2> (mean)
  states = Identity (mean)
  first = Constant <value = int64[1] {{0}}> ()
  one = Gather <axis = 1> (mean, first)
  axis = Constant <value = int64[1] {{1}}> ()
  flat = Squeeze (one, axis)
  states_lengths = Cast <to = 7> (flat)
}}""",
        "text": """
g (int64[{B},{L}] text, int64[{B}] text_lengths) => (float[{B},3] text_embeds) {{
  wide = Constant <value = int64[1] {{2}}> ()
  each = Unsqueeze (text, wide)
  colours = Constant <value = int64[1,1,3] {{7, 8, 9}}> ()
  same = Equal (each, colours)
  counted = Cast <to = 1> (same)
  count = ReduceSum <keepdims = 0> (counted, places)
  text_embeds = LpNormalization <axis = 1, p = 2> (count)
}}""",
        "match": """
g (float[{B},3] states, int64[{B}] states_lengths, int64[{B},{L}] text, int64[{B}] text_lengths)
  => (float[{B},2] match_logits) {{
  zero = Constant <value = int64[1] {{0}}> ()
  first = Gather <axis = 1> (text, zero)
  opening = Cast <to = 1> (first)
  red = Gather <axis = 1> (states, zero)
  match_logits = Concat <axis = 1> (red, opening)
}}""",
    },
    "vqa": {
        "model": """
g (float[{B},3,8,8] images, int64[{B},{L}] text, int64[{B}] text_lengths)
  => (float[{B},3] states, int64[{B}] states_lengths) {{
  states = ReduceMean <axes = [2, 3], keepdims = 0> (images)
  states_lengths = Identity (text_lengths)
}}"""
    },
    "caption": {
        "model": """
g (float[{B},3,8,8] images) => (float[{B},3] states, int64[{B}] states_lengths) {{
  states = ReduceMean <axes = [2, 3], keepdims = 0> (images)
  shape = Shape (images)
  zero = Constant <value = int64[1] {{0}}> ()
  states_lengths = Gather (shape, zero)
}}"""
    },
}
_DECODER = """
g (float[1,3] states, int64[1] states_lengths, int64[{A},{W}] ids) => (float[{A},{W},12] logits) {{
  logits = Gather (table, ids)
}}"""


def processor(task: str) -> Processor:
    return Processor.from_words(WORDS, SIZE, task=task, longest=16)


def write_folder(
    folder: Path,
    task: str,
    *,
    answers: tuple[str, ...] = (),
    batch: int | None = None,
    length: int | None = None,
    candidates: int | None = None,
    min_length: int = 1,
    max_length: int = 6,
    match: bool = True,
    kind: Format = "onnx",
) -> Inference:
    """Write an export folder of a task around its toy graphs, of any size or of fixed ones."""
    folder.mkdir()
    sizes = {"B": batch or "B", "L": length or "L", "A": candidates or "A", "W": length or "W"}
    texts = dict(_GRAPHS[task])
    if not match:
        texts.pop("match", None)
    if task in ("vqa", "caption"):
        texts["decoder"] = _DECODER
    graphs = {name: _save(folder / f"{name}.onnx", text.format(**sizes)) for name, text in texts.items()}
    prepares = processor(task)
    inference = Inference(
        family="blip",
        task=task,
        checkpoint="toy",
        format=kind,
        mode="dynamic",
        precision="fp32",
        opset=17,
        graphs=graphs,
        text=text_input(prepares, length),
        labels=("false", "true") if task == "nlvr2" else (),
        ranking=Ranking(answers=answers, opens=DEC, compared=2, label_smoothing=0.1) if answers else None,
        writing=Writing(prompt=(DEC,), closes=SEP, min_length=min_length, max_length=max_length)
        if task in ("vqa", "caption") and not answers
        else None,
        image_size=SIZE,
        image_tokens=5,
    )
    write_companions(folder, inference, prepares)
    return inference


def _save(path: Path, text: str) -> GraphFile:
    """Write a graph and describe it as its own inputs and outputs do."""
    model = parser.parse_model(_HEAD + text)
    weights: dict[str, Any] = {"table": TABLE, "places": np.array([1], np.int64)}
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(weights[name], name) for name in weights if name in used)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return GraphFile(
        file=path.name,
        inputs=tuple(_port(each) for each in model.graph.input),
        outputs=tuple(_port(each) for each in model.graph.output),
    )


def _port(value: Any) -> Port:
    kind = value.type.tensor_type
    dtype = {1: "float32", 7: "int64"}[kind.elem_type]
    shape = tuple(size.dim_param or size.dim_value for size in kind.shape.dim)
    return Port(name=value.name, dtype=dtype, shape=shape)


def read(folder: Path) -> Any:
    return json.loads((folder / "inference.json").read_text(encoding="utf-8"))
