"""An exported model on real samples beside the one in PyTorch: the same tokens, the same answers, close numbers.

Numbers are compared on samples that kept the same tokens; others are counted, because a score that ties with the
threshold to the last bit may fall on either side of it and takes another token along.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor

from madtp_cli.data.batch import Batch
from madtp_cli.export.graphs import is_kept
from madtp_cli.export.rectangles import NOTHING

SIZES = (1, 1, 2, 4)
"""Samples per call, in turn, of a file that takes any number: one alone as often as in company."""


@dataclass(frozen=True)
class Comparison:
    """What was found on `samples` samples: the share that kept the same tokens and the share with the same answers (the
    likeliest of all logits; None where there are none), and the largest difference between numbers, over those that
    kept the same.
    """

    samples: int
    same_kept: float
    same_answers: float | None
    max_difference: float


def groups(samples: Sequence[Batch], batch: int | None) -> Iterator[Sequence[Batch]]:
    """Cut samples into calls: of a fixed size, of which their number is a multiple, or of several sizes in turn."""
    sizes, start = cycle(SIZES if batch is None else (batch,)), 0
    while start < len(samples):
        size = next(sizes)
        yield samples[start : start + size]
        start += size


def compare(found: Sequence[Mapping[str, Tensor]], expected: Sequence[Mapping[str, Tensor]]) -> Comparison:
    """Compare the outputs of the same calls, by name."""
    samples = kept = answered = 0
    largest = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        same = _same_kept(ours, theirs)  # [S]
        right = torch.ones_like(same)
        for name, value in theirs.items():
            if is_kept(name):
                continue
            rows = _of_rows(same, len(value))
            if bool(rows.any()):
                difference = (ours[name][rows] - value[rows]).abs().amax().item()
                largest = max(largest, difference if difference == difference else float("inf"))
            if name.endswith("logits"):
                same_words = (ours[name].argmax(-1) == value.argmax(-1)).view(len(value), -1).all(1)
                right &= _of_rows(same_words, len(same))
        samples, kept, answered = samples + len(same), kept + int(same.sum()), answered + int(right.sum())
    answers = any(name.endswith("logits") for name in expected[0])
    return Comparison(samples, kept / samples, answered / samples if answers else None, largest)


def _same_kept(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Tensor:
    """Tell of which samples the same tokens were kept, [S]: as many in every layer, and the same after the last."""
    found = []
    for name in filter(is_kept, theirs):
        mine, other = (_wide(each[name], max(ours[name].shape[-1], theirs[name].shape[-1])) for each in (ours, theirs))
        found.append((mine == other).flatten(1).all(1))
    return torch.stack(found).all(0)


def _wide(places: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(places, (0, width - places.shape[-1]), value=NOTHING)


def _of_rows(flags: Tensor, count: int) -> Tensor:
    """Say of `count` rows what is known of others; where they are not the same rows, what holds for all of them."""
    return flags if len(flags) == count else flags.all().expand(count)
