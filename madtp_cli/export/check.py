"""An exported model on real samples beside the one in PyTorch: the same tokens, the same answers, close numbers.

Numbers are compared on samples that kept the same tokens; others are counted, because a score that ties with the
threshold to the last bit may fall on either side of it and takes another token along. What holds for all samples,
whatever they kept: numbers are finite, and embeddings point where PyTorch's do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import inf

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from madtp_cli.data.batch import Batch
from madtp_cli.export.graphs import is_kept
from madtp_cli.export.padded import NOTHING

SIZES = (1, 1, 2, 4)
"""Samples per call, in turn, of a file that takes any number: one alone as often as in company."""
CLOSE = 0.95
"""Cosine from which an embedding counts as the same; one other token among many moves it less."""


@dataclass(frozen=True)
class Comparison:
    """What was found on `samples` samples.

    same_kept, same_answers, same_embeds: the shares of them that kept the same tokens, that give the same answers (the
    likeliest of all logits), and whose embeddings are CLOSE; the latter two None where there are none. max_difference:
    between numbers, over samples that kept the same tokens; None where no sample did, and nothing was compared.
    not_finite: outputs that hold infinities or no numbers at all, in any sample.
    """

    samples: int
    same_kept: float
    same_answers: float | None
    max_difference: float | None
    same_embeds: float | None = None
    not_finite: tuple[str, ...] = ()


def groups(samples: Sequence[Batch], batch: int | None) -> Iterator[Sequence[Batch]]:
    """Cut samples into calls: of a fixed size, of which their number is a multiple, or of several sizes in turn."""
    sizes, start = cycle(SIZES if batch is None else (batch,)), 0
    while start < len(samples):
        size = next(sizes)
        yield samples[start : start + size]
        start += size


def compare(found: Sequence[Mapping[str, Tensor]], expected: Sequence[Mapping[str, Tensor]]) -> Comparison:
    """Compare the outputs of the same calls, by name."""
    kept: list[Tensor] = []
    answers: list[Tensor] = []
    embeds: list[Tensor] = []
    differences: list[float] = []
    broken: dict[str, None] = {}
    for ours, theirs in zip(found, expected, strict=True):
        same = _same_kept(ours, theirs)  # [S]
        right, near = torch.ones_like(same), torch.ones_like(same)
        for name, value in theirs.items():
            if is_kept(name):
                continue
            if not bool(ours[name].isfinite().all()):
                broken[name] = None
            rows = _of_rows(same, len(value))
            if bool(rows.any()):
                differences.append((ours[name][rows] - value[rows]).abs().amax().item())
            if name.endswith("logits"):
                same_words = (ours[name].argmax(-1) == value.argmax(-1)).view(len(value), -1).all(1)
                right &= _of_rows(same_words, len(same))
            if name.endswith("embeds"):
                near &= cosine_similarity(ours[name], value, dim=-1) >= CLOSE
        kept, answers, embeds = [*kept, same], [*answers, right], [*embeds, near]
    names = expected[0]
    return Comparison(
        samples=sum(map(len, kept)),
        same_kept=_share(kept),
        same_answers=_share(answers) if any(name.endswith("logits") for name in names) else None,
        # max() would step over what is no number.
        max_difference=max((d if d == d else inf for d in differences), default=None),
        same_embeds=_share(embeds) if any(name.endswith("embeds") for name in names) else None,
        not_finite=tuple(broken),
    )


def _share(flags: Sequence[Tensor]) -> float:
    return torch.cat(list(flags)).double().mean().item()


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
