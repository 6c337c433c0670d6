"""`profile`: what a model costs, part by part, on real samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.console import Console

from madtp_cli import results
from madtp_cli.costs import analytic, counters, published
from madtp_cli.data.batch import Batch
from madtp_cli.engine import build, passes
from madtp_cli.engine.attention import taken_with
from madtp_cli.engine.latency import BATCH_SIZES, SAMPLES, speeds, time_models
from madtp_cli.engine.profile_subject import Subject, open_subject
from madtp_cli.engine.samples import check_text_tokens, fit_samples, join_samples, spread_samples
from madtp_cli.engine.tally import layer_tokens, tokens_kept
from madtp_cli.engine.tasks.base import Normalisation, arguments
from madtp_cli.errors import UsageError
from madtp_cli.models.base import PrunedModel
from madtp_cli.models.checkpoints import open_checkpoint
from madtp_cli.recipe import Recipe

COUNTERS: Mapping[str, Callable[..., counters.Count]] = {
    "fvcore": counters.fvcore_macs,
    "torch": counters.torch_macs,
}
# A second opinion runs sample by sample, and fvcore traces each: a few are enough to check the analytic count.
COUNTED_SAMPLES = 4
COUNT_BATCH = 16


@dataclass(frozen=True)
class Costs:
    """What samples cost on average, in MACs: without pruning, with it by module; and the tokens leaving every layer.

    `measured` and `dense_measured` are what the analytic count found, with and without pruning.
    """

    dense: float
    modules: Mapping[str, float]
    uncounted: tuple[str, ...]
    layers: tuple[results.LayerTokens, ...] = ()
    tokens_kept: Mapping[str, float] = field(default_factory=dict)
    measured: passes.Measured | None = None
    dense_measured: passes.Measured | None = None

    @property
    def macs(self) -> float:
        """Mean cost of a sample."""
        return sum(self.modules.values())

    def gmacs(self) -> results.Gmacs:
        """Return the record of both costs, in 1e9 MACs."""
        return _gmacs(self.dense, self.macs)


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
) -> results.ProfileResult:
    """Profile a checkpoint, or a recipe's model (`random_init`: with random weights), beside a baseline if given.

    Costs are means over real samples of the validation split, or, by convention `published`, put together from passes
    over them as papers do. Latency is that of the model as it prunes, of itself at strength 0 and of the baseline, in
    turn, at batch 1 and `batch_sizes` (none: 32). Raises SourceError, RecipeError, UsageError for what cannot be
    profiled.
    """
    if convention == "published" and counter != "analytic":
        raise UsageError(f"--convention published is put together by arithmetic, not by {counter}; remove --counter")
    where = build.choose_device(device)
    chosen = build.choose_precision(precision or "fp32", where)
    runs = latency or baseline is not None or counter != "analytic"
    subject = open_subject(checkpoint, recipe, random_init=random_init, runs=runs, seed=seed, console=console)
    model = subject.model if subject.weightless else subject.model.to(where)
    tokens = _text_tokens(subject, text_tokens, convention)
    compared = None if baseline is None else open_checkpoint(baseline)
    models = {"pruned": model} | ({} if compared is None else {"baseline": compared.build().to(where)})
    sizes = tuple(sorted({1, *(batch_sizes or BATCH_SIZES)}))
    if subject.data is None:
        assert tokens is not None
        costs = {"pruned": dense_costs(model, [tokens])}
    else:
        samples = _samples(subject, models, SAMPLES, tokens)
        costs = {name: _count(each, samples[name], counter, console, name) for name, each in models.items()}
    costed = {name: _in_convention(each, costs[name], convention) for name, each in models.items()}
    speed = dict.fromkeys(models, results.Speed())
    if latency:
        # Costs must not depend on the batch sizes: those of the samples above, whatever more a large batch needs.
        speed = _speeds(models, _samples(subject, models, max(SAMPLES, *sizes), tokens), sizes, chosen)
    dense = _side(costed["pruned"], speed["dense"], dense=True) if latency else None
    return replace(
        costed["pruned"],
        **vars(speed["pruned"]),
        **({} if subject.weightless else taken_with(where, chosen)),
        seed=subject.seed,
        checkpoint=checkpoint,
        dense=dense,
        dense_latency_ms={} if dense is None else dense.latency_ms,
        counter=counter,
        batch_size=sizes[-1] if latency else None,
        text_tokens=tokens,
        baseline=None if compared is None else _side(costed["baseline"], speed["baseline"], compared.size_mib),
    )


def prunes(model: PrunedModel) -> bool:
    """Tell whether a model drops any tokens as it is set."""
    return model.plan is not None and model.strength > 0


def at_strength(model: PrunedModel, strength: float) -> PrunedModel:
    """Return the same model at another strength, 0 for dense; the two share their weights."""
    twin = copy.copy(model)
    twin.strength = strength
    return twin


@torch.inference_mode()
def analytic_costs(model: PrunedModel, samples: Sequence[Batch]) -> Costs:
    """Count by token numbers: exact, and of every module."""
    lengths = [length for sample in samples for length in sample.text_lengths]
    dense = dense_costs(model, lengths)
    if not prunes(model):
        return dense
    device = next(model.parameters()).device
    model.eval()
    meter = passes.Meter()
    for start in range(0, len(samples), COUNT_BATCH):
        given = arguments(join_samples(samples[start : start + COUNT_BATCH]), Normalisation(), device)
        meter.add(model, model(**given), given["text"])
    measured, layers = meter.measured(model), meter.tally.layers
    kept = tokens_kept(layers, dense.layers)
    return replace(dense, modules=measured.macs, layers=layers, tokens_kept=kept, measured=measured)


def dense_costs(model: PrunedModel, lengths: Sequence[int]) -> Costs:
    """Count what the unpruned model costs for texts of these lengths; nothing is run, and no weights are needed."""
    measured = passes.dense(model, lengths)
    seen, read = model.image_tokens, list(lengths)
    leaving = {
        **{("vision", layer): [seen] for layer in range(model.config.vision_config.num_hidden_layers)},
        **{("text", layer): read for layer in range(model.config.text_config.num_hidden_layers)},
    }
    layers = layer_tokens(leaving)
    return Costs(
        dense=sum(measured.macs.values()),
        modules=measured.macs,
        uncounted=analytic.UNCOUNTED,
        layers=layers,
        tokens_kept=tokens_kept(layers, layers),
        measured=measured,
        dense_measured=measured,
    )


def counted_costs(model: PrunedModel, samples: Sequence[Batch], counter: str, names: Sequence[str]) -> Costs:
    """Count one sample after the other by what runs; `names` are the modules to report, the rest is `pruning`."""
    device = next(model.parameters()).device
    inputs = [_arguments(sample, device) for sample in samples]
    pruned = [COUNTERS[counter](model, *args) for args in inputs]
    dense = [COUNTERS[counter](at_strength(model, 0), *args) for args in inputs] if prunes(model) else pruned
    sums = {name: sum(count.modules.get(name, 0) for count in pruned) for name in names}
    sums["pruning"] = sum(count.macs for count in pruned) - sum(sums.values())
    uncounted = dict.fromkeys(name for count in (*pruned, *dense) for name in count.uncounted)
    return Costs(
        dense=sum(count.macs for count in dense) / len(samples),
        modules={name: macs / len(samples) for name, macs in sums.items() if macs},
        uncounted=tuple(uncounted),
    )


def module_costs(model: PrunedModel, macs: Mapping[str, float]) -> tuple[results.ModuleCost, ...]:
    """List every part with its cost and its parameters; parameters of parts without cost have lines of their own."""
    params = dict.fromkeys(macs, 0)
    for name, parameter in model.named_parameters():
        owner = next((path for path in macs if name.startswith(f"{path}.")), None)
        if owner is None:
            owner = "alignment" if name.startswith("alignment.") else name.rpartition(".")[0]
        params[owner] = params.get(owner, 0) + parameter.numel()
    return tuple(
        results.ModuleCost(name=name, gmacs=macs.get(name, 0.0) / 1e9, params=count) for name, count in params.items()
    )


def _text_tokens(subject: Subject, given: int | None, convention: str) -> int | None:
    """Choose the length of texts; None leaves them as they are. Raises UsageError for more than the model reads."""
    model = subject.model
    if given is not None:
        check_text_tokens(model, given)
        return given
    if convention == "published":
        longest: int = model.config.text_config.max_position_embeddings
        return min(published.CALLS[model.family, model.task].text_tokens, longest)
    return subject.text_tokens


def _in_convention(model: PrunedModel, costs: Costs, convention: str) -> results.ProfileResult:
    """Start a result: what a model costs as the convention counts it."""
    started = results.ProfileResult(
        command="profile",
        checkpoint=None,
        convention=convention,
        gmacs=costs.gmacs(),
        params=_parameters(model),
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
        more = [results.PassCost(name=name, gmacs=_gmacs(dense[name], pruned[name])) for name in dense]
        return replace(started, passes=tuple(more))
    call = published.CALLS[model.family, model.task]
    whole, left = passes.passes(model, costs.dense_measured), passes.passes(model, costs.measured)
    modules = published.compose(call, left)
    composition = tuple(
        results.PassCost(name=name, gmacs=_gmacs(whole[name].published_macs, left[name].published_macs), times=times)
        for name, times in call.passes.items()
    )
    return replace(
        started,
        gmacs=_gmacs(sum(published.compose(call, whole).values()), sum(modules.values())),
        modules=module_costs(model, modules),
        uncounted=tuple(name for name in costs.uncounted if name != analytic.LAYER_NORM),
        composition=composition,
        published_gmacs=call.gmacs if passes.is_published(model) else None,
    )


def _samples(
    subject: Subject, models: Mapping[str, PrunedModel], count: int, tokens: int | None
) -> dict[str, list[Batch]]:
    """Draw so many samples, and fit them to every model."""
    assert subject.data is not None
    drawn = spread_samples(subject.data, count)
    return {name: fit_samples(drawn, each, subject.normalise, tokens) for name, each in models.items()}


def _speeds(
    models: Mapping[str, PrunedModel], samples: Mapping[str, list[Batch]], sizes: Sequence[int], precision: str
) -> dict[str, results.Speed]:
    """Time all models beside `dense`, the one named pruned at strength 0; one that prunes nothing is that already."""
    pruned = models["pruned"]
    candidates = {"dense": (at_strength(pruned, 0), samples["pruned"])}
    candidates |= {
        name: (model, samples[name]) for name, model in models.items() if model is not pruned or prunes(pruned)
    }
    found = speeds(time_models(candidates, batch_sizes=sizes, precision=precision))
    return {"pruned": found["dense"], **found}


def _count(model: PrunedModel, samples: Sequence[Batch], counter: str, console: Console, name: str) -> Costs:
    """Count with the chosen counter; a second opinion is printed beside the analytic count of the same samples."""
    exact = analytic_costs(model, samples)
    if counter == "analytic":
        return exact
    few = samples[:: max(1, len(samples) // COUNTED_SAMPLES)][:COUNTED_SAMPLES]
    expected = analytic_costs(model, few).macs
    found = counted_costs(model, few, counter, list(exact.modules))
    console.print(
        f"{counter} counts {found.macs / 1e9:.6g} gmacs on {len(few)} samples of the {name} model, "
        f"the analytic count is {expected / 1e9:.6g} ({100 * (found.macs / expected - 1):+.3f}%)"
    )
    return replace(exact, dense=found.dense, modules=found.modules, uncounted=found.uncounted)


def _arguments(sample: Batch, device: torch.device) -> tuple[Any, ...]:
    return tuple(arguments(sample, Normalisation(), device).values())


def _parameters(model: PrunedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _gmacs(dense: float, pruned: float) -> results.Gmacs:
    return results.Gmacs(dense=dense / 1e9, pruned=pruned / 1e9, reduction=1 - pruned / dense)


def _side(
    costed: results.ProfileResult, speed: results.Speed, size_mib: float | None = None, *, dense: bool = False
) -> results.Side:
    """Make one side of a comparison of what a model costs, as it prunes or `dense`."""
    return results.Side(
        metrics={},
        gmacs=costed.gmacs.dense if dense else costed.gmacs.pruned,
        params=costed.params,
        tokens_kept=dict.fromkeys(costed.tokens_kept, 1.0) if dense else costed.tokens_kept,
        size_mib=size_mib,
        **vars(speed),
    )
