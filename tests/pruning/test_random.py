"""Random pruning: a share of every sample, drawn by position alone."""

from __future__ import annotations

import torch

from madtp_cli.pruning import Evidence, Random
from madtp_cli.tokens import Spans, Tokens, compact


def _run(lengths: list[int], strength: float, layer: int = 0, seed: int = 0) -> Tokens:
    tokens = Tokens.pack(torch.arange(float(sum(lengths)))[:, None], Spans.of(lengths), prefix=1)
    return compact(tokens, Random(seed).select(Evidence(tokens, layer, None, None), strength))


def _positions(tokens: Tokens) -> list[list[int]]:
    return [part.tolist() for part in tokens.position.split(list(tokens.spans.lengths))]


def test_every_sample_keeps_the_rounded_share_and_one_merged_token() -> None:
    """Counts by hand: class token, round(share * n), merged token; nothing where at most one token would go."""
    assert _run([11, 21, 3, 1], 0.7).spans.lengths == (1 + 3 + 1, 1 + 6 + 1, 3, 1)
    assert _run([11, 21], 0.0).spans.lengths == (11, 21)


def test_a_sample_keeps_the_same_tokens_in_any_batch() -> None:
    """The sample alone."""
    (alone,) = _positions(_run([31], 0.6))
    assert _positions(_run([17, 31, 40], 0.6))[1] == alone
    assert _positions(_run([31, 31], 0.6)) == [alone, alone]


def test_draws_differ_between_layers_and_seeds_and_repeat_within() -> None:
    """Equal calls agree; 30 tokens in another layer or with another seed do not."""
    first = _positions(_run([31], 0.5))
    assert _positions(_run([31], 0.5)) == first
    assert _positions(_run([31], 0.5, layer=1)) != first
    assert _positions(_run([31], 0.5, seed=1)) != first


def test_a_stronger_draw_keeps_a_subset() -> None:
    """The tokens kept at 0.8 are among those kept at 0.4, since both rank one draw."""
    mild, strong = (set(_positions(_run([41], strength))[0]) for strength in (0.4, 0.8))
    assert strong < mild


def test_the_rest_is_merged_uniformly() -> None:
    """The merged token is the plain mean of those that went."""
    out = _run([31], 0.5)
    kept = set(out.position.tolist())
    gone = [float(p) for p in range(31) if p not in kept]
    torch.testing.assert_close(out.x[out.position == -1].squeeze(), torch.tensor(sum(gone) / len(gone)))


def test_merged_tokens_may_be_pruned_again() -> None:
    """Two rounds keep the sum of sizes."""
    tokens = Tokens.pack(torch.randn(40, 2), Spans.of([19, 21]), prefix=1)
    for layer in range(2):
        tokens = compact(tokens, Random().select(Evidence(tokens, layer, None, None), 0.5))
    assert tokens.spans.sum(tokens.size).tolist() == [19, 21]
    assert tokens.spans.lengths == (1 + round(10 * 0.5) + 1, 1 + round(11 * 0.5) + 1)
