"""How a checkpoint prunes, as plain data: the `madtp` block of its config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from madtp_cli.alignment import Alignment, Projection
from madtp_cli.errors import SourceError
from madtp_cli.models.base import PrunedModel
from madtp_cli.models.family import model_class
from madtp_cli.models.sites import Site
from madtp_cli.models.tower import PruningPlan
from madtp_cli.pruning import PRUNERS, Madtp
from madtp_cli.pruning.madtp import Variant


@dataclass(frozen=True)
class PruningSpec:
    """A method, its settings, its layers and the strength that meets the budget.

    method `none` is a dense model; alignment_tokens 0 means no alignment module.
    """

    method: str = "none"
    variant: Variant = "normalised"
    tokens: Literal["adaptive", "scheduled"] = "adaptive"
    temperature: float = 1.0
    strength: float = 0.0
    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    alignment_tokens: int = 0
    alignment_dim: int = 0
    projection: Projection = "shared"

    @classmethod
    def from_dict(cls, block: Mapping[str, Any], where: str) -> PruningSpec:
        """Read a `madtp` block; raises SourceError naming keys, methods and values it does not know."""
        known = set(cls.__dataclass_fields__)
        if unknown := sorted(set(block) - known):
            raise SourceError(
                f"{where}: the madtp block has unknown keys {', '.join(unknown)}; it was written by a newer madtp, "
                "try upgrading"
            )
        try:
            spec = TypeAdapter(cls).validate_python(dict(block))
        except ValidationError as error:
            faults = (f"madtp.{'.'.join(map(str, f['loc']))}: {f['msg']}, got {f['input']!r}" for f in error.errors())
            raise SourceError(f"{where}: {'; '.join(faults)}") from error
        if spec.method not in ("none", *PRUNERS):
            raise SourceError(
                f"{where}: madtp.method is {spec.method}; this madtp knows none, {', '.join(PRUNERS)}, try upgrading"
            )
        if spec.method == "madtp" and not spec.alignment_tokens:
            raise SourceError(f"{where}: madtp.alignment_tokens is 0; the method madtp needs at least one")
        return spec

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {**asdict(self), "layers": {site: list(chosen) for site, chosen in self.layers.items()}}

    def model(self, family: str, task: str, config: Any, *, merge_gradient: bool = False) -> PrunedModel:
        """Build a family's model for a task that prunes so, with weights as they are drawn."""
        kind = model_class(family, task)
        return kind(
            config,
            alignment=self.alignment(kind.sites_of(config)),
            plan=self.plan(merge_gradient=merge_gradient, least=kind.released_least),
            strength=self.strength,
        )

    def plan(self, *, merge_gradient: bool = False, least: int = 1) -> PruningPlan | None:
        """Build the method and its layers; None for a dense model or temperature 0, which prunes nothing.

        `least` matters to the released variant alone: the fewest tokens, prefix apart, that its code prunes a layer to.
        """
        if self.method == "none" or self.temperature == 0:
            return None
        options: dict[str, Any] = {}
        if PRUNERS[self.method] is Madtp:
            options = {
                "dim": self.alignment_dim,
                "variant": self.variant,
                "tokens": self.tokens,
                "temperature": self.temperature,
                "merge_gradient": merge_gradient,
                "least": least,
            }
        return PruningPlan(
            PRUNERS[self.method](**options), {site: frozenset(chosen) for site, chosen in self.layers.items()}
        )

    def alignment(self, sites: Sequence[Site]) -> Alignment | None:
        """Build the alignment module for a model's sites, if the checkpoint has one."""
        if not self.alignment_tokens:
            return None
        sizes = {site.name: (site.layers, site.width) for site in sites}
        return Alignment(self.alignment_tokens, self.alignment_dim, sizes, self.projection)
