"""The one loop over transformer blocks: every site of every model runs here, dense or pruned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from madtp_cli.alignment import Alignment, SiteAlignment, strongest
from madtp_cli.attention import Statistics
from madtp_cli.pruning import STATISTICS, Evidence, Pruner
from madtp_cli.tokens import Spans, Tokens, compact

Context = TypeVar("Context", contravariant=True)

# On a CPU large tensors are slow for being new memory every time: tokens times width stay below this (4 MiB in fp32;
# an MLP's hidden layer is four times as large), so that memory is used again and stays in cache.
PART_ELEMENTS = 1 << 20


class Block(Protocol[Context]):
    """A transformer block cut where tokens are pruned: after self-attention, before what follows."""

    def attend(self, tokens: Tokens, *, statistics: bool) -> tuple[Tokens, Statistics | None]:
        """Self-attend, residual added; with statistics if asked."""

    def finish(self, tokens: Tokens, context: Context) -> Tokens:
        """Run the block's remaining sub-layers."""


class Passage:
    """A block that does nothing, for a site between two parts of a model: `run_tower` only prunes there."""

    def attend(self, tokens: Tokens, *, statistics: bool) -> tuple[Tokens, Statistics | None]:
        """Return the tokens as they are; nobody attends, so there are no statistics."""
        return tokens, None

    def finish(self, tokens: Tokens, context: object) -> Tokens:
        """Return the tokens as they are."""
        return tokens


@dataclass(frozen=True)
class PruningPlan:
    """Which method prunes, and in which layers of which site."""

    pruner: Pruner
    layers: Mapping[str, frozenset[int]]


@dataclass(frozen=True)
class LayerTrace:
    """What one layer did to a batch of B samples.

    spans and position describe the tokens that entered, of which `prefix` opened every sample; leaving [B] counts those
    after pruning (the prefix counted in both). guidance [T] is each entering token's best alignment logit, where it was
    computed.
    """

    site: str
    layer: int
    prefix: int
    spans: Spans
    position: Tensor
    leaving: tuple[int, ...]
    kept: Tensor  # position [T'] of the tokens that left, -1 for a merged one
    prunes: bool
    guidance: Tensor | None

    @classmethod
    def join(cls, parts: Sequence[LayerTrace]) -> LayerTrace:
        """Put what one layer did to the parts of a batch together."""
        if len(parts) == 1:
            return parts[0]
        guidance = [part.guidance for part in parts if part.guidance is not None]
        return replace(
            parts[0],
            spans=Spans.of([length for part in parts for length in part.spans.lengths]),
            position=torch.cat([part.position for part in parts]),
            leaving=tuple(length for part in parts for length in part.leaving),
            kept=torch.cat([part.kept for part in parts]),
            guidance=torch.cat(guidance) if guidance else None,
        )


@dataclass(frozen=True)
class TowerOutput:
    """The tokens that came out, the trace of every layer, and the aligned features [B, K, d] summed over layers."""

    tokens: Tokens
    trace: tuple[LayerTrace, ...]
    aligned: Tensor | None


def run_tower(
    site: str,
    blocks: Iterable[Block[Context]],
    tokens: Tokens,
    context: Context,
    *,
    plan: PruningPlan | None = None,
    strength: float = 0.0,
    alignment: Alignment | None = None,
    learn: bool = False,
    whole: bool = False,
) -> TowerOutput:
    """Run the blocks over packed tokens and prune where the plan says.

    `learn` also computes the guidance and the aligned features of every layer, which only training needs. A strength of
    zero prunes nothing and costs nothing, but where gradient flows guidance is computed all the same, to be taught from
    the first step on. Unless the batch must stay `whole`, samples that have nothing to do with each other (no context,
    no method that compares them) run in parts small enough for a CPU's caches.
    """
    planned = plan.layers.get(site, frozenset()) if plan else frozenset()
    layers = planned if strength > 0 else frozenset()
    guided = planned if plan and "guidance" in plan.pruner.needs and torch.is_grad_enabled() else frozenset()
    guide = None if alignment is None else alignment.site(site)
    couples = bool(layers and plan and plan.pruner.couples)
    most = part_tokens(tokens.x) if context is None and not (learn or couples or whole) else tokens.spans.total
    parts = tokens.split(most)
    trace: list[LayerTrace] = []
    pooled: list[Tensor] = []  # [B, K, C] of every layer
    for layer, block in enumerate(blocks):
        pruner = plan.pruner if plan and layer in layers else None
        step: _Step[Context] = _Step(site, layer, pruner, strength, guide, learn, layer in guided)
        done = [step.run(block, part, context) for part in parts]
        trace.append(LayerTrace.join([each.trace for each in done]))
        pooled += [each.pooled for each in done if each.pooled is not None]
        parts = _fewer([each.tokens for each in done], most)
    return TowerOutput(Tokens.join(parts), tuple(trace), guide.aligned(pooled) if guide and pooled else None)


@dataclass(frozen=True)
class _Done:
    tokens: Tokens
    trace: LayerTrace
    pooled: Tensor | None


@dataclass(frozen=True)
class _Step(Generic[Context]):
    """What one layer does to any part of a batch."""

    site: str
    layer: int
    pruner: Pruner | None
    strength: float
    guide: SiteAlignment | None
    learn: bool
    guided: bool

    def run(self, block: Block[Context], tokens: Tokens, context: Context) -> _Done:
        """Attend, prune and finish."""
        pruner, pooled, logits = self.pruner, None, None  # logits [T, K]
        if self.guide is not None and (self.learn or self.guided or (pruner and "guidance" in pruner.needs)):
            logits = self.guide.logits(tokens.x, self.layer)
            if self.learn:
                pooled = self.guide.pooled(tokens, logits)
        entering = tokens
        tokens, statistics = block.attend(tokens, statistics=pruner is not None and bool(pruner.needs & STATISTICS))
        if pruner:
            evidence = Evidence(tokens, self.layer, statistics, logits)
            tokens = compact(tokens, pruner.select(evidence, self.strength))  # [T', C]
        trace = LayerTrace(
            site=self.site,
            layer=self.layer,
            prefix=entering.prefix,
            spans=entering.spans,
            position=entering.position,
            leaving=tokens.spans.lengths,
            kept=tokens.position,
            prunes=pruner is not None,
            guidance=None if logits is None else strongest(logits),
        )
        return _Done(block.finish(tokens, context), trace, pooled)


def part_tokens(x: Tensor) -> int:
    """Return the most of the tokens x [T, C] to run at a time: all, but in inference on a CPU."""
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return len(x)
    return PART_ELEMENTS // x.shape[1]


def _fewer(parts: Sequence[Tokens], most: int) -> list[Tokens]:
    """Join neighbours that pruning has made small enough for one part."""
    joined: list[list[Tokens]] = [[parts[0]]]
    for part in parts[1:]:
        if sum(each.spans.total for each in joined[-1]) + part.spans.total <= most:
            joined[-1].append(part)
        else:
            joined.append([part])
    return [Tokens.join(each) for each in joined]
