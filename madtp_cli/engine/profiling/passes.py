"""The passes that a task's model is made of: what each costs, dense or as it pruned real samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from madtp_cli.costs import analytic, published
from madtp_cli.costs.published import Pass, block_norms
from madtp_cli.engine.evaluation.meter import CostMeter
from madtp_cli.models.base import Output, PrunedModel
from madtp_cli.models.configs import default_config

MATCHING = "matching"
# Modules whose cost belongs to an image, whatever text is about it.
_IMAGE_PARTS = ("vision_", "visual_")
_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "patch_size", "image_size", "vocab_size")


@dataclass(frozen=True)
class Measured:
    """Means over samples: MACs by module path, and tokens by tower, entering its first layer and leaving each.

    read [S]: tokens of every text that left the text tower; matching: MACs of reading a text over its image once more,
    where the model does that.
    """

    macs: Mapping[str, float]
    tokens: Mapping[str, Sequence[float]]
    read: Sequence[int]
    matching: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Meter:
    """Takes in forward passes and says what they cost on average."""

    meter: CostMeter = field(default_factory=CostMeter)
    lengths: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    matching: dict[str, int] = field(default_factory=dict)
    matching_leaving: dict[int, list[int]] = field(default_factory=dict)

    def add(self, model: Any, output: Output, text: Tensor) -> None:
        """Take in a forward pass of texts, packed as given to the model; pairs that can be matched are."""
        self.meter.add(model, output)
        self.lengths += output.text_lengths
        self.read += output.text[-1].leaving
        if hasattr(model, "read_pairs"):
            pairs = list(enumerate(output.image_index))
            matching = model.read_pairs(output.images, text, output.text_lengths, pairs)
            for path, macs in model.itm_macs(matching).items():
                self.matching[path] = self.matching.get(path, 0) + int(macs.sum())
            for trace in matching.text:
                self.matching_leaving.setdefault(trace.layer, []).extend(trace.leaving)

    def measured(self, model: PrunedModel) -> Measured:
        """Average."""
        samples = len(self.lengths)
        entering = {"vision": float(model.image_tokens), "text": sum(self.lengths) / samples}
        tokens = {
            tower: [entering[tower], *(layer.tokens_mean for layer in self.meter.layers if layer.tower == tower)]
            for tower in entering
        }
        if self.matching:
            leaving = [sum(kept) / samples for kept in self.matching_leaving.values()]
            tokens[MATCHING] = [entering["text"], *leaving]
        return Measured(
            macs={path: macs / samples for path, macs in self.meter.modules.items()},
            tokens=tokens,
            read=self.read,
            matching={path: macs / samples for path, macs in self.matching.items()},
        )


def dense(model: Any, lengths: Sequence[int]) -> Measured:
    """Say what the unpruned model costs for texts of these lengths, without running it."""
    layers = {name: getattr(model.config, f"{name}_config").num_hidden_layers for name in ("vision", "text")}
    words = [sum(lengths) / len(lengths)] * (layers["text"] + 1)
    tokens = {"vision": [float(model.image_tokens)] * (layers["vision"] + 1), "text": words}
    matches = hasattr(model, "dense_itm_macs")
    return Measured(
        macs=_means(model.dense_macs(lengths)),
        tokens={**tokens, MATCHING: words} if matches else tokens,
        read=lengths,
        matching=_means(model.dense_itm_macs(lengths)) if matches else {},
    )


def second_passes(model: Any, found: Measured) -> dict[str, float]:
    """Name what may come on top of a sample, once per pair or answer, with the MACs of each."""
    if found.matching:
        return {published.MATCH: sum(found.matching.values())}
    if hasattr(model, "decoder_macs"):
        # Nothing follows an answer's last token, so that it need not be decoded.
        macs = model.decoder_macs(found.read, [published.ANSWER_TOKENS - 1] * len(found.read))
        return {published.ANSWER: sum(_means(macs).values())}
    return {}


def passes(model: PrunedModel, found: Measured) -> dict[str, Pass]:
    """Split what was measured into the passes of the task's published call."""
    clip, vision = model.family == "clip", model.config.vision_config
    image = {path: macs / model.images_per_text for path, macs in found.macs.items() if path.startswith(_IMAGE_PARTS)}
    words = {path: macs for path, macs in found.macs.items() if path not in image}
    seen = found.tokens["vision"]
    # BLIP's last norm sees all tokens; CLIP's only the class token, but it has one before the first layer.
    ends = (seen[0] + 1) if clip else seen[-1]
    norms = block_norms(seen, vision.hidden_size) + ends * vision.hidden_size
    return {published.IMAGE: Pass(image, norms)} | _TEXT_PASSES[model.family, model.task](model, found, words)


def is_published(model: PrunedModel) -> bool:
    """Tell whether a model has the architecture and image size that the published constant is of."""
    own, known = model.config, default_config(model.family, model.task)
    names = [(section, name) for section in ("vision_config", "text_config") for name in _SIZES]
    return all(
        getattr(getattr(own, section), name, None) == getattr(getattr(known, section), name, None)
        for section, name in names
    )


def _nlvr2(model: PrunedModel, found: Measured, words: Mapping[str, float]) -> dict[str, Pass]:
    return {published.SENTENCE: Pass(words, _bert_norms(model, found.tokens["text"], reads=True))}


def _caption(model: PrunedModel, found: Measured, words: Mapping[str, float]) -> dict[str, Pass]:
    tokens = found.tokens["text"]
    head = tokens[-1] * model.config.text_config.hidden_size
    return {published.CAPTION: Pass(words, _bert_norms(model, tokens, reads=True) + head)}


def _vqa(model: Any, found: Measured, words: Mapping[str, float]) -> dict[str, Pass]:
    text, tokens = model.config.text_config, found.tokens["text"]
    layers, width = text.num_hidden_layers, text.hidden_size
    image = published.memory(
        "text_encoder.encoder.layer", layers, found.tokens["vision"][-1], model.config.vision_config.hidden_size, width
    )
    question = published.memory("text_decoder.bert.encoder.layer", layers, tokens[-1], width, width)
    length = published.ANSWER_TOKENS
    answer = _means(model.decoder_macs(found.read, [length] * len(found.read)))
    answer_norms = _bert_norms(model, [length] * (layers + 1), reads=True) + length * width
    return {
        published.IMAGE_MEMORY: Pass(image),
        published.QUESTION: Pass(published.without(words, image), _bert_norms(model, tokens, reads=True)),
        published.QUESTION_MEMORY: Pass(question),
        published.ANSWER: Pass(published.without(answer, question), answer_norms),
    }


def _blip_retrieval(model: PrunedModel, found: Measured, words: Mapping[str, float]) -> dict[str, Pass]:
    return {
        published.TEXT: Pass(words, _bert_norms(model, found.tokens["text"], reads=False)),
        published.MATCH: Pass(found.matching, _bert_norms(model, found.tokens[MATCHING], reads=True)),
        published.SIMILARITIES: published.similarities(model.config.image_text_hidden_size),
    }


def _clip_retrieval(model: PrunedModel, found: Measured, words: Mapping[str, float]) -> dict[str, Pass]:
    tokens, width = found.tokens["text"], model.config.text_config.hidden_size
    return {
        published.TEXT: Pass(words, block_norms(tokens, width) + tokens[-1] * width),
        published.SIMILARITIES: published.similarities(model.config.projection_dim),
    }


_TEXT_PASSES: Mapping[tuple[str, str], Callable[[Any, Measured, Mapping[str, float]], dict[str, Pass]]] = {
    ("blip", "nlvr2"): _nlvr2,
    ("blip", "caption"): _caption,
    ("blip", "vqa"): _vqa,
    ("blip", "retrieval"): _blip_retrieval,
    ("clip", "retrieval"): _clip_retrieval,
}


def _bert_norms(model: PrunedModel, tokens: Sequence[float], *, reads: bool) -> float:
    """Count the elements of BERT's norms, that of the embeddings included."""
    width = model.config.text_config.hidden_size
    return float(block_norms(tokens, width, reads=reads) + tokens[0] * width)


def _means(macs: analytic.Macs) -> dict[str, float]:
    return {path: torch.as_tensor(cost).double().mean().item() for path, cost in macs.items()}
