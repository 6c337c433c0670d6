"""The loop over blocks: it prunes where the plan says, and its trace says what happened."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from madtp_cli.alignment import Alignment
from madtp_cli.attention import Statistics
from madtp_cli.models import tower
from madtp_cli.models.tower import PruningPlan, TowerOutput, run_tower
from madtp_cli.pruning import Evidence
from madtp_cli.pruning.base import Need, fuse
from madtp_cli.tokens import Selection, Spans, Tokens


@dataclass
class Block:
    """Adds 1 in attention and 10 after it, and notes what it was asked."""

    asked: list[bool] = field(default_factory=list)

    def attend(self, tokens: Tokens, *, statistics: bool) -> tuple[Tokens, Statistics | None]:
        self.asked.append(statistics)
        score = tokens.x[:, 0].detach()
        return tokens.with_x(tokens.x + 1), Statistics(score, score) if statistics else None

    def finish(self, tokens: Tokens, context: str | None) -> Tokens:
        assert context in ("context", None)
        return tokens.with_x(tokens.x + 10)


@dataclass
class Halve:
    """Keeps every other token, merges the rest, and notes its evidence."""

    needs: frozenset[Need] = frozenset({"class_row", "received"})
    couples: bool = False
    seen: list[tuple[Evidence, float]] = field(default_factory=list)

    def select(self, evidence: Evidence, strength: float) -> Selection:
        self.seen.append((evidence, strength))
        position = evidence.tokens.position
        return fuse((position % 2 == 0) & (position > 0), torch.ones(len(position)), evidence.tokens)


def _run(
    method: Halve | None,
    layers: set[int],
    strength: float = 0.5,
    alignment: Alignment | None = None,
    learn: bool = False,
) -> tuple[TowerOutput, list[Block], Tokens]:
    blocks = [Block() for _ in range(4)]
    tokens = Tokens.pack(torch.zeros(12, 2), Spans.of([5, 7]), prefix=1)
    plan = PruningPlan(method, {"here": frozenset(layers), "elsewhere": frozenset(range(4))}) if method else None
    output = run_tower(
        "here", blocks, tokens, "context", plan=plan, strength=strength, alignment=alignment, learn=learn
    )
    return output, blocks, tokens


def test_without_a_plan_or_strength_every_token_comes_out() -> None:
    """44 added to every token by four blocks; no statistics asked for; the trace holds equal counts."""
    for output, blocks, tokens in (_run(None, set()), _run(Halve(), {0, 1}, strength=0.0), _run(Halve(), set())):
        assert torch.equal(output.tokens.x, torch.full((12, 2), 44.0))
        assert [block.asked for block in blocks] == [[False]] * 4
        for layer in output.trace:
            assert layer.spans == tokens.spans
            assert layer.leaving == (5, 7)
            assert not layer.prunes
            assert layer.guidance is None
        assert output.aligned is None


def test_only_the_layers_of_the_plan_prune_and_are_asked_for_statistics() -> None:
    """By hand: five and seven tokens lose the odd ones to a merged token in layers 1 and 3."""
    method = Halve()
    output, blocks, _ = _run(method, {1, 3})
    assert [block.asked for block in blocks] == [[False], [True], [False], [True]]
    assert [layer.prunes for layer in output.trace] == [False, True, False, True]
    assert [layer.spans.lengths for layer in output.trace] == [(5, 7), (5, 7), (4, 5), (4, 5)]
    assert [layer.leaving for layer in output.trace] == [(5, 7), (4, 5), (4, 5), (4, 5)]
    assert output.trace[1].position.tolist() == [*range(5), *range(7)]
    assert output.trace[1].kept.tolist() == [0, -1, 2, 4, 0, -1, 2, 4, 6]
    assert output.trace[2].position.tolist() == output.trace[1].kept.tolist()
    assert torch.equal(output.tokens.x, torch.full((9, 2), 44.0))
    assert [(e.layer, s) for e, s in method.seen] == [(1, 0.5), (3, 0.5)]


def test_a_method_sees_the_tokens_after_attention() -> None:
    """The residual has been added (1), the rest of the block has not (10); statistics are the block's own."""
    method = Halve()
    _run(method, {0, 1})
    (first, _), (second, _) = method.seen
    assert first.tokens.x.unique().tolist() == [1]
    assert second.tokens.x.unique().tolist() == [12]
    assert second.statistics is not None
    assert second.statistics.received.unique().tolist() == [11]
    assert first.guidance is None


def _logits(alignment: Alignment, value: float, count: int) -> Tensor:
    with torch.no_grad():
        return alignment.site("here").logits(torch.full((count, 2), value), 0)


def test_guidance_compares_the_input_of_a_block() -> None:
    """Layer 1 of a dense start gives the logits of 11, before its own attention adds 1."""
    alignment = Alignment(3, 4, {"here": (4, 2)})
    method = Halve(needs=frozenset({"guidance"}))
    output, blocks, _ = _run(method, {1}, alignment=alignment)
    ((evidence, _),) = method.seen
    assert evidence.guidance is not None
    torch.testing.assert_close(evidence.guidance.detach(), _logits(alignment, 11.0, 12))
    assert evidence.statistics is None
    assert [block.asked for block in blocks] == [[False]] * 4
    assert [layer.guidance is not None for layer in output.trace] == [False, True, False, False]
    found = output.trace[1].guidance
    assert found is not None
    torch.testing.assert_close(found.detach(), _logits(alignment, 11.0, 12).amax(-1))


@pytest.mark.parametrize("needs", [{"guidance"}, set()], ids=str)
def test_where_gradient_flows_guidance_is_there_before_anything_is_pruned(needs: set[Need]) -> None:
    """At strength 0 the planned layer has guidance to teach, if its method reads any, and without gradient nothing."""
    alignment, method = Alignment(3, 4, {"here": (4, 2)}), Halve(needs=frozenset(needs))
    for gradient in (True, False):
        with torch.set_grad_enabled(gradient):
            output, _, _ = _run(method, {1}, alignment=alignment, strength=0.0)
        guided = [trace.layer for trace in output.trace if trace.guidance is not None]
        assert guided == ([1] if gradient and needs else [])
    assert method.seen == []
    assert output.aligned is None


def test_learning_sums_aligned_features_over_layers() -> None:
    """All tokens of a layer are equal, so its features are W x + b: summed by hand over inputs 0, 11, 22 and 33."""
    alignment = Alignment(3, 4, {"here": (4, 2)}, "per_layer")
    output, _, _ = _run(None, set(), alignment=alignment, learn=True)
    maps = alignment.get_submodule("maps.here")
    expected = sum(linear(torch.full((2,), 11.0 * layer)) for layer, linear in enumerate(maps.children()))
    assert output.aligned is not None
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(output.aligned, expected.expand(2, 3, 4))
    for layer, trace in enumerate(output.trace):
        logits = alignment.site("here").logits(torch.full((12, 2), 11.0 * layer), layer)
        assert trace.guidance is not None
        torch.testing.assert_close(trace.guidance, logits.amax(-1))


@pytest.mark.parametrize("couples", [False, True])
@pytest.mark.parametrize("most", [1, 12, 20, 1000])
def test_parts_of_a_batch_give_what_the_batch_gives(most: int, couples: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run in one piece: tokens and trace to the last bit; a method that compares samples sees all of them."""
    lengths = [5, 7, 9, 4, 6, 3]
    tokens = Tokens.pack(
        torch.randn(sum(lengths), 2, generator=torch.Generator().manual_seed(0)), Spans.of(lengths), prefix=1
    )

    def run(elements: int) -> tuple[TowerOutput, list[Evidence]]:
        monkeypatch.setattr(tower, "PART_ELEMENTS", elements)
        method = Halve(couples=couples)
        plan = PruningPlan(method, {"here": frozenset({1, 2})})
        with torch.no_grad():
            output = run_tower("here", [Block() for _ in range(4)], tokens, None, plan=plan, strength=0.5)
        return output, [evidence for evidence, _ in method.seen]

    whole, seen = run(2 * sum(lengths))
    parts, cut = run(2 * most)
    assert len(seen) == 2
    assert (len(cut) > 2) == (most < sum(lengths) and not couples)
    assert torch.equal(parts.tokens.x, whole.tokens.x)
    assert parts.tokens.spans == whole.tokens.spans
    for ours, theirs in zip(parts.trace, whole.trace, strict=True):
        assert (ours.spans, ours.leaving, ours.prunes) == (theirs.spans, theirs.leaving, theirs.prunes)
        assert torch.equal(ours.position, theirs.position)
        assert torch.equal(ours.kept, theirs.kept)


def test_small_parts_are_joined_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples of 9 tokens in parts of at most 12: apart until pruning leaves 6 of each, then together."""
    monkeypatch.setattr(tower, "PART_ELEMENTS", 12 * 2)
    blocks = [Block() for _ in range(3)]
    method = Halve()
    plan = PruningPlan(method, {"here": frozenset({0})})
    tokens = Tokens.pack(torch.zeros(18, 2), Spans.of([9, 9]), prefix=1)
    with torch.no_grad():
        run_tower("here", blocks, tokens, None, plan=plan, strength=0.5)
    assert [len(block.asked) for block in blocks] == [2, 1, 1]
