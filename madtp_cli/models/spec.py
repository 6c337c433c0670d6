"""How a checkpoint prunes, as plain data: the `madtp` block of its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from madtp_cli.alignment import Alignment, Projection
from madtp_cli.errors import SourceError
from madtp_cli.models.tower import PruningPlan
from madtp_cli.pruning import PRUNERS, Madtp
from madtp_cli.pruning.madtp import Variant

RELEASED_LEAST = {"clip": 2}
"""The fewest tokens, class token apart, that the released code prunes a layer to, in families where it is not one."""


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
        return {**asdict(self), "layers": {tower: list(chosen) for tower, chosen in self.layers.items()}}

    def plan(self, *, merge_gradient: bool = False, family: str = "blip") -> PruningPlan | None:
        """Build the method and its layers; None for a dense model or temperature 0, which prunes nothing.

        `family` matters to the released variant alone, whose code differs between families.
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
                "least": RELEASED_LEAST.get(family, 1),
            }
        return PruningPlan(
            PRUNERS[self.method](**options), {tower: frozenset(chosen) for tower, chosen in self.layers.items()}
        )

    def alignment(self, towers: Mapping[str, tuple[int, int]]) -> Alignment | None:
        """Build the alignment module for towers {name: (layers, width)}, if the checkpoint has one."""
        if not self.alignment_tokens:
            return None
        return Alignment(self.alignment_tokens, self.alignment_dim, towers, self.projection)
