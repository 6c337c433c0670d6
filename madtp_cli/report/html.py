"""report.html: what a run did, in figures and pictures, for whoever has to decide about the model."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import PurePath

from madtp_cli.report import plots, wording
from madtp_cli.report.comparison import (
    Row,
    Tone,
    budget_line,
    busy,
    by_tower,
    compare,
    headline,
    is_pruned,
    main_metric,
    pruned_name,
)
from madtp_cli.report.kept_tokens import TITLES, Sample, spread
from madtp_cli.report.overlay import panel, titled
from madtp_cli.report.page import cards, code, facts, figures, folded, page, paragraph, picture, section, table
from madtp_cli.results import PruneResult

PANELS = 4  # pruned layers that a sample shows
PIXELS = 144  # of a picture's side
_KINDS = {Tone.GOOD: "good", Tone.PLAIN: "", Tone.BAD: "bad"}
_COST = (
    "gmacs are 1e9 multiply-adds of inference for one sample (what papers of this field call GFLOPs), the cost of "
    "choosing tokens included: the mean over the test split, counted from the tokens that every sample kept."
)
_PICTURES = (
    "Patches that still stand for themselves after a layer are shown as the model sees them; hatched ones are gone on "
    "their own. Words that are gone are struck out."
)


@dataclass(frozen=True, kw_only=True)
class Story:
    """What a report tells beside the run's result.

    log holds the lines of metrics.jsonl and `score` names the metric that validated; gmacs and dense_gmacs are those of
    every test sample; kept is the share of tokens (0..1) that leave a layer, by site, layer and sample, for sites that
    prune; reads says what the samples of a site are, image or text; extremes and examples are samples to show, by what
    they are examples of; setting is more of how it was measured, by name.
    """

    result: PruneResult
    recipe: str
    log: Sequence[plots.Entry]
    score: str
    gmacs: Sequence[float]
    dense_gmacs: Sequence[float]
    kept: Mapping[str, Mapping[int, Sequence[float]]]
    reads: Mapping[str, str]
    extremes: Mapping[str, Sequence[Sample]]
    examples: Mapping[str, Sequence[Sample]]
    setting: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    limits: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The checkpoint folder's own name."""
        return PurePath(self.result.checkpoint or "checkpoint").name


def report(story: Story) -> str:
    """Return the page; sections of which nothing is known are left out."""
    return page(
        f"{story.name}: madtp report",
        (
            _verdict(story),
            section("Load it", *_loading(story.name)),
            section(
                "What it costs and how good it is",
                _comparison(story.result),
                paragraph(busy(story.result.dense) or "", "bad"),
                paragraph(_COST, "soft"),
            ),
            section("Training", figures(_training(story))),
            section("Where tokens are lost", *_tokens(story)),
            section("What samples cost", *_costs(story)),
            section("What is kept", *_pictures(story.examples)),
            section("How it was measured", *_measured(story)),
        ),
    )


def _verdict(story: Story) -> str:
    result = story.result
    what = "pruned" if is_pruned(result) else "trained"
    lines = [f"<header>\n<h1>{escape(story.name)}</h1>", paragraph(f"A checkpoint {what} with madtp.", "soft")]
    if result.smoke:
        lines.append(paragraph("A smoke run of two samples and one step: the path works, figures mean nothing.", "bad"))
    if result.budget is not None and not result.smoke:
        lines.append(paragraph(budget_line(result.budget), f"verdict {'good' if result.budget.met else 'bad'}"))
    lines.append(paragraph(headline(result) or "", "verdict"))
    return "\n".join(line for line in [*lines, cards(_cards(result)), "</header>"] if line)


def _cards(result: PruneResult) -> Iterator[tuple[str, str, str, str]]:
    """Yield the cost, the main metric, latencies and the budget; of one model its figures alone."""
    rows = compare(result.dense, result.pruned, families=False)
    first = main_metric(result)
    chosen = [
        row for row in rows if row.group in ("cost", "latency") or (row.group == "metrics" and row.label == first)
    ]
    for row in sorted(chosen, key=lambda row: ("cost", "metrics", "latency").index(row.group)):
        name = {"metrics": wording.metric_name(row.label), "cost": "Cost"}.get(row.group, row.label.capitalize())
        if row.dense and row.pruned:
            unit = " gmacs per sample" if row.group == "cost" else ""
            yield name, row.change, f"{row.pruned} against {row.dense}{unit}", _KINDS[row.tone]
        else:
            yield name, row.pruned or row.dense, "gmacs per sample" if row.group == "cost" else "", ""
    if result.budget is not None and not result.smoke:
        reached, target = (
            wording.percent(share) for share in (result.budget.reached_reduction, result.budget.target_reduction)
        )
        met = result.budget.met
        yield "Budget", "met" if met else "missed", f"reduced by {reached}, target {target}", "good" if met else "bad"


def _loading(name: str) -> Iterator[str]:
    yield code(f'import madtp_cli\n\nmodel, processor = madtp_cli.load("{name}")')
    yield paragraph("From the folder above the checkpoint. Measure it again, on its own test split or part by part:")
    yield code(f"madtp evaluate {shlex.quote(name)}\nmadtp profile {shlex.quote(name)}")


def _comparison(result: PruneResult) -> str:
    rows = compare(result.dense, result.pruned)
    both = all(any(getattr(row, side) for row in rows) for side in ("dense", "pruned"))
    header = ["", "dense", pruned_name(result), "change"] if both else ["", "value"]
    caption = "Metrics are those of the test split, read once, after training."
    if result.samples is not None:
        caption = f"Metrics are those of the {result.samples:,} test samples, read once, after training."

    def lines() -> Iterator[tuple[str, Sequence[str]]]:
        for before, row in zip([rows[0], *rows], rows, strict=False):
            kind = "inner" if row.inner else "" if before.group == row.group else "group"
            values = [row.dense or "-", row.pruned or "-", row.change] if both else [row.pruned or row.dense]
            yield kind, [_label(row), *values]

    return table(caption, header, lines())


def _label(row: Row) -> str:
    return wording.metric_name(row.label) if row.group == "metrics" and not row.inner else row.label


def _training(story: Story) -> Iterator[plots.Plot | None]:
    yield plots.losses(story.log)
    yield plots.cost(story.log)
    yield plots.strength(story.log)
    sides = {"dense": story.result.dense, pruned_name(story.result): story.result.pruned}
    tests = {
        name: (side.gmacs, side.metrics[story.score])
        for name, side in sides.items()
        if side is not None and story.score in side.metrics
    }
    dense = next((entry["dense_gmacs"] for entry in reversed(story.log) if entry.get("dense_gmacs")), None)
    if dense is not None and is_pruned(story.result):
        yield plots.score_against_cost(story.log, story.score, dense, tests)


def _tokens(story: Story) -> Iterator[str]:
    towers = by_tower(story.result.layers)
    if not story.kept:
        yield paragraph("Nothing is pruned: all tokens leave every layer.") if towers else ""
        return
    if whole := [tower for tower in towers if tower not in story.kept]:
        yield paragraph(f"Of the {' and '.join(whole)} tower nothing is pruned.")
    yield figures(plots.kept(site, layers, f"{story.reads[site]}s") for site, layers in story.kept.items())
    yield folded(
        "As a table",
        table(
            "Tokens that leave every layer, over the test samples",
            ("", "mean", "least", "most"),
            (
                (
                    "group" if layer is layers[0] else "",
                    [
                        f"{tower} layer {layer.layer}",
                        f"{layer.tokens_mean:.1f}",
                        str(layer.tokens_min),
                        str(layer.tokens_max),
                    ],
                )
                for tower, layers in towers.items()
                for layer in layers
            ),
        ),
    )


def _costs(story: Story) -> Iterator[str]:
    if story.gmacs and is_pruned(story.result):
        yield figures((plots.histogram(story.gmacs, story.dense_gmacs),))
    yield from _pictures(story.extremes)


def _pictures(groups: Mapping[str, Sequence[Sample]]) -> Iterator[str]:
    shown = {title: samples for title, samples in groups.items() if samples}
    if any(view.layers for samples in shown.values() for one in samples for view in one.sites.values()):
        yield paragraph(_PICTURES, "soft")
    for title, samples in shown.items():
        yield f"<h3>{escape(title)}</h3>"
        for sample in samples:
            yield _sample(sample)


def _sample(sample: Sample) -> str:
    kind = "" if sample.right is None else " good" if sample.right else " bad"
    strips = []
    for name, image, view in sample.views:
        title = TITLES.get(name, name)
        shots = [
            f"<figure>{picture(panel(image, view, pixels=PIXELS), title)}<figcaption>{title}</figcaption></figure>"
        ]
        for kept in spread(view.layers, PANELS):
            said = f"layer {kept.layer}: {view.described(kept)}"
            drawn = picture(panel(image, view, kept, pixels=PIXELS), f"{title}, {said}")
            shots.append(f"<figure>{drawn}<figcaption>{said}</figcaption></figure>")
        strips.append("\n".join(('<div class="strip">', *shots, "</div>")))
    return "\n".join(
        (
            '<article class="sample">',
            f"<h4>{escape(sample.id)}</h4>",
            f'<p class="answer{kind}">{escape(titled(sample))}</p>',
            '<div class="beside">',
            *("<div>", *strips, "</div>"),
            *("<div>", *_words(sample), "</div>"),
            "</div>",
            "</article>",
        )
    )


def _words(sample: Sample) -> Iterator[str]:
    """Yield the words, after each pruned layer of the sites of texts."""
    left = {
        f"{name}, layer {kept.layer}: {view.described(kept)}": set(kept.alone)
        for name, view in sample.texts
        for kept in spread(view.layers, PANELS)
    }
    for head, places in (left or {"text, not pruned": set(range(len(sample.words)))}).items():
        each = (
            escape(word) if place in places else f"<del>{escape(word)}</del>" for place, word in enumerate(sample.words)
        )
        yield f'<p class="words"><span class="of">{head}</span>{" ".join(each)}</p>'


def _measured(story: Story) -> Iterator[str]:
    result = story.result
    threads = wording.threads(result.threads)
    machine = ", ".join(part for part in (result.processor, result.device, threads, result.dtype) if part)
    runs = [side.latency_runs for side in (result.dense, result.pruned) if side and side.latency_runs]
    yield facts(
        {
            "cost": "exact multiply-adds of the tokens that every test sample kept, choosing them included",
            "metrics": "" if result.samples is None else f"on {result.samples:,} test samples",
            "latency": "the median (p50) time of one batch of validation samples, "
            f"over {min(min(each.values()) for each in runs):,} calls or more"
            if runs
            else "",
            "measured on": machine,
            "attention": result.attention_backend or "",
            "trained in": result.training_precision or "",
            **story.setting,
            "seed": "" if result.seed is None else str(result.seed),
            "time": wording.duration(result.seconds),
            "versions": ", ".join(f"{name} {version}" for name, version in result.versions.items()),
        }
    )
    for note in story.notes:
        yield paragraph(note)
    if story.limits:
        yield "\n".join(("<h3>Limits</h3>", "<ul>", *(f"<li>{escape(limit)}</li>" for limit in story.limits), "</ul>"))
    yield folded("The recipe, every setting spelled out", code(story.recipe))
