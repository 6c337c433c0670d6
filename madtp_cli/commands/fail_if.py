"""Conditions on a profile, such as `gmacs>27` or `efficiency.32<0.9`, that make a command fail."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from madtp_cli.errors import UsageError
from madtp_cli.recipe_faults import near
from madtp_cli.results import Threshold

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_FORM = re.compile(r"\s*([\w.]+)\s*(>=|<=|==|!=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
# Short names for what is asked most.
_SHORT = {"reduction": "gmacs.reduction"}
_COUNTED = ("gmacs", "reduction", "params", "tokens_kept", "baseline")
_TIMED = (
    "latency_ms",
    "latency_p90_ms",
    "latency_runs",
    "samples_per_second",
    "peak_mib",
    "macs_ratio",
    "time_ratio",
    "efficiency",
    "dense",
    "dense_latency_ms",
)
_GROUPS = (*_COUNTED, *_TIMED)


@dataclass(frozen=True)
class Condition:
    """One parsed `--fail-if`."""

    expression: str
    name: str
    symbol: str
    limit: float

    @property
    def timed(self) -> bool:
        """Tell whether models have to be timed to answer it."""
        group, *inner = self.name.split(".")
        return not {group, *(inner if group == "baseline" else ())}.isdisjoint(_TIMED)


def parse(expression: str) -> Condition:
    """Read `name operator number`; raises UsageError."""
    found = _FORM.fullmatch(expression)
    if found is None:
        raise UsageError(
            f"--fail-if {expression!r}: expected a name, one of {' '.join(_OPERATORS)} and a number, such as 'gmacs>27'"
        )
    name, symbol, limit = found.groups()
    return Condition(expression, name, symbol, float(limit))


def parse_all(expressions: Sequence[str], *, latency: bool = True) -> list[Condition]:
    """Read all conditions before anything is measured; raises UsageError for one that nothing will answer."""
    conditions = [parse(expression) for expression in expressions]
    for condition in conditions:
        group = condition.name.partition(".")[0]
        if group not in _GROUPS:
            raise UsageError(_unknown(condition, _GROUPS))
        if not latency and condition.timed:
            raise UsageError(f"--fail-if {condition.expression!r}: needs the latency; remove --no-latency")
    return conditions


def check(conditions: Sequence[Condition], document: Mapping[str, Any]) -> tuple[Threshold, ...]:
    """Evaluate all conditions on a profile's JSON document.

    `gmacs` is the pruned model's; `latency_ms` needs no batch size where only one was measured. Raises
    UsageError for a name that was not measured.
    """
    checked = []
    for condition in conditions:
        value = _value(condition, document)
        hit = _OPERATORS[condition.symbol](value, condition.limit)
        checked.append(Threshold(expression=condition.expression, value=value, hit=hit))
    return tuple(checked)


def _value(condition: Condition, document: Mapping[str, Any]) -> float:
    # Only what a condition may name: `seed` and `schema_version` are numbers, too.
    names = dict(_numbers({group: document.get(group) for group in _GROUPS}, ""))
    name = _SHORT.get(condition.name, condition.name)
    if name in names:
        return names[name]
    inner = [entry for entry in names if entry.startswith(f"{name}.")]
    for choice in (f"{name}.pruned", *(inner if len(inner) == 1 else ())):
        if choice in names:
            return names[choice]
    if inner:
        several = ", ".join(inner)
        raise UsageError(f"--fail-if {condition.expression!r}: {condition.name} is several, name one: {several}")
    raise UsageError(_unknown(condition, [*names, *_SHORT]))


def _numbers(data: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)


def _unknown(condition: Condition, names: Sequence[str]) -> str:
    close = near(condition.name, names)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
    return f"--fail-if {condition.expression!r}: {condition.name} is not measured; {hint}"
