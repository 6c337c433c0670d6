"""A profile as comma-separated values: what its tables say, in full figures, one line of names first."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from madtp_cli.report import profile_rows
from madtp_cli.results import Profiled, ProfileResult

Line = dict[str, Any]
_SPEED = ("latency_ms", "latency_p90_ms", "samples_per_second", "peak_mib", "macs_ratio", "time_ratio", "efficiency")


def to_csv(result: ProfileResult, by: str, depth: int = profile_rows.FOLDED) -> str:
    """Write a profile by `module`, `layer`, `sample` or `checkpoint`; the first column names the checkpoint.

    What was not measured is empty; columns are those of docs/profile.md.
    """
    lines = [
        {"checkpoint": name, **line}
        for name, profiled in profile_rows.profiles(result)
        for line in _LINES[by](profiled, depth)
    ]
    names = list(dict.fromkeys(name for line in lines for name in line)) or ["checkpoint"]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _modules(profiled: Profiled, depth: int) -> Iterator[Line]:
    for part in profile_rows.tree(profiled, depth):
        yield {
            "level": len(part.path),
            "part": part.name,
            "layers": part.layers,
            "params": part.params,
            "gmacs": part.gmacs,
            "gmacs_share": part.gmacs / profiled.gmacs.pruned if profiled.gmacs.pruned else None,
            "time_share": part.time_share,
        }


def _layers(profiled: Profiled, _: int) -> Iterator[Line]:
    for layer in profile_rows.layers(profiled):
        yield vars(layer)


def _samples(profiled: Profiled, _: int) -> Iterator[Line]:
    for sample in profile_rows.samples(profiled):
        kept = {f"tokens_kept_{tower}": share for tower, share in profile_rows.kept_shares(sample).items()}
        yield {"id": sample.id, **_gmacs(sample.gmacs), **kept}


def _checkpoints(profiled: Profiled, _: int) -> Iterator[Line]:
    kept = {f"tokens_kept_{tower}": share for tower, share in profiled.tokens_kept.items()}
    speed = {f"{name}_{batch}": getattr(profiled, name).get(batch) for name in _SPEED for batch in profiled.latency_ms}
    yield {**_gmacs(profiled.gmacs), "params": profiled.params, "size_mib": profiled.size_mib, **kept, **speed}


def _gmacs(gmacs: Any) -> Line:
    return {"gmacs": gmacs.pruned, "dense_gmacs": gmacs.dense, "reduction": gmacs.reduction}


_LINES: Mapping[str, Callable[[Profiled, int], Iterator[Line]]] = {
    "module": _modules,
    "layer": _layers,
    "sample": _samples,
    "checkpoint": _checkpoints,
}
