"""Spans of packed tokens as the batches that matrix products work on: of equal spans, or padded to the longest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from madtp_cli.attention.backends import Backend
from madtp_cli.tokens import Spans, gather

# One more padded batch costs about this many multiply-adds of fixed overhead on a CPU, whatever its size: `auto` pads
# where padding computes less than that in excess.
PADDED_OVERHEAD_MACS = 3_000_000


@dataclass(frozen=True)
class Rows:
    """The tokens of b spans, side by side: where they are, how long the padded batch is, and which are real."""

    index: slice | Tensor  # of spans that lie end to end and are equally long; else [b, N]
    spans: int
    mask: Tensor | None = None  # [b, N], where spans are shorter than the padded batch
    real: Tensor | None = None  # [t], the places of the real tokens in the padded batch, with the mask

    @classmethod
    def of(cls, spans: Spans, device: torch.device) -> Rows:
        """Lay spans side by side."""
        if spans.adjacent:
            return cls(slice(spans.starts[0], spans.starts[0] + spans.total), len(spans))
        index, mask = spans.padded_batch(device)
        if spans.equal:
            return cls(index, len(spans))
        return cls(index, len(spans), mask, spans.padded_index(device))

    def take(self, values: Tensor) -> Tensor:
        """Take values [T, H, D] as [b, H, N, D]."""
        if isinstance(self.index, slice):
            return values[self.index].unflatten(0, (self.spans, -1)).transpose(1, 2)
        return gather(values, self.index).transpose(1, 2)

    def packed(self, values: Tensor) -> Tensor:
        """Lay values [b, N, ...] of the real tokens end to end again: [t, ...]."""
        values = values.flatten(0, 1)
        return values if self.real is None else gather(values, self.real)

    def places(self, total: int, device: torch.device) -> Tensor:
        """Return the places of the real tokens among the `total` packed ones: [t]."""
        if isinstance(self.index, slice):
            return torch.arange(total, device=device)[self.index]
        return self.packed(self.index)


@dataclass(frozen=True)
class PaddedBatch:
    """Queries and the keys they see."""

    queries: Rows
    keys: Rows


def lay_out(queries: Spans, keys: Spans, backend: Backend, width: int, device: torch.device) -> Iterator[PaddedBatch]:
    """Lay spans out as padded batches of matrices `width` wide (over all heads)."""
    for rows in groups(queries, keys, backend, width):
        yield PaddedBatch(Rows.of(queries.pick(rows), device), Rows.of(keys.pick(rows), device))


def groups(queries: Spans, keys: Spans, backend: Backend, width: int) -> list[list[int]]:
    """Share the spans out among padded batches.

    `padded` makes one as large as the largest spans, `segments` one for every shape; `auto` starts with the largest
    shape and pads the next one to it as long as the padding costs less than a padded batch of its own.
    """
    if backend == "padded":
        return [list(range(len(queries)))]
    shapes: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, shape in enumerate(zip(keys.lengths, queries.lengths, strict=True)):
        shapes[shape].append(row)
    if len(shapes) == 1 or backend == "segments":
        return list(shapes.values())
    found: list[list[int]] = []
    long = wide = useful = 0
    for (key_length, query_length), rows in sorted(shapes.items(), reverse=True):
        area = key_length * query_length * len(rows)
        if found:
            taller = max(long, query_length)
            excess = taller * wide * (len(found[-1]) + len(rows)) - useful - area
            already = long * wide * len(found[-1]) - useful
            if 2 * width * (excess - already) < PADDED_OVERHEAD_MACS:
                found[-1] += rows
                long, useful = taller, useful + area
                continue
        found.append(list(rows))
        long, wide, useful = query_length, key_length, area
    return [sorted(rows) for rows in found]


def packed(parts: Sequence[Tensor], rows: Sequence[Rows], total: int) -> Tensor:
    """Put values [t, ...] of every padded batch's real tokens back in the order of the packed tokens: [total, ...]."""
    if len(parts) == 1 and isinstance(rows[0].index, slice):
        return parts[0]
    device = parts[0].device
    order = torch.cat([each.places(total, device) for each in rows]).argsort()
    return gather(torch.cat(list(parts)), order)
