"""What `export` did, for people."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from rich.console import Console

from madtp_cli.report import wording
from madtp_cli.report.printing import cost_sentence, machine, print_facts, print_line
from madtp_cli.results_export import ExportCheck, ExportResult

COST_TOLERANCE = 0.02  # beyond this, fixed counts do not cost what they stand for


def headline(result: ExportResult) -> str:
    """Say what was written, and from what."""
    opset = "" if result.opset is None else f" opset {result.opset}"
    return f"{result.checkpoint} as {result.format}{opset}, {result.mode}, {result.precision}."


def verdict(check: ExportCheck) -> str:
    """Say how the files compare with PyTorch, or with the same fixed counts there."""
    fixed = "the same fixed counts in " * (check.against == "pytorch_fixed")
    answers = "" if check.same_answers is None else f"the same answers on {_share(check.same_answers)}, "
    embeds = "" if check.same_embeds is None else f"close embeddings of {_share(check.same_embeds)}, "
    return (
        f"Agrees with {fixed}PyTorch on {check.samples:,} samples: the same tokens kept on {_share(check.same_kept)}, "
        f"{answers}{embeds}numbers within {check.max_difference:.1e} (at most {check.atol:g})."
    )


def scores(check: ExportCheck) -> str:
    """Say how right the files are beside PyTorch as it prunes; empty where nothing tells."""
    if check.score is None:
        return ""
    exported, pytorch = (wording.percent(check.scores[name]) for name in ("exported", "pytorch"))
    beside = "in PyTorch" if check.against == "pytorch" else "of the model as it adapts, in PyTorch,"
    allowed = "1 point" if check.max_loss == 1 else f"{check.max_loss:g} points"
    return f"{check.score.capitalize()} {exported}, {beside} {pytorch}; {allowed} less is allowed."


def fixed_cost(check: ExportCheck) -> tuple[str, str]:
    """Say what fixed counts cost beside an adaptive model's own, and in which style; empty where there are none."""
    if check.cost_ratio is None:
        return "", ""
    off = abs(check.cost_ratio - 1) > COST_TOLERANCE
    text = f"The fixed counts cost {check.cost_ratio:.4f} of what the model costs on average as it adapts"
    return (f"{text}: no closer ones were found.", "yellow") if off else (f"{text}.", "")


def speed_lines(result: ExportResult) -> Iterator[str]:
    """Say how fast the files are, a line for each batch size."""
    dense, pruned = result.latency_ms.get("dense", {}), result.latency_ms.get("pruned", {})
    for size, ms in dense.items():
        if size not in pruned:
            yield f"batch {size}: {wording.milliseconds(ms)} in {result.runtime}"
            continue
        yield (
            f"batch {size}: {wording.milliseconds(pruned[size])} in {result.runtime}, unpruned "
            f"{wording.milliseconds(ms)}: {result.speedup[size]:.2f} times as fast"
        )


def files_line(result: ExportResult) -> str:
    """Name the largest files, which hold the weights, and count the rest."""
    found = sorted(result.files, key=lambda file: -file.bytes)
    large = [file for file in found if file.bytes > 0.01 * found[0].bytes]
    named = ", ".join(f"{file.name} ({wording.size(file.bytes)})" for file in large)
    rest = len(found) - len(large)
    return f"{named} and {rest} small ones" if rest else named


def _share(share: float) -> str:
    return "all" if share == 1 else wording.percent(share)


def print_export(console: Console, result: ExportResult) -> None:
    """Print what was written, how it agrees with PyTorch, what it costs, how fast it is, and what to do with it."""
    console.print()
    print_line(console, headline(result), "bold")
    print_line(console, verdict(result.check), "bold green")
    if result.check.score is not None:
        print_line(console, scores(result.check))
    if result.check.cost_ratio is not None:
        print_line(console, *fixed_cost(result.check))
    print_line(console, cost_sentence(result.gmacs.dense, result.gmacs.pruned))
    for line in speed_lines(result):
        print_line(console, line)
    facts = {
        "files": files_line(result),
        "folder": result.output,
        "run": f"{wording.duration(result.seconds)} {machine(result)}, {wording.threads(result.threads)}",
        "next": f"python {shlex.quote(f'{result.output}/example.py')}",
    }
    print_facts(console, facts)
