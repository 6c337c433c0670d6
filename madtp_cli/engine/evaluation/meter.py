"""What samples cost, summed over batches: the one place that turns forward passes into costs and token counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from madtp_cli.costs.analytic import total
from madtp_cli.models.base import Output, PrunedModel
from madtp_cli.results import LayerTokens


@dataclass
class CostMeter:
    """Costs of samples, in MACs: macs and dense_macs one integer each, modules their sums; tokens leaving layers, and
    the most that entered each site.
    """

    macs: list[int] = field(default_factory=list)
    dense_macs: list[int] = field(default_factory=list)
    modules: dict[str, int] = field(default_factory=dict)
    leaving: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    entered: dict[str, int] = field(default_factory=dict)

    def add(self, model: PrunedModel, output: Output) -> list[int]:
        """Take in a forward pass and return the cost of its samples."""
        by_module = model.macs(output)
        for name, macs in by_module.items():
            self.modules[name] = self.modules.get(name, 0) + int(macs.sum())
        cost: list[int] = total(by_module).tolist()
        self.macs += cost
        self.dense_macs += total(model.dense_macs(output.text_lengths)).tolist()
        for layer in chain(*(output.traces[site.name] for site in model.sites)):
            self.leaving.setdefault((layer.site, layer.layer), []).extend(layer.leaving)
            self.entered[layer.site] = max(self.entered.get(layer.site, 0), *layer.spans.lengths)
        return cost

    @property
    def gmacs(self) -> float:
        """Mean cost of a sample in 1e9 multiply-adds."""
        return sum(self.macs) / len(self.macs) / 1e9

    @property
    def dense_gmacs(self) -> float:
        """Mean cost of a sample without pruning, in 1e9 multiply-adds."""
        return sum(self.dense_macs) / len(self.dense_macs) / 1e9

    @property
    def reduction(self) -> float:
        """Share of the dense cost that is saved, 0..1."""
        return 1 - sum(self.macs) / sum(self.dense_macs)

    @property
    def layers(self) -> tuple[LayerTokens, ...]:
        """Tokens leaving every layer; images count one by one."""
        return layer_tokens(self.leaving, self.entered)


def layer_tokens(
    leaving: Mapping[tuple[str, int], Sequence[int]], entered: Mapping[str, int] | None = None
) -> tuple[LayerTokens, ...]:
    """Summarise the tokens of all samples leaving each (site, layer), of at most so many that `entered` the site."""
    return tuple(
        LayerTokens(
            tower=site,
            layer=layer,
            tokens_mean=sum(kept) / len(kept),
            tokens_min=min(kept),
            tokens_max=max(kept),
            tokens_entered=None if entered is None else entered[site],
        )
        for (site, layer), kept in leaving.items()
    )


def tokens_kept(kept: Sequence[LayerTokens], dense: Sequence[LayerTokens]) -> dict[str, float]:
    """Return the share of tokens that leave a layer, by tower: the mean over its layers and all samples."""
    before = _tokens_by_tower(dense)
    return {tower: tokens / before[tower] for tower, tokens in _tokens_by_tower(kept).items()}


def _tokens_by_tower(layers: Sequence[LayerTokens]) -> dict[str, float]:
    tokens: dict[str, float] = {}
    for layer in layers:
        tokens[layer.tower] = tokens.get(layer.tower, 0.0) + layer.tokens_mean
    return tokens
