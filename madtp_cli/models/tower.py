"""The one loop over transformer blocks: every tower of every model runs here, dense or pruned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from madtp_cli.alignment import Alignment, strongest
from madtp_cli.attention import Statistics
from madtp_cli.pruning import Evidence, Pruner
from madtp_cli.tokens import Spans, Tokens, compact

Context = TypeVar("Context", contravariant=True)


class Block(Protocol[Context]):
    """A transformer block cut where tokens are pruned: after self-attention, before what follows."""

    def attend(self, tokens: Tokens, *, statistics: bool) -> tuple[Tokens, Statistics | None]:
        """Self-attend, residual added; with statistics if asked."""

    def finish(self, tokens: Tokens, context: Context) -> Tokens:
        """Run the block's remaining sub-layers."""


@dataclass(frozen=True)
class PruningPlan:
    """Which method prunes, and in which layers of which tower."""

    pruner: Pruner
    layers: Mapping[str, frozenset[int]]


@dataclass(frozen=True)
class LayerTrace:
    """What one layer did to a batch of B samples.

    spans and position describe the tokens that entered; leaving [B] counts those after pruning (class token counted in
    both). guidance [T] is each entering token's best alignment logit, where it was computed.
    """

    tower: str
    layer: int
    spans: Spans
    position: Tensor
    leaving: tuple[int, ...]
    kept: Tensor  # position [T'] of the tokens that left, -1 for a merged one
    prunes: bool
    guidance: Tensor | None


@dataclass(frozen=True)
class TowerOutput:
    """The tokens that came out, the trace of every layer, and the aligned features [B, K, d] summed over layers."""

    tokens: Tokens
    trace: tuple[LayerTrace, ...]
    aligned: Tensor | None


def run_tower(
    tower: str,
    blocks: Iterable[Block[Context]],
    tokens: Tokens,
    context: Context,
    *,
    plan: PruningPlan | None = None,
    strength: float = 0.0,
    alignment: Alignment | None = None,
    learn: bool = False,
) -> TowerOutput:
    """Run the blocks over packed tokens and prune where the plan says.

    `learn` also computes the guidance and the aligned features of every layer, which only training needs. A strength of
    zero prunes nothing and costs nothing.
    """
    layers = plan.layers.get(tower, frozenset()) if plan and strength > 0 else frozenset()
    trace: list[LayerTrace] = []
    aligned: Tensor | None = None
    for layer, block in enumerate(blocks):
        pruner = plan.pruner if plan and layer in layers else None
        logits: Tensor | None = None  # [T, K]
        if alignment is not None and (learn or (pruner and "guidance" in pruner.needs)):
            logits = alignment.logits(tokens.x, tower, layer)
            if learn:
                pooled = alignment.aligned(tokens, logits, tower, layer)
                aligned = pooled if aligned is None else aligned + pooled
        entering = tokens
        tokens, statistics = block.attend(tokens, statistics=pruner is not None and "statistics" in pruner.needs)
        if pruner:
            evidence = Evidence(tokens, layer, statistics, logits)
            tokens = compact(tokens, pruner.select(evidence, strength))  # [T', C]
        trace.append(
            LayerTrace(
                tower=tower,
                layer=layer,
                spans=entering.spans,
                position=entering.position,
                leaving=tokens.spans.lengths,
                kept=tokens.position,
                prunes=pruner is not None,
                guidance=None if logits is None else strongest(logits),
            )
        )
        tokens = block.finish(tokens, context)
    return TowerOutput(tokens, tuple(trace), aligned)
