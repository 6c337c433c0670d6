"""The passes that a task's model is made of: what each costs, dense or as it pruned real samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from madtp_cli.costs import published
from madtp_cli.costs.published import MATCHING, Measured, means
from madtp_cli.engine.evaluation.meter import CostMeter
from madtp_cli.models.base import PrunedModel
from madtp_cli.models.configs import default_config

_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "patch_size", "image_size", "vocab_size")


@dataclass
class PassMeter:
    """Takes in forward passes and says what they cost on average."""

    meter: CostMeter = field(default_factory=CostMeter)
    lengths: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    matching: dict[str, int] = field(default_factory=dict)
    matching_leaving: dict[int, list[int]] = field(default_factory=dict)

    def add(self, model: Any, output: Any, text: Tensor) -> None:
        """Take in a forward pass of texts, packed as given to the model; pairs that can be matched are."""
        self.meter.add(model, output)
        self.lengths += output.text_lengths
        if hasattr(model, "decoder_macs"):
            self.read += output.questions.spans.lengths
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
        tokens = {
            site.name: [
                _mean(model.dense_tokens(site, self.lengths)),
                *(layer.tokens_mean for layer in self.meter.layers if layer.tower == site.name),
            ]
            for site in model.sites
        }
        if self.matching:
            leaving = [sum(kept) / samples for kept in self.matching_leaving.values()]
            tokens[MATCHING] = [sum(self.lengths) / samples, *leaving]
        return Measured(
            macs={path: macs / samples for path, macs in self.meter.modules.items()},
            tokens=tokens,
            read=self.read,
            matching={path: macs / samples for path, macs in self.matching.items()},
        )


def dense(model: Any, lengths: Sequence[int]) -> Measured:
    """Say what the unpruned model costs for texts of these lengths, without running it."""
    tokens = {site.name: [_mean(model.dense_tokens(site, lengths))] * (site.layers + 1) for site in model.sites}
    matches = hasattr(model, "dense_itm_macs")
    return Measured(
        macs=means(model.dense_macs(lengths)),
        tokens={**tokens, MATCHING: [_mean(lengths)] * (model.itm_layers + 1)} if matches else tokens,
        read=lengths if hasattr(model, "decoder_macs") else (),
        matching=means(model.dense_itm_macs(lengths)) if matches else {},
    )


def second_passes(model: Any, found: Measured) -> dict[str, float]:
    """Name what may come on top of a sample, once per pair or answer, with the MACs of each."""
    if found.matching:
        return {published.MATCH: sum(found.matching.values())}
    if hasattr(model, "decoder_macs"):
        # Nothing follows an answer's last token, so that it need not be decoded.
        macs = model.decoder_macs(found.read, [published.ANSWER_TOKENS - 1] * len(found.read))
        return {published.ANSWER: sum(means(macs).values())}
    return {}


def is_published(model: PrunedModel) -> bool:
    """Tell whether a model has the architecture and image size that the published constant is of."""
    own, known = model.config, default_config(model.family, model.task)
    names = [(section, name) for section in ("vision_config", "text_config") for name in _SIZES]
    return all(
        getattr(getattr(own, section), name, None) == getattr(getattr(known, section), name, None)
        for section, name in names
    )


def _mean(tokens: Sequence[int]) -> float:
    return sum(tokens) / len(tokens)
