"""The README.md of an export folder: how to run it, what goes in and comes out, and its limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_PACKAGES: Mapping[str, str] = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}
_CALLS: Mapping[str, tuple[str, str]] = {
    "nlvr2": ('model.answer("left.png", "right.png", "a sentence")', "`.text` is true or false"),
    "vqa": ('model.answer("image.png", "a question")', "`.text` is the answer"),
    "caption": ('model.caption("image.png")', "`.text` is the caption"),
    "retrieval": (
        'model.similarity([model.embed_image("image.png")], [model.embed_text("a caption")])',
        "cosines, one row for each image",
    ),
}


def readme(inference: Mapping[str, Any]) -> str:
    """Describe a folder from its inference.json, as Markdown."""
    package = _PACKAGES[inference["format"]]
    call, gives = _CALLS[inference["task"]]
    parts = [
        f"# {inference['checkpoint']} as {inference['format']}",
        " ".join(_summary(inference)),
        "## Run it",
        f"```\npip install numpy pillow {package}\npython example.py\n```",
        "`example.py` takes your own files: its first line says how. In a program, with this folder on its path:",
        f"```python\nimport madtp_runtime\n\nmodel = madtp_runtime.load()\nanswer = {call}\n```",
        f"({gives}; `.tokens_kept` says how many tokens left each layer.) `madtp_runtime.py` and `madtp_inputs.py` are "
        "all the code there is: they read `inference.json`, `preprocessor_config.json` and `tokenizer.json`.",
        "## Inputs and outputs",
        "For a runtime of your own. An axis with a name may have any size; the others are fixed.",
        *(_graph(name, graph) for name, graph in inference["graphs"].items()),
        "\n".join(f"- {line}" for line in _contract(inference)),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(inference)),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(about: Mapping[str, Any]) -> Iterator[str]:
    yield f"A {about['family'].upper()} model for {about['task']}, exported by madtp {about['versions']['madtp']}"
    yield f"({about['mode']}, {about['precision']})."
    if (method := about["pruning"].get("method", "none")) != "none" and about["gmacs"]:
        gmacs = about["gmacs"]
        yield f"It drops tokens as it runs (method {method}): {gmacs['pruned']:.4g} instead of {gmacs['dense']:.4g}"
        yield f"gmacs (1e9 multiply-adds of inference for one sample), {100 * gmacs['reduction']:.1f}% less."


def _graph(name: str, graph: Mapping[str, Any]) -> str:
    rows = [f"`{graph['file']}` (graph `{name}`):\n", "| | name | type | shape |", "|---|---|---|---|"]
    for kind in ("inputs", "outputs"):
        for port in graph[kind]:
            shape = ", ".join(str(size) for size in port["shape"])
            rows.append(f"| {kind[:-1]} | `{port['name']}` | {port['dtype']} | [{shape}] |")
    return "\n".join(rows)


def _contract(about: Mapping[str, Any]) -> Iterator[str]:
    size, text = about["image_size"], about["text"]
    yield (
        f"Images are RGB without transparency, {size} x {size}, resized as uint8 and then rescaled and normalised, as "
        "`preprocessor_config.json` says."
    )
    if about["task"] != "caption":
        yield (
            f"A text's ids open with {text['opens']} and close with {text['closes']}, at most {text['longest']}, "
            "with zeros where places are left; `text_lengths` does not count those."
        )
    if about["labels"]:
        yield f"`logits` are for {', '.join(about['labels'])}, in this order."
    if about["task"] in ("vqa", "caption"):
        yield (
            "`states` are what `decoder` reads, with `states_lengths`; `logits[:, i]` are for the id that follows "
            "`ids[:, i]`. `ranking` and `writing` in `inference.json` say how answers are found with it."
        )
    yield (
        "`*_kept` is how many tokens left every layer, `*_positions` where the tokens of the last layer came from: 0 "
        "is the class token, -1 a merged token, -2 nothing (a place that only a longer sample of the batch uses)."
    )


def _limits(about: Mapping[str, Any]) -> Iterator[str]:
    fixed = {port["shape"][0] for graph in about["graphs"].values() for port in graph["inputs"]}
    if fixed and all(isinstance(size, int) for size in fixed):
        yield f"The batch is fixed ({', '.join(str(size) for size in sorted(fixed))}): fewer samples are filled up."
    if about["mode"] == "static" and about["pruning"].get("method", "none") != "none":
        yield "Every sample keeps the same number of tokens in a layer, whatever it shows."
    if about["task"] != "caption":
        yield f"Longer texts are cut to {about['text']['longest']} tokens."
    if about["precision"] == "fp16":
        yield "Half precision: answers can differ from those in fp32 where two are about equally likely."
    if about["writing"]:
        yield "Text is written greedily, the likeliest word at each step; madtp itself searches with several beams."
    yield "Load only folders that you trust, with this code or any other: a graph is a program, like the code there."
    yield "Characters that Unicode has only had for a few years may be read differently than by the original tokenizer."
    yield "The licence of the checkpoint applies to the graphs; the code beside them is under Apache-2.0."
