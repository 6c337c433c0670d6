"""Attention inside spans: every backend against a loop over samples and heads, and the statistics by definition."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from madtp_cli import attention
from madtp_cli.attention import (
    Backend,
    Statistics,
    Summary,
    attend,
    attend_with_statistics,
    padded,
    probabilities,
    received,
    statistics,
)
from madtp_cli.tokens import Spans
from tests.attention import definition

HEADS, WIDTH = 3, 4
BACKENDS = pytest.mark.parametrize("backend", ["auto", "segments", "padded"], indirect=True)
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
SUMMARY = pytest.mark.parametrize("summary", ["first", "last"])
SPANS = pytest.mark.parametrize("spans", [Spans.of([6, 6, 6]), Spans.of([5, 2, 7, 2, 9, 1])], ids=["uniform", "ragged"])


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Put a backend in force for one test."""
    with attention.backend(request.param):
        yield request.param


def _tensors(*lengths: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, HEADS, WIDTH, generator=generator, dtype=torch.float64).to(dtype) for n in lengths]


def _probability(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    """Return one head's probabilities [Nq, Nk]; causal ones row by row over the keys so far."""
    scores = q @ k.T / WIDTH**0.5
    if not causal:
        return scores.softmax(-1)
    rows = [torch.cat([row[: i + 1].softmax(-1), torch.zeros_like(row[i + 1 :])]) for i, row in enumerate(scores)]
    return torch.stack(rows)


def _loop(q: Tensor, k: Tensor, v: Tensor, queries: Spans, keys: Spans, causal: bool = False) -> Tensor:
    """Attend sample by sample and head by head."""
    out = torch.zeros_like(q)
    for row in range(len(queries)):
        a, b = queries.starts[row], keys.starts[row]
        mine, theirs = slice(a, a + queries.lengths[row]), slice(b, b + keys.lengths[row])
        for head in range(HEADS):
            out[mine, head] = _probability(q[mine, head], k[theirs, head], causal) @ v[theirs, head]
    return out


def _loop_statistics(
    q: Tensor, k: Tensor, v: Tensor, spans: Spans, causal: bool = False, summary: Summary = "first"
) -> tuple[Tensor, Tensor]:
    """Score every token from the definition (method.md section 3), one number at a time."""
    class_row, received = [], []
    out = _loop(q, k, v, spans, spans, causal)
    for start, length in zip(spans.starts, spans.lengths, strict=True):
        own = slice(start, start + length)
        p = torch.stack([_probability(q[own, h], k[own, h], causal) for h in range(HEADS)])
        first = {"first": 0, "last": length - 1}[summary]
        for j in range(length):
            norms = [out[start + j, h].norm().item() for h in range(HEADS)]
            class_row.append(sum(p[h, first, j].item() * norms[h] / sum(norms) for h in range(HEADS)))
            received.append(sum(max(p[h, i, j].item() for h in range(HEADS)) for i in range(length) if i != first))
    return torch.tensor(class_row), torch.tensor(received)


def _check_with_gradient(q: Tensor, k: Tensor, v: Tensor, queries: Spans, keys: Spans, causal: bool = False) -> None:
    ours = [t.clone().requires_grad_() for t in (q, k, v)]
    loop = [t.clone().requires_grad_() for t in (q, k, v)]
    out = attend(ours[0], ours[1], ours[2], queries, keys, causal=causal)
    expected = _loop(loop[0], loop[1], loop[2], queries, keys, causal)
    torch.testing.assert_close(out, expected)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for mine, theirs in zip(ours, loop, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    with torch.no_grad():
        out = attend(q, k, v, queries, keys, causal=causal)
        torch.testing.assert_close(out, expected.detach())


@BACKENDS
@SPANS
@CAUSAL
def test_self_attention_is_a_loop_over_samples(spans: Spans, backend: Backend, causal: bool) -> None:
    """A plain softmax per sample and head in float64, forward and gradient."""
    q, k, v = _tensors(spans.total, spans.total, spans.total)
    _check_with_gradient(q, k, v, spans, spans, causal)


@BACKENDS
@SPANS
def test_a_causal_query_sees_nothing_after_it(spans: Spans, backend: Backend) -> None:
    """The identity: changing the last key and value of every span changes its last output alone, to the bit."""
    q, k, v = _tensors(spans.total, spans.total, spans.total)
    ends = spans.end_index(q.device)
    before, _ = attend_with_statistics(q, k, v, spans, causal=True, summary="last")
    k, v = k.index_fill(0, ends, 7.0), v.index_fill(0, ends, 7.0)
    after, _ = attend_with_statistics(q, k, v, spans, causal=True, summary="last")
    earlier = torch.ones(spans.total, dtype=torch.bool).index_fill(0, ends, value=False)
    assert torch.equal(after[earlier], before[earlier])
    assert not torch.isclose(after[~earlier], before[~earlier]).all(-1).any()


@BACKENDS
@pytest.mark.parametrize(
    "spans", [Spans((2,), (3,)), Spans((5, 0), (3, 5)), Spans.of([3, 4])], ids=["gap", "order", "rest"]
)
def test_queries_lie_end_to_end(spans: Spans, backend: Backend) -> None:
    """Spans that leave queries out or change their order have no packed result, and are refused by every backend."""
    (q,) = _tensors(8)
    with pytest.raises(ValueError, match="must lie end to end and hold all of them"):
        attend(q, q, q, spans, spans)
    with pytest.raises(ValueError, match="8 packed tokens"):
        attend_with_statistics(q, q, q, spans)


def test_causal_attention_is_within_one_sequence() -> None:
    """Spans of unequal lengths have no common order, and are refused."""
    q, k = _tensors(2, 3)
    with pytest.raises(ValueError, match="equal lengths"):
        attend(q, k, k, Spans.of([2]), Spans.of([3]), causal=True)


@BACKENDS
@pytest.mark.parametrize("lengths", [[4, 4, 4], [3, 5, 2]], ids=["uniform", "ragged"])
@pytest.mark.parametrize("rows", [[0, 0, 1, 1], [2, 0, 0, 1], [0, 1, 2, 2]])
def test_cross_attention_may_share_keys(rows: list[int], lengths: list[int], backend: Backend) -> None:
    """A plain softmax per sample and head in float64, forward and gradient, where samples read the same span."""
    queries, keys = Spans.of([2, 6, 1, 2]), Spans.of(lengths)
    q, k, v = _tensors(queries.total, keys.total, keys.total)
    _check_with_gradient(q, k, v, queries, keys.pick(rows))


@BACKENDS
def test_keys_may_be_the_first_of_many(backend: Backend) -> None:
    """Uniform spans that do not reach the end of the packed keys read their own keys: a loop over samples."""
    queries, keys = Spans.of([2, 2]), Spans.of([3, 3, 3, 3])
    q, k, v = _tensors(queries.total, keys.total, keys.total)
    _check_with_gradient(q, k, v, queries, keys.pick([0, 1]))


@BACKENDS
@SPANS
@CAUSAL
@SUMMARY
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_statistics_follow_their_definition(
    spans: Spans, backend: Backend, causal: bool, summary: Summary, grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sums of method.md section 3 taken one number at a time, whatever the chunks they are computed in.

    Queries one by one, spans one by one, two at a time (the last alone, if need be), and all at once.
    """
    q, k, v = _tensors(spans.total, spans.total, spans.total)
    class_row, received = _loop_statistics(q, k, v, spans, causal, summary)
    expected = _loop(q, k, v, spans, spans, causal)
    two = 2 * q.shape[1] * spans.longest**2
    for block, batch in ((1, 1), (300, 300), (1 << 20, 1), (1 << 20, two), (1 << 20, 1 << 20)):
        monkeypatch.setattr(statistics, "BLOCK_ELEMENTS", block)
        monkeypatch.setattr(statistics, "BATCH_ELEMENTS", batch)
        with torch.set_grad_enabled(grad):
            out, found = attend_with_statistics(q.requires_grad_(grad), k, v, spans, causal=causal, summary=summary)
        torch.testing.assert_close(out.detach(), expected)
        torch.testing.assert_close(found.class_row, class_row)
        torch.testing.assert_close(found.received, received)


def test_statistics_carry_no_gradient_but_the_output_does() -> None:
    """The contract of Statistics; the output's gradient is that of plain attention."""
    spans = Spans.of([3, 5])
    q, k, v = _tensors(8, 8, 8)
    ours, plain = q.clone().requires_grad_(), q.clone().requires_grad_()
    out, found = attend_with_statistics(ours, k, v, spans)
    assert found.class_row is not None
    assert not found.class_row.requires_grad
    assert not found.received.requires_grad
    out.square().sum().backward()
    attend(plain, k, v, spans, spans).square().sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad)


@SPANS
def test_scores_of_a_class_token_are_shares(spans: Spans) -> None:
    """With one head the class row is the class token's probabilities, which sum to one per sample."""
    q, k, v = (t[:, :1] for t in _tensors(spans.total, spans.total, spans.total))
    _, found = attend_with_statistics(q, k, v, spans)
    assert found.class_row is not None
    torch.testing.assert_close(spans.sum(found.class_row), torch.ones(len(spans)))


@BACKENDS
@SPANS
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_bf16_stays_close_to_float64(spans: Spans, backend: Backend, grad: bool) -> None:
    """The float64 loop on the same rounded inputs: outputs within 2e-2, statistics within 3e-2 of values near one."""
    q, k, v = _tensors(spans.total, spans.total, spans.total, dtype=torch.bfloat16)
    with torch.set_grad_enabled(grad):
        out, found = attend_with_statistics(q.requires_grad_(grad), k, v, spans)
        plain = attend(q, k, v, spans, spans)
    q, k, v = (t.detach().double() for t in (q, k, v))
    expected = _loop(q, k, v, spans, spans)
    class_row, received = _loop_statistics(q, k, v, spans)
    assert out.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), expected, atol=2e-2, rtol=0)
    torch.testing.assert_close(plain.double(), expected, atol=2e-2, rtol=0)
    assert isinstance(found, Statistics)
    assert found.class_row is not None
    assert found.class_row.dtype == found.received.dtype == torch.float32
    torch.testing.assert_close(found.class_row, class_row, atol=3e-2, rtol=0)
    torch.testing.assert_close(found.received, received, atol=3e-2, rtol=0)


@pytest.mark.parametrize("lengths", [[1, 1, 1], [2, 1, 3]])
def test_probabilities_are_a_softmax_per_query_and_head(lengths: list[int]) -> None:
    """Written out query by query, with zeros beyond a span's end; two query spans may read one key span."""
    queries, keys = Spans.of(lengths), Spans.of([3, 5, 2]).pick([1, 0, 1])
    (k,) = _tensors(10, dtype=torch.float32)
    (q,) = _tensors(queries.total, dtype=torch.float32, seed=1)
    out = probabilities(q, k, queries, keys)
    assert out.shape == (queries.total, HEADS, 5)
    for row, span in enumerate(queries.sample_index(q.device).tolist()):
        start, length = keys.starts[span], keys.lengths[span]
        for head in range(HEADS):
            expected = torch.zeros(5)
            expected[:length] = (k[start : start + length, head] @ q[row, head] / WIDTH**0.5).softmax(0)
            torch.testing.assert_close(out[row, head], expected)


def test_auto_pads_only_what_is_cheap_to_pad() -> None:
    """Hand arithmetic: 2 * excess * width against the fixed cost of one more padded batch."""
    equal, tiny, large = Spans.of([50, 50]), Spans.of([9, 8]), Spans.of([577, 100, 577, 99])
    assert padded.groups(equal, equal, "auto", 768) == [[0, 1]]
    assert padded.PADDED_OVERHEAD_MACS > 2 * (9 * 9 - 8 * 8) * 96
    assert padded.groups(tiny, tiny, "auto", 96) == [[0, 1]]
    assert padded.groups(tiny, tiny, "segments", 96) == [[0], [1]]
    assert padded.PADDED_OVERHEAD_MACS < 2 * (577**2 - 100**2) * 768
    assert padded.groups(large, large, "auto", 768) == [[0, 2], [1, 3]]
    assert padded.groups(large, large, "padded", 768) == [[0, 1, 2, 3]]


def test_padding_is_weighed_for_queries_and_keys_together() -> None:
    """Hand arithmetic: a longer query pads every key span of its padded batch as well."""
    queries, keys = Spans.of([1, 40]), Spans.of([400, 399])
    width = 768
    excess = 40 * 400 - 1 * 400 + 40
    assert 2 * excess * width > padded.PADDED_OVERHEAD_MACS
    assert len(padded.groups(queries, keys, "auto", width)) == 2
    assert len(padded.groups(queries, keys, "auto", width // 16)) == 1


def test_a_backend_is_one_of_those_there_are() -> None:
    """A name that is none is refused; a `with` block puts back what was in force before, whatever happens in it."""
    with pytest.raises(ValueError, match="'flash' is no attention backend; there are auto, segments"):
        attention.use_backend("flash")  # type: ignore[arg-type]

    def fail() -> None:
        with attention.backend("padded"):
            assert attention.backend_in_force() == "padded"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert attention.backend_in_force() == "auto"


# Towers without a class token ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["segments", "padded", "log-sum-exp"])
@SPANS
@CAUSAL
def test_without_a_summary_token_every_query_counts(spans: Spans, way: str, causal: bool) -> None:
    """The definition: over all queries, the sum of the largest probability over heads; there is no class row."""
    q, k, v = _tensors(spans.total, spans.total, spans.total)
    expected = []
    for start, length in zip(spans.starts, spans.lengths, strict=True):
        own = slice(start, start + length)
        p = torch.stack([_probability(q[own, h], k[own, h], causal) for h in range(HEADS)])
        expected.append(p.amax(0).sum(0))
    if way == "log-sum-exp":
        out, norms = definition.attention(q, k, v, spans, spans, causal)
        found = received.statistics(q, k, out, norms.float(), spans, causal=causal, summary="none")
    else:
        with attention.backend(way):  # type: ignore[arg-type]
            _, found = attend_with_statistics(q, k, v, spans, causal=causal, summary="none")
    assert found.class_row is None
    torch.testing.assert_close(found.received, torch.cat(expected).float(), atol=1e-5, rtol=1e-5)
