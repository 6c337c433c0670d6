"""MADTP's variants against the published formulas written out in plain numbers, sample by sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

import pytest
import torch
from torch import Tensor

from madtp_cli.attention import Statistics
from madtp_cli.pruning import Evidence, Madtp
from madtp_cli.pruning.madtp import Variant
from madtp_cli.tokens import Selection, Spans, Tokens, compact

Kind = Literal["adaptive", "scheduled"]
K, DIM = 6, 16
VARIANTS = pytest.mark.parametrize("variant", ["normalised", "paper", "released"])
BOTH = pytest.mark.parametrize("lengths", [[13, 13, 13, 13], [9, 20, 2, 14, 5, 1]], ids=["uniform", "ragged"])
GRID = [i / 20 for i in range(1, 20)]


def _evidence(lengths: list[int], seed: int = 0) -> Evidence:
    """Draw statistics of a plausible size; every sample's numbers depend on its place in the list alone."""
    rows = []
    for place, n in enumerate(lengths):
        generator = torch.Generator().manual_seed(seed * 100 + place)
        rows.append(
            (
                torch.randn(n, generator=generator).exp() / 4,
                torch.randn(n, generator=generator).exp(),
                torch.randn(n, K, generator=generator) * 2,
            )
        )
    class_row, received, guidance = (torch.cat(parts) for parts in zip(*rows, strict=True))
    tokens = Tokens.pack(
        torch.randn(sum(lengths), 3, generator=torch.Generator().manual_seed(9)), Spans.of(lengths), prefix=1
    )
    return Evidence(tokens, 0, Statistics(class_row, received), guidance)


def _alone(evidence: Evidence, row: int) -> Evidence:
    """Cut one sample out of a batch."""
    assert evidence.statistics is not None
    assert evidence.guidance is not None
    assert evidence.statistics.class_row is not None
    start, length = evidence.tokens.spans.starts[row], evidence.tokens.spans.lengths[row]
    own = slice(start, start + length)
    return Evidence(
        Tokens.pack(evidence.tokens.x[own], Spans.of([length]), prefix=1),
        0,
        Statistics(evidence.statistics.class_row[own], evidence.statistics.received[own]),
        evidence.guidance[own],
    )


@dataclass
class Sample:
    """One sample's scores and threshold by method.md sections 3 and 4; index 0 is the first patch."""

    tis: list[float]
    theta: float

    def kept(self, m: float) -> list[int]:
        return [j for j, score in enumerate(self.tis) if score > m * self.theta]

    def best(self) -> list[int]:
        return sorted(range(len(self.tis)), key=lambda j: -self.tis[j])


def _sample(evidence: Evidence, row: int, variant: str, temperature: float) -> Sample:
    one = _alone(evidence, row)
    assert one.statistics is not None
    assert one.statistics.class_row is not None
    assert one.guidance is not None
    z = [[value / math.sqrt(DIM) if variant == "normalised" else value for value in r] for r in one.guidance.tolist()]
    z = z[1:]
    s_cls = one.statistics.class_row.tolist()[1:]
    s_self = one.statistics.received.tolist()[1:]
    s_token = [max(r) for r in z]
    s_self = [s / sum(s_self) for s in s_self]
    if variant == "normalised":
        s_cls = [s / sum(s_cls) for s in s_cls]
        s_token = [math.exp(s) for s in s_token]
    s_token = [s / sum(s_token) for s in s_token]
    tis = [(a + b + c) / 3 for a, b, c in zip(s_cls, s_self, s_token, strict=True)]
    thetas = []
    for k in range(K):
        w = [math.exp(r[k] / temperature) for r in z]
        thetas.append(sum(a * b for a, b in zip(w, tis, strict=True)) / sum(w))
    return Sample(tis, min(thetas))


def _expected(evidence: Evidence, variant: str, temperature: float, strength: float) -> tuple[list[int], list[float]]:
    """Return `into` and `weight` by plain loops."""
    lengths, m = evidence.tokens.spans.lengths, strength / (1 - strength)
    samples = {r: _sample(evidence, r, variant, temperature) for r, n in enumerate(lengths) if n > 1}
    kept = {row: sample.kept(m) for row, sample in samples.items()}
    best = {row: sample.best() for row, sample in samples.items()}
    for row in samples:
        if not kept[row] and (variant == "normalised" or strength > 0.5):
            kept[row] = best[row][:1]
    if variant == "released":
        most = max(len(k) for k in kept.values())
        kept = {row: best[row][:most] for row in samples}
    into, weight = list(range(sum(lengths))), [1.0] * sum(lengths)
    for row, sample in samples.items():
        first = evidence.tokens.spans.starts[row] + 1
        gone = [j for j in range(len(sample.tis)) if j not in kept[row]]
        if len(gone) < 2 or not kept[row]:
            continue
        for j in gone:
            into[first + j] = first + gone[0]
            weight[first + j] = sample.tis[j] / sum(sample.tis[g] for g in gone)
    return into, weight


def _kept(tokens: Tokens, selection: Selection) -> list[int]:
    """Count each sample's tokens after compaction."""
    return list(compact(tokens, selection).spans.lengths)


@VARIANTS
@BOTH
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("strength", [0.4, 0.5, 0.65])
def test_selection_follows_the_published_formulas(
    variant: Variant, lengths: list[int], temperature: float, strength: float
) -> None:
    """Plain loops over samples and tokens written from method.md; strength 0.5 is the published threshold, m = 1."""
    evidence = _evidence(lengths)
    selection = Madtp(DIM, variant=variant, temperature=temperature).select(evidence, strength)
    into, weight = _expected(evidence, variant, temperature, strength)
    assert selection.into.tolist() == into
    torch.testing.assert_close(selection.weight, torch.tensor(weight), atol=1e-5, rtol=1e-4)
    assert strength < 0.5 or into != list(range(len(into)))


def test_released_variant_by_hand() -> None:
    """Two samples with one flat alignment token: thresholds are mean scores .2333 and .225, so they keep two and one.

    Scores: .3833 .25 .15 .15 and .4167 .1833 .15 .15. `paper` prunes per sample; `released` gives the second its mate's
    count and so its second-best token as well.
    """
    tokens = Tokens.pack(torch.arange(10.0)[:, None], Spans.of([5, 5]), prefix=1)
    class_row = torch.tensor([0.2, 0.4, 0.2, 0.1, 0.1, 0.3, 0.4, 0.1, 0.1, 0.1])
    received = torch.tensor([9.0, 5, 3, 1, 1, 9, 6, 2, 1, 1])
    evidence = Evidence(tokens, 0, Statistics(class_row, received), torch.ones(10, 1))
    paper = compact(tokens, Madtp(1, variant="paper").select(evidence, 0.5))
    assert paper.position.tolist() == [0, 1, 2, -1, 0, 1, -1]
    merged = (0.55 * 7 + 0.45 * 8 + 0.45 * 9) / 1.45
    torch.testing.assert_close(paper.x.squeeze(1), torch.tensor([0, 1, 2, 3.5, 5, 6, merged]))
    released = compact(tokens, Madtp(1, variant="released").select(evidence, 0.5))
    assert released.position.tolist() == [0, 1, 2, -1, 0, 1, 2, -1]
    torch.testing.assert_close(released.x.squeeze(1), torch.tensor([0, 1, 2, 3.5, 5, 6, 7, 8.5]))


@BOTH
def test_released_variant_keeps_one_count_for_the_batch(lengths: list[int]) -> None:
    """The most that any sample keeps under `paper`, or all a sample has."""
    evidence = _evidence(lengths)
    own = [len(_sample(evidence, r, "paper", 1.0).kept(1)) for r, n in enumerate(lengths) if n > 1]
    counts = _kept(evidence.tokens, Madtp(DIM, variant="released").select(evidence, 0.5))
    assert counts == [min(n, max(own) + 2) for n in lengths]
    assert len(set(own)) > 1


@BOTH
@pytest.mark.parametrize("variant", ["normalised", "paper"])
@pytest.mark.parametrize("kind", ["adaptive", "scheduled"])
def test_a_sample_is_pruned_alike_in_any_batch(variant: Variant, kind: Kind, lengths: list[int]) -> None:
    """The sample alone."""
    method = Madtp(DIM, variant=variant, tokens=kind)
    evidence = _evidence(lengths)
    together = compact(evidence.tokens, method.select(evidence, 0.6))
    for row, part in enumerate(together.x.split(list(together.spans.lengths))):
        one = _alone(evidence, row)
        torch.testing.assert_close(part, compact(one.tokens, method.select(one, 0.6)).x)


@BOTH
@pytest.mark.parametrize("kind", ["adaptive", "scheduled"])
@pytest.mark.parametrize("seed", range(5))
def test_a_stronger_knob_never_keeps_more(lengths: list[int], kind: Kind, seed: int) -> None:
    """Counts fall monotonically from everything to class token, best token and merged token."""
    method = Madtp(DIM, tokens=kind)
    evidence = _evidence(lengths, seed)
    counts = [_kept(evidence.tokens, method.select(evidence, strength)) for strength in [1e-6, *GRID, 0.999]]
    assert counts[0] == lengths
    assert counts[-1] == [min(n, 3) for n in lengths]
    for milder, stronger in pairwise(counts):
        assert all(a >= b for a, b in zip(milder, stronger, strict=True))


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_published_variants_fall_to_the_least_beyond_their_threshold(variant: Variant) -> None:
    """Where a threshold above every score keeps all as published, a stronger knob keeps the best token alone."""
    evidence = _evidence([13, 13])
    method = Madtp(DIM, variant=variant)
    assert _kept(evidence.tokens, method.select(evidence, 0.99)) == [3, 3]
    counts = [sum(_kept(evidence.tokens, method.select(evidence, s))) for s in GRID]
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_published_variants_keep_all_where_nothing_would_be_kept(variant: Variant) -> None:
    """Equal scores at the published threshold: none is above their mean, so none goes (method.md section 4)."""
    tokens = Tokens.pack(torch.randn(5, 2), Spans.of([5]), prefix=1)
    evidence = Evidence(tokens, 0, Statistics(torch.full((5,), 0.25), torch.ones(5)), torch.ones(5, 1))
    assert _kept(tokens, Madtp(1, variant=variant).select(evidence, 0.5)) == [5]
    assert _kept(tokens, Madtp(1).select(evidence, 0.5)) == [3]


def test_released_variant_prunes_to_a_least_count() -> None:
    """Where `paper` keeps 3 and 2, 3 of both stay; with a least count of 4 all do, unless the knob asks for more."""
    tokens = Tokens.pack(torch.randn(14, 2), Spans.of([7, 7]), prefix=1)
    class_row = torch.tensor([0.0, 9, 8, 7, 1, 1, 1, 0, 9, 8, 1, 1, 1, 1])
    evidence = Evidence(tokens, 0, Statistics(class_row, torch.ones(14)), torch.ones(14, 1))
    assert _kept(tokens, Madtp(1, variant="paper").select(evidence, 0.5)) == [5, 4]
    for least, strength, counts in ((3, 0.5, [5, 5]), (4, 0.5, [7, 7]), (4, 0.99, [3, 3])):
        method = Madtp(1, variant="released", least=least)
        assert _kept(tokens, method.select(evidence, strength)) == counts


@BOTH
@pytest.mark.parametrize("strength", [0.2, 0.5, 0.8])
def test_scheduled_keeps_the_best_share(lengths: list[int], strength: float) -> None:
    """round(share * n) tokens of the highest score by the plain loops, and one merged token where two or more go."""
    evidence = _evidence(lengths)
    out = compact(evidence.tokens, Madtp(DIM, tokens="scheduled").select(evidence, strength))
    for row, part in enumerate(out.position.split(list(out.spans.lengths))):
        n = lengths[row] - 1
        quota = max(1, round((1 - strength) * n))
        if n - quota < 2:
            assert part.tolist() == list(range(n + 1))
            continue
        best = _sample(evidence, row, "normalised", 1.0).best()[:quota]
        assert [p for p in part.tolist() if p > 0] == sorted(j + 1 for j in best)
        assert (part == -1).sum() == 1


def test_protected_tokens_beyond_the_class_token_take_no_part() -> None:
    """A prompt token that is protected stays and leaves the others' selection as if it were not there."""
    evidence = _evidence([10])
    assert evidence.statistics is not None
    assert evidence.guidance is not None
    protected = evidence.tokens.protected.clone()
    protected[4] = True
    assert evidence.statistics.class_row is not None
    rest = torch.arange(10) != 4
    without = Evidence(
        Tokens.pack(evidence.tokens.x[rest], Spans.of([9]), prefix=1),
        0,
        Statistics(evidence.statistics.class_row[rest], evidence.statistics.received[rest]),
        evidence.guidance[rest],
    )
    with_prompt = replace(evidence, tokens=replace(evidence.tokens, protected=protected))
    for variant in get_args(Variant):
        method = Madtp(DIM, variant=variant)
        out = compact(with_prompt.tokens, method.select(with_prompt, 0.5))
        expected = compact(without.tokens, method.select(without, 0.5))
        assert len(expected.x) < 9
        torch.testing.assert_close(out.x[out.position != 4], expected.x)
        assert torch.equal(out.x[out.position == 4], evidence.tokens.x[4:5])


@VARIANTS
@pytest.mark.parametrize("strength", [0.3, 0.5, 0.9])
def test_a_class_token_that_sees_itself_alone_leaves_finite_tokens(variant: Variant, strength: float) -> None:
    """Class attention saturated at one underflows to zero elsewhere: everything that comes out is a number."""
    evidence = _evidence([13, 7, 1])
    assert evidence.statistics is not None
    saturated = replace(evidence, statistics=replace(evidence.statistics, class_row=evidence.tokens.protected.float()))
    out = compact(evidence.tokens, Madtp(DIM, variant=variant).select(saturated, strength))
    assert out.x.isfinite().all()


def _merged_gradient(*, merge_gradient: bool, kind: Kind = "adaptive") -> tuple[Selection, Tensor]:
    evidence = _evidence([13, 9])
    assert evidence.guidance is not None
    guidance = evidence.guidance.requires_grad_()
    method = Madtp(DIM, tokens=kind, merge_gradient=merge_gradient)
    return method.select(evidence, 0.5), guidance


@pytest.mark.parametrize("kind", ["adaptive", "scheduled"])
def test_merge_weights_carry_gradient_only_if_asked(kind: Kind) -> None:
    """None by default; with merge_gradient, that of the softmax of the best logits, checked by finite differences."""
    selection, guidance = _merged_gradient(merge_gradient=False, kind=kind)
    assert not selection.weight.requires_grad
    selection, guidance = _merged_gradient(merge_gradient=True, kind=kind)
    probe = torch.randn(len(selection.weight), generator=torch.Generator().manual_seed(4))
    (gradient,) = torch.autograd.grad((selection.weight * probe).sum(), guidance)
    assert gradient.abs().sum() > 0
    evidence = _evidence([13, 9])
    assert evidence.guidance is not None
    method = Madtp(DIM, tokens=kind)
    token, k = divmod(int(gradient.abs().argmax()), K)
    values = []
    for step in (1e-2, -1e-2):
        moved = evidence.guidance.clone()
        moved[token, k] += step
        values.append((method.select(replace(evidence, guidance=moved), 0.5).weight * probe).sum())
    torch.testing.assert_close(gradient[token, k], (values[0] - values[1]) / 2e-2, atol=1e-4, rtol=1e-2)


def test_no_gradient_is_made_where_none_is_wanted() -> None:
    """Under no_grad, merge_gradient changes nothing."""
    with torch.no_grad():
        selection, _ = _merged_gradient(merge_gradient=True)
    assert not selection.weight.requires_grad
