"""Tables of a profile: where the multiply-adds are, and how much of what they save arrives as time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePath

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from madtp_cli.report import wording
from madtp_cli.report.comparison import by_tower
from madtp_cli.report.profile_rows import (
    BETWEEN,
    FOLDED,
    UNFOLDED,
    Part,
    kept_shares,
    layers,
    samples,
    time_between,
    tree,
)
from madtp_cli.results import LayerTokens, Picture, Profiled, ProfileResult, Speed

_RAILS = {False: ("├── ", "└── ", "│   ", "    "), True: ("|-- ", "`-- ", "|   ", "    ")}
_WIDEST_BAR = 40
_FEW_SAMPLES = 8  # of the most expensive, and of the cheapest


def timed(result: ProfileResult) -> Iterator[tuple[str, str, Speed]]:
    """Yield batch size, model and its speed: by batch size the dense model, the pruned one, others and the baseline."""
    pruned = result.gmacs.pruned != result.gmacs.dense
    first = result.name if result.others and result.name else "pruned"
    models: dict[str, Speed | None] = {"dense": result.dense, **({first: result} if pruned else {})}
    models |= {other.name: other for other in result.others}
    for batch in batches(result):
        for name, speed in {**models, "baseline": result.baseline}.items():
            if speed is not None and batch in speed.latency_ms:
                yield batch, name, speed


def batches(speed: Speed) -> list[str]:
    """Return the batch sizes that were timed, small ones first."""
    return sorted(speed.latency_ms, key=lambda size: (len(size), size))


def busy(result: ProfileResult) -> str | None:
    """Say where times of the dense model, whose calls all do the same work, were too far apart to trust the ratios."""
    calls = {
        batch: (speed.latency_ms[batch], speed.latency_p90_ms[batch])
        for batch, name, speed in timed(result)
        if name == "dense" and batch in speed.latency_p90_ms
    }
    if not calls:
        return None
    batch, (p50_ms, p90_ms) = max(calls.items(), key=lambda entry: entry[1][1] / entry[1][0])
    return wording.busy(f"at batch {batch} one in ten of the dense model's calls", p50_ms, p90_ms)


def tree_table(profiled: Profiled, depth: int = FOLDED, *, ascii_only: bool = False) -> Table:
    """Lay out the parts of a model as a tree, with what each and all below it costs, and its share of the time."""
    parts = tree(profiled, depth)
    between = time_between(profiled)
    table = plain_table("part", "params", "gmacs", "share", *(["time"] if between is not None else []))
    if not parts:
        return table
    above = {part.path: part.layers for part in parts}
    rails = _rails([part.path for part in parts], last_is_open=between is not None, ascii_only=ascii_only)
    everything = Part((), gmacs=sum(module.gmacs for module in profiled.modules), params=profiled.params)
    table.add_row(Text("model"), *_part_cells(everything, profiled, 1.0 if between is not None else None), style="bold")
    for part, rail in zip(parts, rails, strict=True):
        # What every layer of a stack has needs no number of its own.
        counted = part.layers != above.get(part.path[:-1], 1) and (depth < UNFOLDED or part.layers > 1)
        label = part.path[-1] + (f" x{part.layers}" if counted else "")
        table.add_row(
            Text.assemble((rail, "dim"), label, overflow="fold"), *_part_cells(part, profiled, part.time_share)
        )
    if between is not None:
        cells = ("", "", "", wording.percent(between))
        table.add_row(Text.assemble((_RAILS[ascii_only][1], "dim"), (BETWEEN, "italic")), *cells)
    return table


def layers_table(profiled: Profiled, width: int, *, ascii_only: bool = False) -> Table:
    """Lay out layer by layer the tokens that leave, with bars that are full where all tokens do, and the cost."""
    rows = layers(profiled)
    clocked = any(row.time_share is not None for row in rows)
    table = plain_table(
        "tokens kept after", "mean", "min", "max", "", "gmacs", "params", *(["time"] if clocked else [])
    )
    table.columns[4].justify = "left"
    for index, row in enumerate(rows):
        tower = [each for each in rows if each.tower == row.tower]
        most = max(max(each.tokens_max, each.tokens_entered or 0) for each in tower)
        table.add_row(
            Text(f"{row.tower} layer {row.layer}"),
            f"{row.tokens_mean:.1f}",
            str(row.tokens_min),
            str(row.tokens_max),
            range_bar(row.tokens_mean, row.tokens_max, most, max(min(width - 64, _WIDEST_BAR), 8), ascii_only),
            wording.gmacs(row.gmacs) if row.gmacs else "-",
            wording.parameters(row.params) if row.params else "-",
            *([_share(row.time_share)] if clocked else []),
            end_section=index + 1 < len(rows) and rows[index + 1].tower != row.tower,
        )
    return table


def tokens_table(kept: tuple[LayerTokens, ...], width: int, *, ascii_only: bool = False) -> Table:
    """Lay out the tokens that leave every layer, with bars that are full where all tokens that entered do."""
    table = plain_table("tokens kept after", "mean", "min", "max", "")
    table.columns[4].justify = "left"
    for members in by_tower(kept).values():
        most = max(max(layer.tokens_max, layer.tokens_entered or 0) for layer in members)
        for layer in members:
            table.add_row(
                Text(f"{layer.tower} layer {layer.layer}"),
                f"{layer.tokens_mean:.1f}",
                str(layer.tokens_min),
                str(layer.tokens_max),
                range_bar(layer.tokens_mean, layer.tokens_max, most, max(min(width - 46, _WIDEST_BAR), 8), ascii_only),
                end_section=layer is members[-1],
            )
    return table


def samples_table(profiled: Profiled, *, every: bool = False) -> Table:
    """Lay out what samples cost, most expensive first, and how many of their tokens were kept; both ends of many."""
    rows = samples(profiled)
    towers = list(rows[0].tokens_kept) if rows else []
    table = plain_table("sample", "gmacs", "reduction", *(tower.removeprefix("vision_") for tower in towers))
    shown = len(rows) if every or len(rows) <= 2 * _FEW_SAMPLES else _FEW_SAMPLES
    for index, sample in enumerate(rows):
        if shown <= index < len(rows) - shown:
            if index == shown:
                table.add_row(Text(f"{len(rows) - 2 * shown} more", style="dim"))
            continue
        kept = kept_shares(sample)
        table.add_row(
            Text(sample.id, overflow="fold"),
            wording.gmacs(sample.gmacs.pruned),
            wording.percent(sample.gmacs.reduction),
            *(wording.percent(kept[tower]) if tower in kept else "" for tower in towers),
        )
    return table


def pictures_table(pictures: Sequence[Picture]) -> Table:
    """Lay out what every sample that was drawn cost, what was answered, and what was right where that is known."""
    # Where what was looked for is the sample itself, as in a gallery, there is nothing to compare.
    known = any(picture.reference not in (None, picture.id) for picture in pictures)
    table = plain_table("picture", "gmacs", "reduction", "answer", *(["reference"] if known else []))
    table.columns[0].no_wrap = True
    for column in table.columns[3:]:
        column.justify, column.no_wrap = "left", False
    for picture in pictures:
        table.add_row(
            Text(PurePath(picture.file).name),
            wording.gmacs(picture.gmacs.pruned),
            wording.percent(picture.gmacs.reduction),
            Text(picture.answer or "-"),
            *([Text(picture.reference or "-")] if known else []),
        )
    return table


def range_bar(mean: float, largest: int, most: int, width: int, ascii_only: bool) -> Text:
    """Draw a bar up to the mean, and thinner on to the largest; `most` would fill the width."""
    to_mean, to_largest = (round(width * value / most) if most else 0 for value in (mean, largest))
    thick, thin = "#-" if ascii_only else "━─"
    return Text.assemble((thick * to_mean, "cyan"), (thin * (to_largest - to_mean), "dim"))


def composition_table(result: ProfileResult) -> Table:
    """Lay out the passes that a published cost is put together from, and that cost beside the published constant."""
    pruned = result.gmacs.pruned != result.gmacs.dense
    table = plain_table("pass", "times", "gmacs", *(["pruned"] if pruned else []), "in all")
    for index, part in enumerate(result.composition):
        cost = part.gmacs
        table.add_row(
            Text(part.name, overflow="fold"),
            f"x{part.times}",
            wording.gmacs(cost.dense),
            *([wording.gmacs(cost.pruned)] if pruned else []),
            wording.gmacs(part.times * cost.pruned),
            end_section=index == len(result.composition) - 1,
        )
    blank = [""] * (3 if pruned else 2)
    table.add_row("total", *blank, wording.gmacs(result.gmacs.pruned), style="bold")
    if pruned:
        table.add_row("without pruning", *blank, wording.gmacs(result.gmacs.dense))
    if result.published_gmacs is not None:
        table.add_row("as published", *blank, f"{result.published_gmacs:.2f}")
        difference = 100 * (result.gmacs.dense / result.published_gmacs - 1)
        table.add_row("difference", *blank, f"{difference:+.2f}%")
    return table


def passes_table(result: ProfileResult) -> Table:
    """Lay out what may come on top of a sample, once per pair or answer."""
    pruned = result.gmacs.pruned != result.gmacs.dense
    table = plain_table("on top, each", "gmacs", *(["pruned"] if pruned else []))
    for part in result.passes:
        costs = (part.gmacs.dense, part.gmacs.pruned) if pruned else (part.gmacs.dense,)
        table.add_row(Text(part.name, overflow="fold"), *map(wording.gmacs, costs))
    return table


def speed_table(result: ProfileResult) -> Table:
    """Lay out by batch size how long calls take (p50, p90, of so many), samples per second and MiB of memory; as ratios
    to dense the time beside the multiply-adds, and how much of what was saved became time.
    """
    rows = list(timed(result))
    compared = any(speed.time_ratio for _, _, speed in rows)
    columns = ("p50 ms", "p90 ms", "runs", "per s", "MiB", *(["time", "gmacs", "efficiency"] if compared else []))
    table = plain_table("batch", "model", *columns, gap=1)
    table.columns[1].justify = "left"
    for (batch, name, speed), first, last in _with_group_ends(rows):
        ratios = (
            _times(speed.time_ratio.get(batch)),
            _times(speed.macs_ratio.get(batch)),
            f"{speed.efficiency[batch]:.2f}" if batch in speed.efficiency else "",
        )
        table.add_row(
            batch if first else "",
            Text(name, overflow="fold"),
            *(
                wording.figures(values[batch]) if batch in values else ""
                for values in (speed.latency_ms, speed.latency_p90_ms)
            ),
            str(speed.latency_runs.get(batch, "")),
            *(
                wording.figures(values[batch]) if batch in values else ""
                for values in (speed.samples_per_second, speed.peak_mib)
            ),
            *(ratios if compared else ()),
            end_section=last,
        )
    return table


def _part_cells(part: Part, profiled: Profiled, time_share: float | None) -> list[str]:
    total = profiled.gmacs.pruned
    return [
        wording.parameters(part.params) if part.params else "-",
        wording.gmacs(part.gmacs) if part.gmacs else "-",
        wording.percent(part.gmacs / total) if part.gmacs and total else "-",
        *([] if time_between(profiled) is None else [_share(time_share)]),
    ]


def _share(share: float | None) -> str:
    return "-" if share is None else wording.percent(share)


def _rails(paths: Sequence[tuple[str, ...]], *, last_is_open: bool, ascii_only: bool) -> list[str]:
    """Draw what leads to each part; `last_is_open` where something still follows the last of the outermost."""
    tee, elbow, pipe, blank = _RAILS[ascii_only]
    ends = {path[:-1]: path for path in paths}  # the last part inside each
    if last_is_open:
        del ends[()]
    drawn = []
    for path in paths:
        above = (blank if ends.get(path[: end - 1]) == path[:end] else pipe for end in range(1, len(path)))
        drawn.append("".join(above) + (elbow if ends.get(path[:-1]) == path else tee))
    return drawn


def _with_group_ends(
    rows: Sequence[tuple[str, str, Speed]],
) -> Iterator[tuple[tuple[str, str, Speed], bool, bool]]:
    """Yield every row, and whether it is the first and the last of its batch size."""
    for index, row in enumerate(rows):
        first = index == 0 or rows[index - 1][0] != row[0]
        last = index + 1 == len(rows) or rows[index + 1][0] != row[0]
        yield row, first, last


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"x{ratio:.2f}"


def plain_table(*columns: str, gap: int = 2) -> Table:
    """Make a table whose first column holds names; `gap` is what is between columns beside the box's blank."""
    padding = (0, 1) if gap > 1 else (0, 1, 0, 0)
    table = Table(
        box=SIMPLE_HEAD, pad_edge=False, header_style="dim", border_style="dim", show_edge=False, padding=padding
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=bool(index))
    return table
