"""The report of `profile`: what a checkpoint costs by part, layer or sample, or several of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath

from rich.console import Console
from rich.text import Text

from madtp_cli.report import wording
from madtp_cli.report.printing import attention, cost_sentence, machine, print_facts, print_line, print_table
from madtp_cli.report.profile_rows import FOLDED, profiles, time_between
from madtp_cli.report.profile_tables import (
    batches,
    busy,
    composition_table,
    layers_table,
    passes_table,
    pictures_table,
    plain_table,
    samples_table,
    speed_table,
    tokens_table,
    tree_table,
)
from madtp_cli.results import Profiled, ProfileResult

_LABEL, _NARROWEST, _GAP = 18, 8, 3  # columns of a row's name, of a figure, and between them


def print_profile(
    console: Console, result: ProfileResult, *, by: str | None = None, depth: int = FOLDED, every: bool = False
) -> None:
    """Print what a checkpoint costs: in all, `by` module (to a depth), layer or sample, and in time.

    Several checkpoints are compared, and shown one by one only if `by` says how. `every` leaves nothing out.
    """
    console.print()
    if result.others:
        _print_comparison(console, result, every=every)
        for name, profiled in profiles(result) if by else ():
            console.print()
            print_line(console, f"{name}: {cost_sentence(profiled.gmacs.dense, profiled.gmacs.pruned)}", "bold")
            _print_view(console, profiled, by, depth, every)
    else:
        _print_headline(console, result)
        print_table(console, composition_table(result) if result.composition else None)
        _print_view(console, result, by, depth, every)
        if by is None and result.gmacs.dense != result.gmacs.pruned:
            print_table(console, tokens_table(result.layers, console.width, ascii_only=console.options.ascii_only))
        print_table(console, passes_table(result))
        print_table(console, speed_table(result))
    print_table(console, pictures_table(result.pictures))
    _print_remarks(console, result)


def _print_headline(console: Console, result: ProfileResult) -> None:
    cost = result.gmacs
    weights = "random weights" if result.device else "no weights"  # nothing ran, so there was no device
    what = result.checkpoint or (f"{result.recipe}, {weights}" if result.recipe else weights)
    recipe = f" in the recipe {result.recipe}" if result.checkpoint and result.recipe else ""
    print_line(console, f"{what}{recipe}: {wording.parameters(result.params)} parameters", "bold")
    unit = "gmacs as papers count" if result.convention == "published" else "gmacs per sample"
    print_line(console, cost_sentence(cost.dense, cost.pruned, unit), "bold")


def _print_view(console: Console, profiled: Profiled, by: str | None, depth: int, every: bool) -> None:
    ascii_only = console.options.ascii_only
    if by == "layer":
        print_table(console, layers_table(profiled, console.width, ascii_only=ascii_only))
    elif by == "sample" and not profiled.samples:
        console.print()
        print_line(console, "No sample was run: costs are arithmetic for texts of one length.")
    elif by == "sample":
        print_table(console, samples_table(profiled, every=every))
    else:
        print_table(console, tree_table(profiled, depth, ascii_only=ascii_only))


def _print_comparison(console: Console, result: ProfileResult, *, every: bool) -> None:
    """Print the figures of all checkpoints, as many beside each other as the console is wide."""
    named = profiles(result)
    print_line(console, f"{len(named)} checkpoints, on the same samples", "bold")
    for part in _beside(named, console.width):
        table = plain_table("", *(name for name, _ in part))
        for label, write in _figures([profiled for _, profiled in named]):
            cells = [write(profiled) or "" for _, profiled in part]
            if any(cells):
                table.add_row(Text(label), *cells)
        print_table(console, table)
    print_table(console, speed_table(result) if every else None)


def _beside(named: Sequence[tuple[str, Profiled]], width: int) -> Iterator[list[tuple[str, Profiled]]]:
    """Cut checkpoints into groups whose columns fit beside each other."""
    group: list[tuple[str, Profiled]] = []
    left = width - _LABEL
    for name, profiled in named:
        column = _GAP + max(len(name), _NARROWEST)
        if group and column > left:
            yield group
            group, left = [], width - _LABEL
        group.append((name, profiled))
        left -= column
    yield group


def _figures(profiled: Sequence[Profiled]) -> Iterator[tuple[str, Callable[[Profiled], str | None]]]:
    """Name the rows of a comparison, and say how each is written."""
    yield "gmacs per sample", lambda each: wording.gmacs(each.gmacs.pruned)
    yield "without pruning", lambda each: wording.gmacs(each.gmacs.dense)
    yield "reduction", lambda each: wording.percent(each.gmacs.reduction)
    for tower in dict.fromkeys(tower for each in profiled for tower in each.tokens_kept):
        yield f"{tower} tokens kept", _written("tokens_kept", tower, wording.percent)
    for batch in batches(profiled[0]):
        yield f"latency, batch {batch}", _written("latency_ms", batch, wording.milliseconds)
        yield "  time ratio", _written("time_ratio", batch, lambda ratio: f"x{ratio:.2f}")
        yield "  efficiency", _written("efficiency", batch, lambda share: f"{share:.2f}")
        yield "  memory", _written("peak_mib", batch, wording.mebibytes)
    yield "parameters", lambda each: wording.parameters(each.params)
    yield "checkpoint", lambda each: None if each.size_mib is None else wording.mebibytes(each.size_mib)


def _written(name: str, key: str, write: Callable[[float], str]) -> Callable[[Profiled], str | None]:
    """Say how a figure is written that a profile has by batch size or tower, where it has it."""

    def cell(profiled: Profiled) -> str | None:
        value = getattr(profiled, name).get(key)
        return None if value is None else write(value)

    return cell


def _print_remarks(console: Console, result: ProfileResult) -> None:
    """Print what to know of the figures: a busy machine, the baseline, what was not counted, how it was measured."""
    cost = result.gmacs
    if warning := busy(result):
        console.print()
        print_line(console, warning, "yellow")
    if result.baseline is not None:
        console.print()
        print_line(console, _baseline_sentence(result.baseline.gmacs, cost.pruned))
    if result.uncounted:
        console.print()
        print_line(console, f"Not counted: {', '.join(result.uncounted)}", "yellow")
    counted = [f"by {result.counter}", *([] if result.text_tokens is None else [f"text tokens {result.text_tokens}"])]
    kept = [f"{wording.percent(share)} of {tower} tokens" for tower, share in result.tokens_kept.items()]
    facts = {
        "kept": f"{', '.join(kept)}, mean over layers"
        if kept and cost.dense != cost.pruned and not result.others
        else "",
        "time": _of_what_time(result),
        "pictures": str(PurePath(result.pictures[0].file).parent) if result.pictures else "",
        "counted": ", ".join(counted),
        "run": f"{attention(result)}{machine(result)}",
    }
    print_facts(console, facts)


def _of_what_time(result: ProfileResult) -> str:
    """Say what the shares of time are of."""
    if time_between(result) is None or result.others:
        return ""
    between = "; between the parts, tokens are chosen and moved" if result.gmacs.dense != result.gmacs.pruned else ""
    return f"of a call at batch 1{between}"


def _baseline_sentence(baseline: float, cost: float) -> str:
    return (
        f"Baseline: {wording.gmacs(baseline)} gmacs per sample; this one costs {wording.gmacs(cost)} "
        f"({wording.relative_change(baseline, cost)})."
    )
