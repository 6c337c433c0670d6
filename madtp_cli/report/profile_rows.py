"""What a profile's tables and CSV files say, as plain rows: parts as a tree, layers, samples, checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from madtp_cli.results import ModuleCost, Profiled, ProfileResult, SampleCost

TOWERS, PARTS, FOLDED, UNFOLDED = 1, 2, 3, 4
"""How deep the tree goes: towers and heads, what they hold, the parts of equal layers summed, every layer apart."""

BETWEEN = "between the parts"
_LAYER = re.compile(r"(.+?)\.(.+)\.(\d+)\.(.+)")  # tower, stack, layer, part


@dataclass(frozen=True)
class Part:
    """A node of the tree with everything below it; `path` leads there, `layers` counts the layers that are summed."""

    path: tuple[str, ...]
    layers: int = 1
    gmacs: float = 0.0
    params: int = 0
    time_share: float | None = None

    @property
    def name(self) -> str:
        """The path in one word."""
        return ".".join(self.path)


@dataclass(frozen=True)
class Layer:
    """One layer of a tower: tokens that leave it (images count one by one), and what it costs per sample."""

    tower: str
    layer: int
    tokens_mean: float
    tokens_min: int
    tokens_max: int
    tokens_entered: int | None
    gmacs: float
    params: int
    time_share: float | None


def profiles(result: ProfileResult) -> list[tuple[str, Profiled]]:
    """Name all checkpoints of a result, the first one's profile first."""
    named: list[tuple[str, Profiled]] = [(other.name, other) for other in result.others]
    return [(result.name or result.checkpoint or "model", result), *named]


def tree(profiled: Profiled, depth: int = FOLDED) -> list[Part]:
    """List the parts of a model, every one after what it is in; parts appear in the order of the model's modules."""
    nodes: dict[tuple[str, ...], list[ModuleCost]] = {}
    stacks: dict[tuple[str, ...], set[str]] = {}
    for module in profiled.modules:
        path, layer = _path(module.name, unfold=depth >= UNFOLDED)
        for end in range(1, len(path[:depth]) + 1):
            nodes.setdefault(path[:end], []).append(module)
            # A layer that stands on its own is no sum of several.
            if layer is not None and end > 1 and not (depth >= UNFOLDED and end > PARTS):
                stacks.setdefault(path[:end], set()).add(layer)
    return [
        replace(_sum(path, nodes[path]), layers=max(len(stacks.get(path, ())), 1)) for path in _in_order(list(nodes))
    ]


def time_between(profiled: Profiled) -> float | None:
    """Return the share of time that no part took; None where time was not measured."""
    shares = [module.time_share for module in profiled.modules if module.time_share is not None]
    return max(1 - sum(shares), 0.0) if shares else None


def layers(profiled: Profiled) -> list[Layer]:
    """List the layers of the sites with the tokens that leave them and the cost of their modules.

    Modules of a site's layers have paths that begin with its name.
    """
    sites = dict.fromkeys(kept.tower for kept in profiled.layers)
    costs: dict[tuple[str, int], list[ModuleCost]] = {}
    for module in profiled.modules:
        # A decoder that a sample does not run has layers as well, which no tokens are told of.
        if (found := _LAYER.fullmatch(module.name)) and _runs(profiled.modules, f"{found[1]}.{found[2]}."):
            for site in (name for name in sites if found[1].startswith(name)):
                costs.setdefault((site, int(found[3])), []).append(module)
    rows = []
    for kept in profiled.layers:
        part = _sum((), costs.get((kept.tower, kept.layer), []))
        tokens = {name: getattr(kept, name) for name in ("tokens_mean", "tokens_min", "tokens_max", "tokens_entered")}
        rows.append(
            Layer(kept.tower, kept.layer, **tokens, gmacs=part.gmacs, params=part.params, time_share=part.time_share)
        )
    return rows


def samples(profiled: Profiled) -> list[SampleCost]:
    """List the samples, the most expensive first."""
    return sorted(profiled.samples, key=lambda sample: -sample.gmacs.pruned)


def kept_shares(sample: SampleCost) -> dict[str, float]:
    """Return the share of a sample's tokens that leave a layer, mean over layers, by tower."""
    return {
        tower: sum(kept) / (len(kept) * sample.tokens_entered[tower])
        for tower, kept in sample.tokens_kept.items()
        if kept
    }


def _runs(modules: Iterable[ModuleCost], prefix: str) -> bool:
    return any(module.gmacs for module in modules if module.name.startswith(prefix))


def _path(name: str, *, unfold: bool) -> tuple[tuple[str, ...], str | None]:
    """Cut a module's name into tower, what it holds, and parts; and say of which layer it is."""
    if found := _LAYER.fullmatch(name):
        tower, stack, layer, part = found.groups()
        return ((tower, stack, layer, part) if unfold else (tower, stack, part)), layer
    tower, _, rest = name.partition(".")
    return ((tower, rest) if rest else (tower,)), None


def _in_order(paths: Sequence[tuple[str, ...]], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield paths so that each comes before what is in it, and that before its next neighbour."""
    for path in paths:
        if path[:-1] == above:
            yield path
            yield from _in_order(paths, path)


def _sum(path: tuple[str, ...], modules: Sequence[ModuleCost]) -> Part:
    shares = [module.time_share for module in modules if module.time_share is not None]
    return Part(
        path,
        gmacs=sum(module.gmacs for module in modules),
        params=sum(module.params for module in modules),
        time_share=sum(shares) if shares else None,
    )
