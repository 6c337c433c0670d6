"""Padded batches against packed tokens: ranks and their ties, compaction, attention under masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from madtp_cli import attention
from madtp_cli.export.padded import (
    MERGED,
    NOTHING,
    Cut,
    PaddedBatch,
    attend,
    attend_with_statistics,
    compact,
    rank,
    split_heads,
)
from madtp_cli.export.selection import best, share_of
from madtp_cli.pruning.base import fuse
from madtp_cli.tokens import Spans, Tokens
from madtp_cli.tokens import compact as packed_compact

LENGTHS = (6, 9, 2)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def both(lengths: tuple[int, ...] = LENGTHS, *, causal: bool = False) -> tuple[Tokens, PaddedBatch]:
    """Make the same ragged tokens, packed and as a padded batch; in a causal tower the last is protected too."""
    spans, width = Spans.of(lengths), max(lengths)
    x = drawn(spans.total, 8)
    here = torch.cat([torch.arange(length) for length in lengths])
    ends = here == spans.spread(torch.tensor(lengths)) - 1
    tokens = Tokens.pack(x, spans, (here == 0) | ends if causal else None, causal=causal, prefix=1)
    wide = spans.pad(x).reshape(len(lengths), width, 8)
    return tokens, PaddedBatch.of_lengths(wide, torch.tensor(lengths), ends=causal, causal=causal)


def test_ranks_break_ties_by_place() -> None:
    """By hand: 5 before 3, the three 3s in order, -inf last; and as packed tokens rank."""
    scores = torch.tensor([[3.0, 5.0, 3.0, float("-inf"), 3.0]])
    assert rank(scores).tolist() == [[1, 0, 2, 4, 3]]
    assert rank(scores)[0].tolist() == Spans.of([5]).rank(scores[0]).tolist()


def test_the_best_is_the_first_of_equals_and_free() -> None:
    scores = torch.tensor([[9.0, 2.0, 7.0, 7.0]])
    assert best(scores, torch.tensor([[False, True, True, True]])).tolist() == [[False, False, True, False]]


def test_shares_round_as_packed_ones_do() -> None:
    """Half to even, and never none: 5 and 3 free tokens at a half keep 2 and 2, one at a tenth keeps one."""
    free = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    assert share_of(free, 0.5).tolist() == [[2], [2]]
    assert share_of(free[:, :1], 0.9).tolist() == [[1], [1]]


@pytest.mark.parametrize("causal", [False, True], ids=["class token", "causal"])
def test_compaction_is_that_of_packed_tokens(causal: bool) -> None:
    """The same tokens stay in the same order, the others are one of the same value; ragged samples end in nothing."""
    tokens, padded_batch = both(causal=causal)
    keep, weight = drawn(len(tokens.x), 1)[:, 0] > 0, drawn(len(tokens.x), 2)[:, 0].abs()
    expected = packed_compact(tokens, fuse(keep, weight, tokens))
    wide = [tokens.spans.pad(each) for each in (keep.float(), weight)]
    found = compact(padded_batch, wide[0] > 0, wide[1], Cut())
    assert found.lengths.tolist() == list(expected.spans.lengths)
    assert found.mask is not None
    torch.testing.assert_close(found.x[found.mask], expected.x)
    assert found.position[found.mask].tolist() == expected.position.tolist()
    assert bool((found.position[~found.mask] == NOTHING).all())
    assert MERGED in found.position


def test_equal_samples_of_known_width_need_no_mask() -> None:
    """Two of five tokens kept: class token, two, and the three others in the place of the first of them."""
    tokens = PaddedBatch.of(drawn(2, 6, 4))
    keep = torch.tensor([[0, 0, 1, 0, 1, 0], [0, 1, 1, 0, 0, 0]]) > 0
    found = compact(tokens, keep, torch.ones(2, 6), Cut(quota=2, width=4, equal=True))
    assert found.mask is None
    assert found.position.tolist() == [[0, MERGED, 2, 4], [0, 1, 2, MERGED]]
    torch.testing.assert_close(found.x[0, 1], tokens.x[0, [1, 3, 5]].mean(0))
    torch.testing.assert_close(found.x[1, 3], tokens.x[1, 3:].mean(0))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_and_its_statistics_are_those_of_packed_tokens(causal: bool) -> None:
    """Output and both statistics of every real token, to 1e-5; padding is seen by none and counts for none."""
    tokens, padded_batch = both(causal=causal)
    states = [drawn(len(tokens.x), 8, part)[..., 0] for part in (1, 2, 3)]
    q, k, v = (each.unflatten(-1, (2, 4)) for each in states)
    out, statistics = attention.attend_with_statistics(
        q, k, v, tokens.spans, causal=causal, summary="last" if causal else "first"
    )
    heads = [split_heads(tokens.spans.pad(each).flatten(0, 1), 2, padded_batch) for each in states]
    found, ours = attend_with_statistics(heads[0], heads[1], heads[2], padded_batch)
    assert padded_batch.mask is not None
    torch.testing.assert_close(found.transpose(1, 2)[padded_batch.mask], out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.class_row[padded_batch.mask], statistics.class_row, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.received[padded_batch.mask], statistics.received, atol=1e-5, rtol=1e-5)
    assert torch.equal(attend(heads[0], heads[1], heads[2], padded_batch.mask, causal=causal), found)
