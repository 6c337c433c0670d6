"""`profile`: what a model costs, part by part, on real samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console

from madtp_cli import results
from madtp_cli.costs import analytic, counters
from madtp_cli.costs.latency import Latency
from madtp_cli.data.batch import Batch, Split
from madtp_cli.engine import build
from madtp_cli.engine.build_data import SHAPES_SPLITS, open_splits
from madtp_cli.engine.evaluate_checkpoint import own_recipe
from madtp_cli.engine.latency import ATTENTION_BACKEND, BATCH_SIZES, SAMPLES, time_models
from madtp_cli.engine.samples import fit_samples, join_samples, spread_samples
from madtp_cli.engine.tally import Tally
from madtp_cli.engine.tasks.base import Normalisation, arguments
from madtp_cli.errors import UsageError
from madtp_cli.models.base import PrunedModel, initialise, towers_of
from madtp_cli.models.checkpoints import MODELS, Checkpoint, open_checkpoint
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
    """What samples cost on average, in MACs: without pruning, with it by module; and the tokens leaving every layer."""

    dense: float
    modules: Mapping[str, float]
    uncounted: tuple[str, ...]
    layers: tuple[results.LayerTokens, ...] = ()

    @property
    def macs(self) -> float:
        """Mean cost of a sample."""
        return sum(self.modules.values())

    def gmacs(self) -> results.Gmacs:
        """Return the record of both costs, in 1e9 MACs."""
        return results.Gmacs(dense=self.dense / 1e9, pruned=self.macs / 1e9, reduction=1 - self.macs / self.dense)


@dataclass(frozen=True)
class _Subject:
    """A model to profile, the data it is profiled on, and the seed of whatever is random in it."""

    model: PrunedModel
    data: Split[Any]
    seed: int | None


def profile_checkpoint(
    checkpoint: str | None,
    *,
    recipe: Recipe | None,
    random_init: bool,
    baseline: str | None,
    counter: str,
    batch_size: int | None,
    text_tokens: int | None,
    latency: bool,
    device: str,
    precision: str | None,
    seed: int | None,
    console: Console,
    verbosity: int,
) -> results.ProfileResult:
    """Profile a checkpoint, or a recipe's model (`random_init`: with random weights), beside a baseline if given.

    Costs are means over real samples of the validation split. Latency is that of the model as it prunes, of itself at
    strength 0 and of the baseline, in turn. Raises SourceError, RecipeError, UsageError for what cannot be profiled.
    """
    where = build.choose_device(device)
    chosen_precision = build.choose_precision(precision or "fp32", where)
    subject = _subject(checkpoint, recipe, random_init, seed, console)
    model = subject.model.to(where)
    compared = None if baseline is None else open_checkpoint(baseline)
    models = {"pruned": model}
    if compared is not None:
        models["baseline"] = compared.build().to(where)
    sizes = tuple(sorted({1, batch_size or max(BATCH_SIZES)}))
    drawn = spread_samples(subject.data, max(SAMPLES, *sizes))
    samples = {name: fit_samples(drawn, each, text_tokens) for name, each in models.items()}
    costs = {name: _count(each, samples[name], counter, console, name) for name, each in models.items()}
    timed: dict[int, dict[str, Latency]] = {}
    if latency:
        candidates = {name: (each, samples[name]) for name, each in models.items()}
        if prunes(model):
            candidates = {"dense": (at_strength(model, 0), samples["pruned"]), **candidates}
        timed = time_models(candidates, batch_sizes=sizes, precision=chosen_precision)
    found = costs["pruned"]
    return results.ProfileResult(
        command="profile",
        device=str(where),
        dtype=chosen_precision,
        seed=subject.seed,
        checkpoint=checkpoint,
        gmacs=found.gmacs(),
        params=_parameters(model),
        modules=module_costs(model, found.modules),
        layers=found.layers,
        latency_ms=_p50(timed, "pruned"),
        latency_p90_ms={str(size): latencies["pruned"].p90_ms for size, latencies in timed.items()},
        dense_latency_ms=_p50(timed, "dense" if prunes(model) else "pruned"),
        uncounted=found.uncounted,
        counter=counter,
        attention_backend=ATTENTION_BACKEND,
        batch_size=sizes[-1] if latency else None,
        text_tokens=text_tokens,
        baseline=None if compared is None else _side(compared, models["baseline"], costs["baseline"], timed),
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
    device = next(model.parameters()).device
    model.eval()
    tally = Tally()
    for start in range(0, len(samples), COUNT_BATCH):
        batch = join_samples(samples[start : start + COUNT_BATCH])
        tally.add(model, model(**arguments(batch, Normalisation(), device)))
    modules = {name: macs / len(samples) for name, macs in tally.modules.items()}
    return Costs(sum(tally.dense_macs) / len(samples), modules, analytic.UNCOUNTED, tally.layers)


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


def _subject(
    checkpoint: str | None, recipe: Recipe | None, random_init: bool, seed: int | None, console: Console
) -> _Subject:
    """Open what is to be profiled."""
    if recipe is None:
        assert checkpoint is not None
        opened = open_checkpoint(checkpoint)
        return _Subject(opened.build(), _data_of(opened, console), seed)
    if seed is not None:
        recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": seed})})
    source = None if random_init else build.starting_checkpoint(recipe)
    if source is None and not random_init:
        raise UsageError(
            f"{recipe.name} trains a model from scratch and names no checkpoint; profile it with --random-init"
        )
    config = build.full_config(recipe) if source is None else source.config
    spec = build.pruning_spec(recipe, config)
    if spec.method != "none" and not spec.strength:
        console.print("the recipe leaves pruning.strength to its budget, so the dense model is profiled")
    torch.manual_seed(recipe.training.seed)
    if source is not None:
        model = source.build(spec)
        processor = build.processor_of(source, recipe.model.tokenizer)
    else:
        model = MODELS[recipe.model.family, recipe.task](
            config, alignment=spec.alignment(towers_of(config)), plan=spec.plan(), strength=spec.strength
        )
        initialise(model)
        processor = build.fresh_processor(recipe)
    return _Subject(model.eval(), open_splits(recipe, processor).validation, recipe.training.seed)


def _data_of(checkpoint: Checkpoint, console: Console) -> Split[Any]:
    """Open the validation split that a checkpoint was made on; generated data of its task if it does not say."""
    if (checkpoint.folder / "recipe.yaml").is_file():
        return open_splits(own_recipe(checkpoint), build.processor_of(checkpoint)).validation
    console.print(f"{checkpoint.folder} has no recipe.yaml: measured on samples of shapes")
    made: Split[Any] = SHAPES_SPLITS[checkpoint.task]("validation", SAMPLES * 32)
    return made


def _count(model: PrunedModel, samples: Sequence[Batch], counter: str, console: Console, name: str) -> Costs:
    """Count with the chosen counter; a second opinion is printed beside the analytic count of the same samples."""
    exact = analytic_costs(model, samples[:SAMPLES])
    if counter == "analytic":
        return exact
    few = samples[:: max(1, len(samples) // COUNTED_SAMPLES)][:COUNTED_SAMPLES]
    expected = analytic_costs(model, few).macs
    found = counted_costs(model, few, counter, list(exact.modules))
    console.print(
        f"{counter} counts {found.macs / 1e9:.6g} gmacs on {len(few)} samples of the {name} model, "
        f"the analytic count is {expected / 1e9:.6g} ({100 * (found.macs / expected - 1):+.3f}%)"
    )
    return replace(found, layers=exact.layers)


def _arguments(sample: Batch, device: torch.device) -> tuple[Any, ...]:
    return tuple(arguments(sample, Normalisation(), device).values())


def _p50(timed: Mapping[int, Mapping[str, Latency]], name: str) -> dict[str, float]:
    return {str(size): latencies[name].p50_ms for size, latencies in timed.items()}


def _parameters(model: PrunedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _side(
    checkpoint: Checkpoint, model: PrunedModel, costs: Costs, timed: Mapping[int, Mapping[str, Latency]]
) -> results.Side:
    return results.Side(
        metrics={},
        gmacs=costs.macs / 1e9,
        params=_parameters(model),
        latency_ms=_p50(timed, "baseline"),
        size_mib=checkpoint.size_mib,
    )
