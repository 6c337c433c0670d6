"""`profile`: what models cost, part by part, on real samples, one checkpoint or several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from rich.console import Console

from madtp_cli import results
from madtp_cli.costs import analytic, published
from madtp_cli.data.batch import Batch
from madtp_cli.engine.building.attention import taken_with
from madtp_cli.engine.building.device import choose_device, choose_precision
from madtp_cli.engine.evaluation.samples import check_text_tokens, fit_samples, spread_samples
from madtp_cli.engine.profiling import passes
from madtp_cli.engine.profiling.costs import Costs, count, dense_costs, gmacs_of, module_costs
from madtp_cli.engine.profiling.latency import BATCH_SIZES, SAMPLES
from madtp_cli.engine.profiling.subject import Subject, open_subject
from madtp_cli.engine.profiling.time import BASELINE, SECONDS, measure_speeds, time_shares
from madtp_cli.errors import UsageError
from madtp_cli.models.base import PrunedModel
from madtp_cli.models.checkpoints import Checkpoint, open_checkpoint
from madtp_cli.models.family import family_of
from madtp_cli.recipe import Recipe

FIRST = "pruned"  # the model that a profile is of; further ones are numbered


@dataclass(frozen=True)
class _Costed:
    """A model with what it costs, as the convention counts it."""

    model: PrunedModel
    result: results.ProfileResult


def profile_checkpoint(
    checkpoint: str | None,
    *,
    recipe: Recipe | None,
    random_init: bool,
    baseline: str | None,
    counter: str,
    batch_sizes: Sequence[int],
    text_tokens: int | None,
    latency: bool,
    device: str,
    precision: str | None,
    seed: int | None,
    console: Console,
    verbosity: int,
    convention: str = "sample",
    others: Sequence[str] = (),
    seconds: float | None = None,
) -> results.ProfileResult:
    """Profile a checkpoint, or a recipe's model (`random_init`: with random weights), beside others and a baseline.

    Costs are means over real samples of the validation split of the first, or, by convention `published`, put together
    from passes over them as papers do. Latency is that of every model as it prunes, of itself at strength 0 and of the
    baseline, in turn, at batch 1 and `batch_sizes` (none: 32), for about so many seconds per model and batch size.
    Raises SourceError, RecipeError, UsageError for what cannot be profiled.
    """
    if convention == "published" and counter != "analytic":
        raise UsageError(f"--convention published is put together by arithmetic, not by {counter}; remove --counter")
    where = choose_device(device)
    chosen = choose_precision(precision or "fp32", where)
    runs = latency or baseline is not None or bool(others) or counter != "analytic"
    subject = open_subject(checkpoint, recipe, random_init=random_init, runs=runs, seed=seed, console=console)
    first = subject.model if subject.weightless else subject.model.to(where)
    opened = _open_beside(first, others, baseline)
    models = {FIRST: first} | {name: each.build().to(where) for name, each in opened.items()}
    tokens = _text_tokens(subject, text_tokens, convention)
    samples = {} if subject.data is None else _samples(subject, models, SAMPLES, tokens)
    costed = _costed(models, samples, tokens, counter, convention, console)
    sizes = tuple(sorted({1, *(batch_sizes or BATCH_SIZES)}))
    if latency:
        timed = samples if sizes[-1] <= SAMPLES else _samples(subject, models, sizes[-1], tokens)
        costed = _timed(costed, timed, sizes, chosen, SECONDS if seconds is None else seconds)
    compared = opened.pop(BASELINE, None)
    names = short_names([subject.checkpoint or "", *others])
    found = costed[FIRST].result
    return replace(
        found,
        **({} if subject.weightless else taken_with(where, chosen)),
        seed=subject.seed,
        checkpoint=subject.checkpoint,
        name=names[0] or None,
        recipe=None if recipe is None else recipe.name,
        size_mib=subject.size_mib,
        dense_latency_ms={} if found.dense is None else found.dense.latency_ms,
        counter=counter,
        batch_size=sizes[-1] if latency else None,
        text_tokens=tokens,
        baseline=None if compared is None else _side(costed[BASELINE].result, compared.size_mib),
        others=_others(costed, opened, names[1:]),
    )


def short_names(checkpoints: Sequence[str]) -> list[str]:
    """Name checkpoints by the last parts of their paths, as few as tell them apart."""
    parts = [PurePath(checkpoint).parts or ("",) for checkpoint in checkpoints]
    depth = 1
    while depth < max(map(len, parts)) and len({each[-depth:] for each in parts}) < len(parts):
        depth += 1
    return [str(PurePath(*each[-depth:])) if each != ("",) else "" for each in parts]


def _open_beside(first: PrunedModel, others: Sequence[str], baseline: str | None) -> dict[str, Checkpoint]:
    """Open further checkpoints, numbered from 2, and the baseline; raises UsageError for one of another task."""
    opened = {str(number): open_checkpoint(source) for number, source in enumerate(others, 2)}
    opened |= {} if baseline is None else {BASELINE: open_checkpoint(baseline)}
    for other in opened.values():
        if (first.family, first.task) != (other.family, other.task):
            raise UsageError(
                f"{other.source}: is a {other.family} model for {other.task}, and the first is a {first.family} model "
                f"for {first.task}; profile them apart, because they do not read the same samples"
            )
    return opened


def _costed(
    models: Mapping[str, PrunedModel],
    samples: Mapping[str, Sequence[Batch]],
    tokens: int | None,
    counter: str,
    convention: str,
    console: Console,
) -> dict[str, _Costed]:
    """Count every model on its form of the same samples, or the first by arithmetic where there are none."""
    if samples:
        costs = {name: count(each, samples[name], counter, console, name) for name, each in models.items()}
    else:
        assert tokens is not None
        costs = {FIRST: dense_costs(models[FIRST], [tokens])}
    return {name: _Costed(each, _in_convention(each, costs[name], convention)) for name, each in models.items()}


def _timed(
    costed: Mapping[str, _Costed],
    samples: Mapping[str, Sequence[Batch]],
    sizes: Sequence[int],
    precision: str,
    seconds: float,
) -> dict[str, _Costed]:
    """Add to every model how fast it is, to all but the baseline how fast unpruned and part by part.

    Costs must not depend on the batch sizes: they stay those that were counted, whatever more samples these are.
    """
    models = {name: each.model for name, each in costed.items()}
    speed, unpruned = measure_speeds(models, samples, sizes, precision=precision, seconds=seconds)
    timed = {}
    for name, each in costed.items():
        result = replace(each.result, **vars(speed[name]))
        if name != BASELINE:
            paths = [module.name for module in result.modules]
            shares = time_shares(each.model, paths, samples[name], precision)
            modules = tuple(replace(module, time_share=shares.get(module.name)) for module in result.modules)
            result = replace(result, modules=modules, dense=_unpruned(each, unpruned[name]))
        timed[name] = _Costed(each.model, result)
    return timed


def _text_tokens(subject: Subject, given: int | None, convention: str) -> int | None:
    """Choose the length of texts; None leaves them as they are. Raises UsageError for more than the model reads."""
    model = subject.model
    if given is not None:
        check_text_tokens(model, given)
        return given
    if convention == "published":
        return min(family_of(model.family).calls[model.task].text_tokens, model.limits.text_tokens)
    return subject.text_tokens


def _samples(
    subject: Subject, models: Mapping[str, PrunedModel], count: int, tokens: int | None
) -> dict[str, list[Batch]]:
    """Draw so many samples, and fit them to every model."""
    assert subject.data is not None
    drawn = spread_samples(subject.data, count)
    return {name: fit_samples(drawn, each, subject.normalise, tokens) for name, each in models.items()}


def _in_convention(model: PrunedModel, costs: Costs, convention: str) -> results.ProfileResult:
    """Start a result: what a model costs as the convention counts it."""
    started = results.ProfileResult(
        command="profile",
        checkpoint=None,
        convention=convention,
        gmacs=costs.gmacs(),
        params=sum(parameter.numel() for parameter in model.parameters()),
        modules=module_costs(model, costs.modules),
        layers=costs.layers,
        tokens_kept=costs.tokens_kept,
        uncounted=costs.uncounted,
    )
    assert costs.measured is not None
    assert costs.dense_measured is not None
    if convention == "sample":
        dense = passes.second_passes(model, costs.dense_measured)
        pruned = passes.second_passes(model, costs.measured)
        more = [results.PassCost(name=name, gmacs=gmacs_of(dense[name], pruned[name])) for name in dense]
        return replace(started, passes=tuple(more), samples=costs.samples)
    family = family_of(model.family)
    call = family.calls[model.task]
    whole, left = family.passes(model, costs.dense_measured), family.passes(model, costs.measured)
    modules = published.compose(call, left)
    composition = tuple(
        results.PassCost(name=name, gmacs=gmacs_of(whole[name].published_macs, left[name].published_macs), times=times)
        for name, times in call.passes.items()
    )
    return replace(
        started,
        gmacs=gmacs_of(sum(published.compose(call, whole).values()), sum(modules.values())),
        modules=module_costs(model, modules),
        uncounted=tuple(name for name in costs.uncounted if name != analytic.LAYER_NORM),
        composition=composition,
        published_gmacs=call.gmacs if passes.is_published(model) else None,
    )


def _others(
    costed: Mapping[str, _Costed], opened: Mapping[str, Checkpoint], names: Sequence[str]
) -> tuple[results.NamedProfile, ...]:
    return tuple(
        _named(costed[key].result, name, each.source, each.size_mib)
        for (key, each), name in zip(opened.items(), names, strict=True)
    )


def _named(costed: results.Profiled, name: str, checkpoint: str, size_mib: float) -> results.NamedProfile:
    """Take from a result what is said of one checkpoint among several."""
    known: dict[str, Any] = {field: getattr(costed, field) for field in results.Profiled.__dataclass_fields__}
    return results.NamedProfile(**{**known, "size_mib": size_mib}, name=name, checkpoint=checkpoint)


def _side(costed: results.ProfileResult, size_mib: float | None) -> results.Side:
    """Make the baseline's side of a comparison of what it costs as it prunes."""
    speed = {field: getattr(costed, field) for field in results.Speed.__dataclass_fields__}
    return results.Side(
        metrics={},
        gmacs=costed.gmacs.pruned,
        params=costed.params,
        tokens_kept=costed.tokens_kept,
        size_mib=size_mib,
        **speed,
    )


def _unpruned(costed: _Costed, speed: results.Speed) -> results.Side:
    """Make the side of the same model without pruning, which has no use for alignment."""
    result, alignment = costed.result, costed.model.alignment
    guiding = 0 if alignment is None else sum(parameter.numel() for parameter in alignment.parameters())
    return results.Side(
        metrics={},
        gmacs=result.gmacs.dense,
        params=result.params - guiding,
        tokens_kept=dict.fromkeys(result.tokens_kept, 1.0),
        **vars(speed),
    )
