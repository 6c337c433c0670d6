"""Conditions on a profile, such as `gmacs>27` or `efficiency.32<0.9`, that make a command fail."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from madtp_cli.errors import UsageError
from madtp_cli.families import site_names
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
_COUNTED = ("gmacs", "reduction", "params", "size_mib", "tokens_kept", "baseline")
# By batch size, of any model; and beside the dense model, so that it has none itself.
_MEASURED = ("latency_ms", "latency_p90_ms", "latency_runs", "samples_per_second", "peak_mib")
_COMPARED = ("macs_ratio", "time_ratio", "efficiency")
_TIMED = (*_MEASURED, *_COMPARED, "dense", "dense_latency_ms")
_GROUPS = (*_COUNTED, *_TIMED)
_SITES = tuple(f"tokens_kept.{site}" for site in site_names())


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


def parse_all(
    expressions: Sequence[str], *, latency: bool = True, sizes: Sequence[int] | None = None, baseline: bool = True
) -> list[Condition]:
    """Read all conditions before anything is measured; raises UsageError for one that nothing will answer.

    `sizes` are the batch sizes that will be timed, where they are known; `baseline` tells whether there is one.
    """
    conditions = [parse(expression) for expression in expressions]
    for condition in conditions:
        group = condition.name.partition(".")[0]
        if group not in _GROUPS:
            raise UsageError(_unknown(condition, _GROUPS))
        if not latency and condition.timed:
            raise UsageError(f"--fail-if {condition.expression!r}: needs the latency; remove --no-latency")
        if group == "baseline" and not baseline:
            raise UsageError(f"--fail-if {condition.expression!r}: there is no baseline; name one with --baseline")
        if sizes is not None:
            _check_name(condition, sizes)
    return conditions


def _check_name(condition: Condition, sizes: Sequence[int]) -> None:
    """Refuse a name that no profile with these batch sizes can have; raises UsageError."""
    by_size = [f"{name}.{size}" for name in (*_MEASURED, *_COMPARED) for size in sizes]
    side = ["gmacs", "params", "size_mib", *_SITES, *by_size]
    names = [*(f"gmacs.{kind}" for kind in ("dense", "pruned", "reduction")), *side[1:]]
    names += [f"dense_latency_ms.{size}" for size in sizes]
    names += [f"dense.{name}" for name in side if name.partition(".")[0] not in (*_COMPARED, "size_mib")]
    names += [f"baseline.{name}" for name in side]
    group, _, size = condition.name.rpartition(".")
    if size.isdigit() and any(name.startswith(f"{group}.") for name in names) and condition.name not in names:
        raise UsageError(
            f"--fail-if {condition.expression!r}: batch size {size} is not timed, only "
            f"{', '.join(map(str, sizes))}; add --batch-size {size}"
        )
    _chosen(condition, names)


def check(
    conditions: Sequence[Condition], document: Mapping[str, Any], checkpoint: str | None = None
) -> tuple[Threshold, ...]:
    """Evaluate all conditions on a profile's JSON document, `checkpoint` being its name among several.

    `gmacs` is the pruned model's; `latency_ms` needs no batch size where only one was measured. Raises
    UsageError for a name that was not measured.
    """
    # Only what a condition may name: `seed` and `schema_version` are numbers, too.
    values = dict(_numbers({group: document.get(group) for group in _GROUPS}, ""))
    checked = []
    for condition in conditions:
        value = values[_chosen(condition, list(values))]
        threshold = Threshold(
            expression=condition.expression,
            value=value,
            hit=_OPERATORS[condition.symbol](value, condition.limit),
            name=condition.name,
            limit=condition.limit,
            checkpoint=checkpoint,
        )
        checked.append(threshold)
    return tuple(checked)


def check_each(conditions: Sequence[Condition], documents: Mapping[str, Mapping[str, Any]]) -> tuple[Threshold, ...]:
    """Evaluate all conditions on the documents of several checkpoints, by name: every one is held to them.

    A condition leaves out a checkpoint that has no such figure, such as the efficiency of one that prunes nothing.
    Raises UsageError if none has it.
    """
    checked: list[Threshold] = []
    for condition in conditions:
        found: list[Threshold] = []
        for name, document in documents.items():
            try:
                found += check([condition], document, name)
            except UsageError as error:
                unanswered = error
        if not found:
            raise unanswered
        checked += found
    return tuple(checked)


def _chosen(condition: Condition, names: Sequence[str]) -> str:
    """Return which of the names a condition means; raises UsageError if it is none, or may be several."""
    name = _SHORT.get(condition.name, condition.name)
    if name in names:
        return name
    inner = [entry for entry in names if entry.startswith(f"{name}.")]
    for choice in (f"{name}.pruned", *(inner if len(inner) == 1 else ())):
        if choice in names:
            return choice
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
