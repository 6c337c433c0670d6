"""What methods share: equal shares, fusing the rest into one token, and its guards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from madtp_cli.pruning import PRUNERS
from madtp_cli.pruning.base import fuse, keep_share, normalise
from madtp_cli.tokens import Spans, Tokens, compact

BOTH = pytest.mark.parametrize("lengths", [[9, 9, 9], [4, 12, 1, 2, 9]], ids=["uniform", "ragged"])


def _tokens(lengths: list[int], width: int = 1) -> Tokens:
    return Tokens.pack(torch.arange(float(sum(lengths)))[:, None].expand(-1, width), Spans.of(lengths), prefix=1)


@BOTH
@pytest.mark.parametrize("strength", [0.0, 0.1, 0.3, 0.5, 0.77, 0.999])
def test_keep_share_keeps_the_best_rounded_share_of_every_sample(lengths: list[int], strength: float) -> None:
    """The count is max(1, round(share * n)) of the n unprotected tokens and no other token scores higher."""
    tokens = _tokens(lengths)
    scores = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(0))
    keep = keep_share(scores, tokens, strength) & ~tokens.protected
    for part, score in zip(keep.split(lengths), scores.split(lengths), strict=True):
        n = len(part) - 1
        assert part.sum() == min(n, max(1, round((1 - strength) * n)))
        assert n == 0 or part.sum() == n or score[part].min() > score[1:][~part[1:]].max()


def test_fuse_by_hand() -> None:
    """One sample fuses three tokens by shares of 1/8, 2/8 and 5/8 into the first one's slot; all written out."""
    tokens = _tokens([6])
    keep = torch.tensor([False, True, False, False, True, False])
    selection = fuse(keep, torch.tensor([9.0, 9, 1, 2, 9, 5]), tokens)
    assert selection.into.tolist() == [0, 1, 2, 2, 4, 2]
    assert selection.weight.tolist() == [1, 1, 1 / 8, 2 / 8, 1, 5 / 8]
    out = compact(tokens, selection)
    assert out.x.squeeze(1).tolist() == [0, 1, (2 + 2 * 3 + 5 * 5) / 8, 4]
    assert out.position.tolist() == [0, 1, -1, 4]
    assert out.size.tolist() == [1, 1, 3, 1]


def test_fuse_in_a_causal_tower_takes_the_last_slot() -> None:
    """Two samples by hand: no token before the merged one stood after any of its parts."""
    tokens = replace(_tokens([6, 4]), causal=True)
    keep = torch.tensor([False, True, False, False, True, False, False, False, False, True])
    selection = fuse(keep, torch.tensor([9.0, 9, 1, 2, 9, 5, 0, 3, 1, 0]), tokens)
    assert selection.into.tolist() == [0, 1, 5, 5, 4, 5, 6, 8, 8, 9]
    out = compact(tokens, selection)
    assert out.x.squeeze(1).tolist() == [0, 1, 4, (2 + 2 * 3 + 5 * 5) / 8, 6, (3 * 7 + 8) / 4, 9]
    assert out.position.tolist() == [0, 1, 4, -1, 0, -1, 3]


@pytest.mark.parametrize("beside", [[], [5]], ids=["alone", "beside one that prunes"])
@pytest.mark.parametrize(
    ("keep", "why"),
    [
        ([True] * 5, "nothing would go"),
        ([True, True, False, True, True], "one would go, and the merged token takes its slot"),
        ([True, False, False, False, False], "nothing would be kept"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_sample_stays_whole_where_pruning_saves_nothing(keep: list[bool], why: str, beside: list[int]) -> None:
    """The identity for that sample, whatever its batch mate does and however little its tokens weigh."""
    tokens = _tokens([5, *beside])
    flags = torch.tensor(keep + [True, True, False, False, False][: sum(beside)])
    selection = fuse(flags, torch.zeros(len(flags)), tokens)
    assert selection.into[:5].tolist() == [0, 1, 2, 3, 4], why
    assert selection.weight[:5].tolist() == [1] * 5
    assert selection.into[5:].tolist() == [5, 6, 7, 7, 7][: sum(beside)]


def test_weights_that_sum_to_nothing_stay_finite() -> None:
    """Zero weights give a zero token, never nan."""
    selection = fuse(torch.tensor([True, True, False, False]), torch.zeros(4), _tokens([4]))
    assert selection.weight.tolist() == [1, 1, 0, 0]


@BOTH
def test_normalise_makes_shares_of_the_unprotected(lengths: list[int]) -> None:
    """Shares sum to one in every sample that has any, and protected tokens get none."""
    tokens = _tokens(lengths)
    shares = normalise(torch.rand(sum(lengths), generator=torch.Generator().manual_seed(0)), tokens)
    assert not shares[tokens.protected].any()
    expected = torch.tensor([float(n > 1) for n in lengths])
    torch.testing.assert_close(tokens.spans.sum(shares), expected)


def test_normalise_of_zeros_is_zero() -> None:
    """A class token that attends to itself alone leaves scores of zero, not nan."""
    assert normalise(torch.tensor([1.0, 0, 0]), _tokens([3])).tolist() == [0, 0, 0]


def test_every_method_says_what_it_needs() -> None:
    """The registry's names, and needs made of known words only."""
    assert set(PRUNERS) == {"madtp", "random"}
    for make, options in ((PRUNERS["madtp"], {"dim": 4}), (PRUNERS["random"], {})):
        assert make(**options).needs <= {"class_row", "received", "guidance"}
