"""Packed tokens: a batch of token sequences as one flat tensor, and the one way to shrink it.

Shape legend used everywhere: B samples, T packed tokens, N tokens of one sample, C width, H heads, D head width,
K alignment tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


def upload(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Copy integers to a device; to a GPU without waiting for what it is computing."""
    if device.type == "cuda":
        return torch.tensor(numbers, pin_memory=True).to(device, non_blocking=True)
    return torch.tensor(numbers, device=device)


def gather(values: Tensor, index: Tensor) -> Tensor:
    """Return values[index], rows of values [T, ...] in the shape of the index.

    On a CPU by an operator whose gradient is several times faster; on a GPU that one's would not repeat to the bit.
    """
    if values.device.type != "cpu":
        return values[index]
    return values.index_select(0, index.flatten()).unflatten(0, index.shape)


@dataclass(frozen=True)
class Spans:
    """Where each sample's tokens lie in a packed tensor: `starts[b] : starts[b] + lengths[b]`.

    Lengths live on the host: attention needs them there to choose shapes, and reading them once per compaction is
    the only synchronisation a pruned block costs.
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    _on_device: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, lengths: Sequence[int], on_device: Tensor | None = None) -> Spans:
        """Lay samples of the given lengths end to end; `on_device` are the same lengths [B], where they are there."""
        lengths = tuple(lengths)
        spans = cls(starts=(0, *accumulate(lengths[:-1])) if lengths else (), lengths=lengths)
        if on_device is not None:
            spans._on_device["lengths"] = on_device
            spans._on_device["starts"] = on_device.cumsum(0) - on_device
        return spans

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def total(self) -> int:
        return sum(self.lengths)

    @cached_property
    def longest(self) -> int:
        return max(self.lengths)

    @cached_property
    def packed(self) -> bool:
        """Whether samples lie end to end from the first token on."""
        return self.starts == (0, *accumulate(self.lengths[:-1]))

    @cached_property
    def equal(self) -> bool:
        """Whether all samples are equally long."""
        return len(set(self.lengths)) == 1

    @cached_property
    def adjacent(self) -> bool:
        """Whether all samples are equally long and lie end to end somewhere, so that a part is a view [B, N, ...]."""
        first, length = self.starts[0], self.lengths[0]
        return self.equal and all(start == first + row * length for row, start in enumerate(self.starts))

    @cached_property
    def uniform(self) -> bool:
        """Whether all samples are equally long and lie end to end from the first token on."""
        return self.adjacent and self.starts[0] == 0

    def pick(self, rows: Sequence[int]) -> Spans:
        """Return the spans of the given samples, in that order; they may repeat and overlap."""
        return Spans(tuple(self.starts[r] for r in rows), tuple(self.lengths[r] for r in rows))

    def parts(self, most: int) -> Iterator[slice]:
        """Cut the samples into runs of at most `most` tokens; a longer sample is a run of its own."""
        first = tokens = 0
        for row, length in enumerate(self.lengths):
            if row > first and tokens + length > most:
                yield slice(first, row)
                first, tokens = row, 0
            tokens += length
        yield slice(first, len(self))

    def start_index(self, device: torch.device) -> Tensor:
        """Return the index of every sample's first token, [B]."""
        return self._kept("starts", device, lambda: upload(self.starts, device))

    def end_index(self, device: torch.device) -> Tensor:
        """Return the index of every sample's last token, [B]."""
        return self.start_index(device) + self.length_index(device) - 1

    def length_index(self, device: torch.device) -> Tensor:
        """Return every sample's number of tokens on the device, [B]."""
        return self._kept("lengths", device, lambda: upload(self.lengths, device))

    def here(self, device: torch.device) -> Tensor:
        """Return every token's own index, [T]; for spans that lie end to end."""
        return self._kept("here", device, lambda: torch.arange(self.total, device=device))

    def place(self, device: torch.device) -> Tensor:
        """Return every token's place in its sample, 0 for the first: [T]; for spans that lie end to end."""
        return self.here(device) - self.spread(self.start_index(device))

    def sample_index(self, device: torch.device) -> Tensor:
        """Return the sample that every token belongs to, [T]; for spans that lie end to end."""
        return self._kept(
            "samples",
            device,
            lambda: torch.repeat_interleave(self.length_index(device), output_size=self.total),
        )

    def _kept(self, name: str, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
        """Return an index made before, or make it."""
        kept = self._on_device.get(name)
        # What was made in inference mode, as by a compaction, must not become part of a backward pass.
        if kept is None or kept.device != device or (kept.is_inference() and not torch.is_inference_mode_enabled()):
            with torch.inference_mode(False):
                kept = self._on_device[name] = make()
        return kept

    def sum(self, values: Tensor) -> Tensor:
        """Sum values [T, ...] over each sample: [B, ...]; of a mask, count what is set."""
        if self.uniform:
            return self._rows(values).sum(1)
        if values.dtype == torch.bool:
            values = values.long()
        out = values.new_zeros(len(self), *values.shape[1:])
        return out.index_add(0, self.sample_index(values.device), values)

    def max(self, values: Tensor) -> Tensor:
        """Take the maximum of values [T, ...] over each sample: [B, ...]."""
        if self.uniform:
            return self._rows(values).amax(1)
        index = self.sample_index(values.device).view(-1, *[1] * (values.dim() - 1)).expand_as(values)
        out = values.new_zeros(len(self), *values.shape[1:])
        return out.scatter_reduce(0, index, values, "amax", include_self=False)

    def first(self, mask: Tensor) -> Tensor:
        """Return the index of the first token of every sample that is set in a mask [T]: [B], T where none is."""
        return self.total - self.max((self.total - self.here(mask.device)) * mask)

    def last(self, mask: Tensor) -> Tensor:
        """Return the index of the last token of every sample that is set in a mask [T]: [B], 0 where none is."""
        return self.max(self.here(mask.device) * mask)

    def best(self, values: Tensor) -> Tensor:
        """Mark the largest of the values [T] of every sample, the first one of equals: [T] bool.

        None is marked in a sample with a nan.
        """
        chosen = self.first(values == self.spread(self.max(values)))
        return self.here(values.device) == self.spread(chosen)

    def spread(self, values: Tensor) -> Tensor:
        """Give every token its sample's value: [B, ...] -> [T, ...]."""
        if self.uniform:
            return values[:, None].expand(-1, self.lengths[0], *values.shape[1:]).flatten(0, 1)
        return gather(values, self.sample_index(values.device))

    def softmax(self, values: Tensor) -> Tensor:
        """Take the softmax of values [T, ...] over each sample; -inf takes no part, and nothing but -inf gives nan."""
        if self.uniform:
            return self._rows(values).softmax(1).flatten(0, 1)
        shifted = (values - self.spread(self.max(values.detach()))).exp()
        return shifted / self.spread(self.sum(shifted))

    def rank(self, values: Tensor) -> Tensor:
        """Rank the values [T] within each sample, 0 for the largest; ties in order of position."""
        if self.uniform:
            order = self._rows(values).argsort(dim=1, descending=True, stable=True)
            return (
                torch.empty_like(order)
                .scatter_(1, order, torch.arange(self.lengths[0], device=values.device).expand_as(order))
                .flatten()
            )
        sample = self.sample_index(values.device)
        order = values.argsort(descending=True, stable=True)
        order = order[sample[order].argsort(stable=True)]
        rank = torch.empty_like(order)
        rank[order] = self.here(values.device)
        return rank - self.start_index(values.device)[sample]

    def pad(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """Lay values [T, ...] out as a padded batch [B, longest, ...], `fill` beyond each sample's end."""
        if self.uniform:
            return self._rows(values)
        index, mask = self.padded_batch(values.device)
        return gather(values, index).masked_fill(~mask.view(*mask.shape, *[1] * (values.dim() - 1)), fill)

    def unpad(self, values: Tensor) -> Tensor:
        """Take what samples have in a padded batch [B, longest, ...] back, end to end: [T, ...]."""
        values = values.flatten(0, 1)
        return values if self.equal else gather(values, self.padded_index(values.device))

    def padded_index(self, device: torch.device) -> Tensor:
        """Return the place of every token, sample after sample, in a flattened padded batch: [T].

        Counted on the host's lengths: to look for them in a mask would make the host wait for a GPU.
        """
        lengths = self.length_index(device)
        padding = (self.longest - lengths).cumsum(0) - (self.longest - lengths)  # before each sample, [B]
        return self.here(device) + padding.repeat_interleave(lengths, output_size=self.total)

    def padded_batch(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return token indices [B, longest] (0 beyond a sample's end) and the mask of real ones."""
        column = torch.arange(self.longest, device=device)
        mask = column < self.length_index(device)[:, None]
        return ((self.start_index(device)[:, None] + column) * mask, mask)

    def _rows(self, values: Tensor) -> Tensor:
        return values.unflatten(0, (len(self), self.lengths[0]))


@dataclass(frozen=True)
class Tokens:
    """A batch of token sequences, end to end.

    x [T, C]; spans of B samples; position [T] original index within the sample, -1 once merged; size [T] how many
    original tokens each one stands for; protected [T] tokens that no method may drop or merge (class token, prompt).
    causal: whether a token sees only those before it. It is said here, beside the order it is about, because both the
    attention and the place of a merged token follow from it. prefix: how many protected tokens that stand for no
    content open every sample, as a class token, registers or a start token do; alignment leaves them out.
    """

    x: Tensor
    spans: Spans
    position: Tensor
    size: Tensor
    protected: Tensor
    causal: bool = False
    prefix: int = 0

    @classmethod
    def pack(
        cls, x: Tensor, spans: Spans, protected: Tensor | None = None, *, causal: bool = False, prefix: int = 0
    ) -> Tokens:
        """Wrap fresh embeddings x [T, C]; unless `protected` [T] says otherwise, the prefix is protected."""
        position = spans.place(x.device)
        chosen = position < prefix if protected is None else protected
        return cls(x, spans, position, torch.ones_like(position), chosen, causal, prefix)

    @cached_property
    def free(self) -> Tensor:
        """Mark the tokens that a method may drop or merge, [T]."""
        return ~self.protected

    def with_x(self, x: Tensor) -> Tokens:
        """Return the same tokens with new states x [T, C]."""
        return replace(self, x=x)

    @classmethod
    def join(cls, parts: Sequence[Tokens]) -> Tokens:
        """Lay batches end to end; there is at least one, and all are of one kind."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            torch.cat([part.x for part in parts]),
            Spans.of([length for part in parts for length in part.spans.lengths]),
            torch.cat([part.position for part in parts]),
            torch.cat([part.size for part in parts]),
            torch.cat([part.protected for part in parts]),
            parts[0].causal,
            parts[0].prefix,
        )

    def split(self, most: int) -> list[Tokens]:
        """Cut the batch between samples into parts of at most `most` tokens; a longer sample is a part of its own."""
        return [self._part(rows) for rows in self.spans.parts(most)]

    def _part(self, rows: slice) -> Tokens:
        spans = Spans.of(self.spans.lengths[rows])
        begin = self.spans.starts[rows][0]
        own = slice(begin, begin + spans.total)
        return replace(
            self,
            x=self.x[own],
            spans=spans,
            position=self.position[own],
            size=self.size[own],
            protected=self.protected[own],
        )

    def first(self) -> Tensor:
        """Return the first token of every sample, [B, C]: its class token, where there is one."""
        return gather(self.x, self.spans.start_index(self.x.device))

    def last(self) -> Tensor:
        """Return the last token of every sample, [B, C]."""
        return gather(self.x, self.spans.end_index(self.x.device))


@dataclass(frozen=True)
class Selection:
    """Where each token goes: `into[j] = j` stays, `into[j] = i` is folded into slot i, -1 is dropped.

    into [T] int64, weight [T]: a kept slot i becomes the sum of weight[j] * x[j] over into[j] = i. Slot i must
    itself stay: to check it would make the host wait for the device, so that a breach goes unnoticed.
    """

    into: Tensor
    weight: Tensor


def compact(tokens: Tokens, selection: Selection) -> Tokens:
    """Carry out a selection: x'[i] = sum of weight[j] * x[j] over into[j] = i, for every kept slot, in order.

    Protected tokens stay unchanged whatever the method asked for; what it folds into one of them is dropped.
    """
    here = tokens.spans.here(tokens.x.device)
    into = torch.where(tokens.protected, here, selection.into)
    weight = selection.weight.masked_fill(tokens.protected, 1.0)
    stays = into == here  # [T]
    moves = (into >= 0) ^ stays
    moves &= ~tokens.protected[into]  # [T]
    received = torch.zeros_like(here).index_add(0, into.clamp_min(0), tokens.size * moves)  # [T] original tokens
    receives = received > 0
    merged = (receives | (weight != 1)) & stays  # [T] slots that do not simply stay
    left = tokens.spans.sum(stays)  # [B]
    members = merged | moves
    # The one time that the host waits for the device.
    *lengths, slot_count, member_count = torch.cat([left, torch.stack([merged, members]).sum(1)]).tolist()
    slots, changed = _places(stays, sum(lengths)), _places(merged, slot_count)  # [T'], [M]
    parts = _places(members, member_count)  # [F]

    target = torch.searchsorted(changed, into[parts])  # [F]
    # Not in half precision: hundreds of tokens may be folded into one.
    exact = tokens.x.dtype if tokens.x.element_size() >= 4 else torch.float32
    states = tokens.x.index_select(0, parts).to(exact) * weight[parts, None].to(exact)
    sums = states.new_zeros(slot_count, states.shape[1]).index_add(0, target, states)  # [M, C]
    x = tokens.x.index_select(0, slots)  # [T', C]
    x.index_copy_(0, torch.searchsorted(slots, changed), sums.to(tokens.x.dtype))
    size = (tokens.size + received)[slots]
    position = tokens.position.masked_fill(receives, -1)[slots]
    return replace(
        tokens, x=x, spans=Spans.of(lengths, left), position=position, size=size, protected=tokens.protected[slots]
    )


def _places(mask: Tensor, count: int) -> Tensor:
    """Return where a mask [T] is set, in order: [count], the number being known without asking the device."""
    if mask.device.type == "cpu":  # torch 2.6 has it there only
        return torch.nonzero_static(mask, size=count).squeeze(1)
    return scattered_places(mask, count)


def scattered_places(mask: Tensor, count: int) -> Tensor:
    """Return the same by operators of every device: what is not set shares one place behind the end."""
    place = torch.where(mask, mask.cumsum(0) - 1, count)
    here = torch.arange(len(mask), device=mask.device)
    return here.new_empty(count + 1).scatter_(0, place, here)[:count]
