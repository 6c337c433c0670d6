"""What papers of this field publish as the cost of a dense model, put together from our own formulas.

A published constant is one call of fvcore on a fixed input (the released code of UPop and MADTP; method.md section 7).
For retrieval and VQA that call is a training pass, so that the constant is not what a sample costs. Here every call is
a table of passes and how often each is made. fvcore counts as we do, and `NORM_MACS` for every element of a layer norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

NORM_MACS = 5
NORMS = "layer norms"
QUEUE = 57_600  # features of each kind that the momentum networks of retrieval keep for comparison
ANSWER_TOKENS = 5  # what the 47 answers of the VQA call are padded to, [DEC] and [SEP] counted

IMAGE = "image"
SENTENCE = "sentence over two images"
CAPTION = "caption over an image, all words at once"
QUESTION = "question over an image"
IMAGE_MEMORY = "the image's keys and values for questions"
ANSWER = f"answer of {ANSWER_TOKENS} tokens over a question"
QUESTION_MEMORY = "the question's keys and values for answers"
TEXT = "text alone"
MATCH = "text over an image (ITM)"
SIMILARITIES = "similarities with a queue"
MATCHING = "matching"


@dataclass(frozen=True)
class Pass:
    """One pass through one part of a model: mean MACs by module path, and how many elements its norms touch."""

    macs: Mapping[str, float]
    normalised: float = 0.0

    @property
    def published_macs(self) -> float:
        """All MACs as fvcore counts them."""
        return sum(self.macs.values()) + NORM_MACS * self.normalised


@dataclass(frozen=True)
class Call:
    """The call behind a published constant (`gmacs`): passes and their number, at texts of `text_tokens`.

    sample_tokens is the length of one text of that call, where others are padded to a longer one.
    """

    gmacs: float
    text_tokens: int
    passes: Mapping[str, int]
    sample_tokens: int


@dataclass(frozen=True)
class Measured:
    """Means over samples: MACs by module path, and tokens by site, entering its first layer and leaving each.

    read [S]: tokens of every text that a decoder reads, where there is one; matching: MACs of reading a text over its
    image once more, where the model does that, whose tokens are named MATCHING.
    """

    macs: Mapping[str, float]
    tokens: Mapping[str, Sequence[float]]
    read: Sequence[int] = ()
    matching: Mapping[str, float] = field(default_factory=dict)


def image_pass(
    found: Measured, parts: str | tuple[str, ...], images: int, normalised: float
) -> tuple[Pass, dict[str, float]]:
    """Split what was measured into the pass of one of a text's images, and the MACs of the rest.

    parts: how the paths of modules begin whose cost is an image's, whatever text is about it.
    """
    seen = {path: macs / images for path, macs in found.macs.items() if path.startswith(parts)}
    return Pass(seen, normalised), {path: macs for path, macs in found.macs.items() if path not in seen}


def means(macs: Mapping[str, Tensor]) -> dict[str, float]:
    """Average costs [S] by module path."""
    return {path: torch.as_tensor(cost).double().mean().item() for path, cost in macs.items()}


def compose(call: Call, passes: Mapping[str, Pass]) -> dict[str, float]:
    """Add up the passes of a call: MACs by module path, layer norms last."""
    macs: dict[str, float] = {}
    for name, times in call.passes.items():
        for path, cost in passes[name].macs.items():
            macs[path] = macs.get(path, 0.0) + times * cost
    macs[NORMS] = NORM_MACS * sum(times * passes[name].normalised for name, times in call.passes.items())
    return macs


def memory(path: str, layers: int, tokens: float, key_width: int, width: int) -> dict[str, float]:
    """Count the keys and values of what cross-attention reads, by module path."""
    return {f"{path}.{layer}.crossattention": 2 * tokens * key_width * width for layer in range(layers)}


def without(macs: Mapping[str, float], shared: Mapping[str, float]) -> dict[str, float]:
    """Take what is computed elsewhere out of a pass."""
    return {path: cost - shared.get(path, 0.0) for path, cost in macs.items()}


def block_norms(tokens: Sequence[float], width: int, *, reads: bool = False) -> float:
    """Count the elements that the norms of a tower's blocks touch.

    tokens: entering the first layer, then leaving each. The first norm sees a layer's entering tokens, the last (and
    that of cross-attention, for blocks that read an image) those that were kept.
    """
    return width * sum(entering + (2 if reads else 1) * leaving for entering, leaving in pairwise(tokens))


def similarities(width: int) -> Pass:
    """Compare one feature with a queue and with the feature of its own partner."""
    return Pass({"queue": width * (QUEUE + 1)})
