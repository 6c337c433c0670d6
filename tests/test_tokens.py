"""Packed tokens: every operation over spans as a loop over samples, and compaction by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from madtp_cli.tokens import Selection, Spans, Tokens, compact, scattered_places

UNIFORM, RAGGED = [4, 4, 4], [3, 1, 5, 3]
BOTH = pytest.mark.parametrize("lengths", [UNIFORM, RAGGED], ids=["uniform", "ragged"])
WIDE = pytest.mark.parametrize("shape", [(), (2,)], ids=["vector", "matrix"])


def _values(spans: Spans, *shape: int) -> Tensor:
    return torch.randn(spans.total, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _by_sample(spans: Spans, values: Tensor, function: Callable[[Tensor], Tensor]) -> list[Tensor]:
    return [function(part) for part in values.split(list(spans.lengths))]


def test_spans_lie_end_to_end() -> None:
    """Starts are the sums of the lengths before."""
    spans = Spans.of([3, 1, 5])
    assert spans.starts == (0, 3, 4)
    assert (len(spans), spans.total, spans.longest) == (3, 9, 5)


def test_only_equal_spans_in_order_are_uniform() -> None:
    """A view [B, N] exists for equal lengths end to end from the front, and for nothing else."""
    equal = Spans.of([2, 2, 2])
    assert equal.uniform
    assert equal.pick([0, 1]).uniform
    assert not equal.pick([1, 0]).uniform
    assert not equal.pick([0, 0]).uniform
    assert not equal.pick([1, 2]).uniform
    assert not Spans.of([2, 3]).uniform


@BOTH
@WIDE
def test_sum_and_max_are_those_of_every_sample(lengths: list[int], shape: tuple[int, ...]) -> None:
    """A loop over samples."""
    spans = Spans.of(lengths)
    values = _values(spans, *shape) - 3  # all negative: a zero that slips in would be the maximum
    torch.testing.assert_close(spans.sum(values), torch.stack(_by_sample(spans, values, lambda v: v.sum(0))))
    assert torch.equal(spans.max(values), torch.stack(_by_sample(spans, values, lambda v: v.amax(0))))


@BOTH
@WIDE
def test_spread_gives_every_token_its_samples_value(lengths: list[int], shape: tuple[int, ...]) -> None:
    """A loop over samples."""
    spans = Spans.of(lengths)
    values = torch.randn(len(lengths), *shape)
    expected = torch.cat([value.expand(n, *shape) for value, n in zip(values, lengths, strict=True)])
    assert torch.equal(spans.spread(values), expected)
    assert spans.sample_index(values.device).tolist() == [b for b, n in enumerate(lengths) for _ in range(n)]


@BOTH
@WIDE
def test_softmax_is_that_of_every_sample_and_so_is_its_gradient(lengths: list[int], shape: tuple[int, ...]) -> None:
    """A loop over samples, with a first token at -inf wherever another is left."""
    spans = Spans.of(lengths)
    values = _values(spans, *shape) * 5
    values[[start for start, n in zip(spans.starts, lengths, strict=True) if n > 1]] = float("-inf")
    ours, loop = values.clone().requires_grad_(), values.clone().requires_grad_()
    out = spans.softmax(ours)
    expected = torch.cat(_by_sample(spans, loop, lambda v: v.softmax(0)))
    torch.testing.assert_close(out, expected)
    weight = _values(spans, *shape)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, loop.grad)


@BOTH
def test_rank_counts_the_better_ones_and_earlier_equals(lengths: list[int]) -> None:
    """The definition, pair by pair."""
    spans = Spans.of(lengths)
    values = torch.randint(0, 3, (spans.total,), generator=torch.Generator().manual_seed(1)).float()

    def rank(v: Tensor) -> Tensor:
        return torch.tensor(
            [sum(bool(v[j] > v[i]) or (j < i and bool(v[j] == v[i])) for j in range(len(v))) for i in range(len(v))]
        )

    assert torch.equal(spans.rank(values), torch.cat(_by_sample(spans, values, rank)))


@BOTH
def test_a_mask_is_counted_and_found_in_every_sample(lengths: list[int]) -> None:
    """A loop over samples; a sample where nothing is set has T as its first and 0 as its last."""
    spans = Spans.of(lengths)
    mask = _values(spans) > 0
    mask[spans.starts[1] : spans.starts[1] + lengths[1]] = False
    found = [
        (mask[start : start + n].nonzero().flatten() + start).tolist()
        for start, n in zip(spans.starts, lengths, strict=True)
    ]
    assert [] in found
    assert spans.sum(mask).tolist() == [len(places) for places in found]
    assert spans.first(mask).tolist() == [min(places, default=spans.total) for places in found]
    assert spans.last(mask).tolist() == [max(places, default=0) for places in found]


@BOTH
def test_the_best_is_the_first_of_the_largest(lengths: list[int]) -> None:
    """A loop over samples, with equals and with nothing but -inf; a nan hides its sample's best and no other's."""
    spans = Spans.of(lengths)
    values = _values(spans).round()
    values[spans.starts[1] : spans.starts[1] + lengths[1]] = float("-inf")
    expected = [start + int(v.argmax()) for start, v in zip(spans.starts, values.split(lengths), strict=True)]
    assert spans.best(values).nonzero().flatten().tolist() == expected
    values[-1] = float("nan")
    assert spans.best(values).nonzero().flatten().tolist() == expected[:-1]


@BOTH
@WIDE
def test_pad_lays_samples_side_by_side(lengths: list[int], shape: tuple[int, ...]) -> None:
    """A padded batch filled by a loop."""
    spans = Spans.of(lengths)
    values = _values(spans, *shape)
    expected = torch.full((len(lengths), max(lengths), *shape), -7.0, dtype=values.dtype)
    for row, part in enumerate(values.split(lengths)):
        expected[row, : len(part)] = part
    assert torch.equal(spans.pad(values, fill=-7.0), expected)


@pytest.mark.parametrize("lengths", [[3, 3], [2, 5, 1], [1]])
def test_unpadding_undoes_padding(lengths: list[int]) -> None:
    """The identity, for numbers and for states; spans elsewhere fill a padded batch in the same way."""
    spans = Spans.of(lengths)
    for values in (torch.arange(float(spans.total)), torch.randn(spans.total, 4)):
        assert torch.equal(spans.unpad(spans.pad(values)), values)
    rows = list(reversed(range(len(lengths))))
    index, _ = spans.pick(rows).padded_batch(torch.device("cpu"))
    expected = [token for row in rows for token in range(spans.starts[row], spans.starts[row] + lengths[row])]
    assert spans.pick(rows).unpad(index).tolist() == expected


def test_picked_spans_may_repeat_and_pad_where_they_lie() -> None:
    """The named samples, sliced by hand."""
    spans = Spans.of([2, 3, 1]).pick([1, 1, 0])
    values = torch.arange(6.0)
    assert spans.pad(values, fill=-1).tolist() == [[2, 3, 4], [2, 3, 4], [0, 1, -1]]


def test_fresh_tokens_count_from_their_class_token() -> None:
    """Positions, sizes and the protected first tokens, written out."""
    tokens = Tokens.pack(torch.arange(10.0).view(5, 2), Spans.of([2, 3]), prefix=1)
    assert tokens.position.tolist() == [0, 1, 0, 1, 2]
    assert tokens.size.tolist() == [1] * 5
    assert tokens.protected.tolist() == [True, False, True, False, False]
    assert tokens.first().tolist() == [[0, 1], [4, 5]]
    assert tokens.last().tolist() == [[2, 3], [8, 9]]
    assert not tokens.causal


def test_protected_tokens_and_order_may_be_said() -> None:
    """First and last tokens protected, in a causal tower: both survive a fold, and so does being causal."""
    protected = torch.tensor([True, False, False, True])
    tokens = Tokens.pack(torch.arange(4.0)[:, None], Spans.of([4]), protected, causal=True, prefix=1)
    out = compact(tokens, Selection(torch.tensor([2, 2, 2, 2]), torch.tensor([0.5] * 4)))
    assert out.x.squeeze(1).tolist() == [0, 1.5, 3]
    assert out.protected.tolist() == [True, False, True]
    assert out.last().item() == 3
    assert out.causal


@pytest.mark.parametrize(
    ("most", "expected"),
    [(1, [[3], [2], [4], [1]]), (5, [[3, 2], [4, 1]]), (6, [[3, 2], [4, 1]]), (99, [[3, 2, 4, 1]])],
)
def test_a_batch_is_cut_between_samples_and_joined_again(most: int, expected: list[list[int]]) -> None:
    """By hand: as many whole samples as fit, a longer one alone; joining gives the same batch to the last bit."""
    lengths = [3, 2, 4, 1]
    x = torch.arange(20.0).view(10, 2)
    tokens = replace(Tokens.pack(x, Spans.of(lengths), causal=True, prefix=1), size=torch.arange(10))
    parts = tokens.split(most)
    assert [list(part.spans.lengths) for part in parts] == expected
    joined = Tokens.join(parts)
    assert joined.spans == tokens.spans
    assert joined.causal
    for name in ("x", "position", "size", "protected"):
        assert torch.equal(getattr(joined, name), getattr(tokens, name))


def test_a_selection_carried_out_by_hand() -> None:
    """Two samples: one folds two tokens into the slot of a third, the other drops one; sums written out."""
    tokens = Tokens.pack(torch.tensor([[1.0], [2], [3], [4], [5], [6], [7], [8]]), Spans.of([5, 3]), prefix=1)
    into = torch.tensor([0, 1, 2, 1, 1, 5, -1, 7])
    weight = torch.tensor([1, 0.5, 1, 0.25, 0.25, 1, 1, 1])
    out = compact(tokens, Selection(into, weight))
    assert out.x.squeeze(1).tolist() == [1, 0.5 * 2 + 0.25 * 4 + 0.25 * 5, 3, 6, 8]
    assert out.spans == Spans.of([3, 2])
    assert out.position.tolist() == [0, -1, 2, 0, 2]
    assert out.size.tolist() == [1, 3, 1, 1, 1]
    assert out.protected.tolist() == [True, False, False, True, False]


def test_protected_tokens_survive_untouched_whatever_is_asked() -> None:
    """A method that drops, folds or rescales them, and folds into them, leaves them as they were."""
    x = torch.randn(4, 3)
    tokens = Tokens.pack(x, Spans.of([4]), prefix=1)
    for into, weight in (
        ([-1, 1, 2, 3], [1.0, 1, 1, 1]),  # dropped
        ([2, 1, 2, 3], [0.5, 1, 1, 1]),  # folded into another
        ([0, 1, 2, 3], [7.0, 1, 1, 1]),  # rescaled
        ([0, 0, 2, 3], [1.0, 1, 1, 1]),  # another folded into it
    ):
        out = compact(tokens, Selection(torch.tensor(into), torch.tensor(weight)))
        assert torch.equal(out.first(), x[:1])
        assert out.position[0] == 0
        assert out.size[0] == 1
        assert out.protected[0]
        assert torch.equal(out.x[-2:], x[-2:])


def test_merging_keeps_the_sum_of_sizes_and_the_order() -> None:
    """Identities over rounds of random folds: sizes of a sample sum to its first length, positions ascend."""
    generator = torch.Generator().manual_seed(3)
    lengths = [9, 2, 14, 7]
    tokens = Tokens.pack(torch.randn(sum(lengths), 5, generator=generator), Spans.of(lengths), prefix=1)
    for _ in range(3):
        into = torch.arange(tokens.spans.total)
        for start, length in zip(tokens.spans.starts, tokens.spans.lengths, strict=True):
            stays = start + torch.randperm(length, generator=generator)[: 1 + length // 2]
            stays = torch.cat([stays, torch.tensor([start])])
            for token in range(start, start + length):
                if token not in stays:
                    free = stays[stays != start]
                    into[token] = free[0] if len(free) else token
        tokens = compact(tokens, Selection(into, torch.rand(len(into), generator=generator)))
        assert tokens.spans.sum(tokens.size).tolist() == lengths
        assert (tokens.position == -1).equal(tokens.size > 1)
        for part in tokens.position.split(list(tokens.spans.lengths)):
            own = part[part >= 0]
            assert torch.equal(own, own.sort().values)
    assert tokens.spans.total < sum(lengths)


def test_a_selection_that_keeps_all_changes_nothing() -> None:
    """The identity."""
    tokens = Tokens.pack(torch.randn(7, 3), Spans.of([3, 4]), prefix=1)
    out = compact(tokens, Selection(torch.arange(7), torch.ones(7)))
    assert torch.equal(out.x, tokens.x)
    assert out.spans == tokens.spans
    assert torch.equal(out.position, tokens.position)


def test_gradients_of_a_merge_are_the_weights_and_the_tokens() -> None:
    """Finite differences in float64."""
    into = torch.tensor([0, 1, 1, 3, 4, 4])

    def merge(x: Tensor, weight: Tensor) -> Tensor:
        return compact(Tokens.pack(x, Spans.of([4, 2]), prefix=1), Selection(into, weight)).x

    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(merge, (x, weight))


def test_indices_of_inference_may_serve_training() -> None:
    """An index first asked for in inference mode, and one that a compaction left, are part of a backward pass."""
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    spans = Spans.of([2, 3])
    with torch.inference_mode():
        spans.sample_index(x.device)
        left = compact(Tokens.pack(x, spans, prefix=1), Selection(torch.arange(5), torch.ones(5))).spans
        left.start_index(x.device)
    for each in (spans, left):
        values = torch.ones(2, requires_grad=True)
        each.spread(values).sum().backward()
        assert values.grad is not None
        assert values.grad.tolist() == [2, 3]


def test_many_tokens_are_merged_exactly_in_half_precision() -> None:
    """The merge of 4,000 equal tokens in bf16 is that token; adding them up in bf16 would stop early."""
    x = torch.full((4001, 3), 1.5, dtype=torch.bfloat16)
    into = torch.ones(4001, dtype=torch.int64).index_fill(0, torch.tensor([0]), 0)
    weight = torch.full((4001,), 1 / 4000)
    found = compact(Tokens.pack(x, Spans.of([4001]), prefix=1), Selection(into, weight))
    assert found.x.dtype == torch.bfloat16
    torch.testing.assert_close(found.x, x[:2])


def test_a_slot_that_stays_whole_takes_more_in() -> None:
    """By hand: a slot of weight one and what is folded into it, beside one that changes alone and one that stays."""
    tokens = Tokens.pack(torch.tensor([[1.0], [2], [4], [8], [16]]), Spans.of([5]), prefix=1)
    found = compact(tokens, Selection(torch.tensor([0, 1, 1, 3, 4]), torch.tensor([1.0, 1, 0.5, 0.25, 1])))
    assert found.x.squeeze(1).tolist() == [1, 4, 2, 16]
    assert found.position.tolist() == [0, -1, 3, 4]
    assert found.size.tolist() == [1, 2, 1, 1]


@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_places_are_found_without_asking_the_device(density: float) -> None:
    """What `nonzero` finds, where the number is known: the way of devices that `compact` does not take on a CPU."""
    mask = torch.rand(50, generator=torch.Generator().manual_seed(0)) < density
    assert torch.equal(scattered_places(mask, int(mask.sum())), mask.nonzero().squeeze(1))
