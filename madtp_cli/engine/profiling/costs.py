"""What a model costs on samples: in all, by module, by layer and sample by sample, by arithmetic or by a counter."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.console import Console

from madtp_cli import results
from madtp_cli.costs import analytic
from madtp_cli.costs.analytic import total
from madtp_cli.costs.published import Measured
from madtp_cli.data.batch import Batch
from madtp_cli.engine.evaluation.evaluate import sample_records
from madtp_cli.engine.evaluation.meter import layer_tokens, tokens_kept
from madtp_cli.engine.evaluation.samples import join_samples
from madtp_cli.engine.profiling import passes
from madtp_cli.engine.tasks.base import Normalisation, inputs_of
from madtp_cli.models.base import PrunedModel, prunes

# A second opinion runs sample by sample, and fvcore traces each: a few are enough to check the analytic count.
COUNTED_SAMPLES = 4
COUNT_BATCH = 16
# What the parameters of a layer, or of embeddings, are listed under.
_PART = re.compile(r".+?\.\d+\.\w+(?=\.)|.+?\.embeddings(?=\.)")


@dataclass(frozen=True)
class Costs:
    """What samples cost on average, in MACs: without pruning, with it by module; and the tokens leaving every layer.

    `measured` and `dense_measured` are what the analytic count found, with and without pruning; samples one by one.
    """

    dense: float
    modules: Mapping[str, float]
    uncounted: tuple[str, ...]
    layers: tuple[results.LayerTokens, ...] = ()
    samples: tuple[results.SampleCost, ...] = ()
    tokens_kept: Mapping[str, float] = field(default_factory=dict)
    measured: Measured | None = None
    dense_measured: Measured | None = None

    @property
    def macs(self) -> float:
        """Mean cost of a sample."""
        return sum(self.modules.values())

    def gmacs(self) -> results.Gmacs:
        """Return the record of both costs, in 1e9 MACs."""
        return gmacs_of(self.dense, self.macs)


def at_strength(model: PrunedModel, strength: float) -> PrunedModel:
    """Return the same model at another strength, 0 for dense; the two share their weights."""
    twin = copy.copy(model)
    twin.strength = strength
    return twin


def gmacs_of(dense: float, pruned: float) -> results.Gmacs:
    """Make the record of two costs in MACs."""
    return results.Gmacs(dense=dense / 1e9, pruned=pruned / 1e9, reduction=1 - pruned / dense)


def count(model: PrunedModel, samples: Sequence[Batch], counter: str, console: Console, name: str) -> Costs:
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


@torch.inference_mode()
def analytic_costs(model: PrunedModel, samples: Sequence[Batch]) -> Costs:
    """Count by token numbers: exact, and of every module."""
    lengths = [length for sample in samples for length in sample.text_lengths]
    dense = dense_costs(model, lengths)
    if not prunes(model):
        return replace(dense, samples=_dense_samples(model, samples))
    device = next(model.parameters()).device
    model.eval()
    meter = passes.PassMeter()
    costs: list[results.SampleCost] = []
    for start in range(0, len(samples), COUNT_BATCH):
        batch = join_samples(samples[start : start + COUNT_BATCH])
        given = inputs_of(batch, Normalisation(), device)
        output = model(given)
        meter.add(model, output, given.text)
        costs += _sample_costs(model, batch, sample_records(model, batch, output, meter.meter.macs[start:]))
    measured, layers = meter.measured(model), meter.meter.layers
    kept = tokens_kept(layers, dense.layers)
    return replace(
        dense, modules=measured.macs, layers=layers, samples=tuple(costs), tokens_kept=kept, measured=measured
    )


def dense_costs(model: PrunedModel, lengths: Sequence[int]) -> Costs:
    """Count what the unpruned model costs for texts of these lengths; nothing is run, and no weights are needed."""
    measured = passes.dense(model, lengths)
    entering = {site.name: list(model.dense_tokens(site, lengths)) for site in model.sites}
    leaving = {(site.name, layer): entering[site.name] for site in model.sites for layer in range(site.layers)}
    layers = layer_tokens(leaving, {name: max(tokens) for name, tokens in entering.items()})
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
    from madtp_cli.costs import counters  # takes half a second, and few ask for it

    found_by: Mapping[str, Callable[..., counters.Count]] = {
        "fvcore": counters.fvcore_macs,
        "torch": counters.torch_macs,
    }
    device = next(model.parameters()).device
    given = [inputs_of(sample, Normalisation(), device) for sample in samples]
    inputs = [(each.images, each.text, each.text_lengths, each.image_index) for each in given]
    pruned = [found_by[counter](model, *args) for args in inputs]
    dense = [found_by[counter](at_strength(model, 0), *args) for args in inputs] if prunes(model) else pruned
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
        owner = next((path for path in macs if name.startswith(f"{path}.")), None) or _costless(name)
        params[owner] = params.get(owner, 0) + parameter.numel()
    return tuple(
        results.ModuleCost(name=name, gmacs=macs.get(name, 0.0) / 1e9, params=count) for name, count in params.items()
    )


def _costless(parameter: str) -> str:
    """Name the part that a parameter of something without cost belongs to: one of a layer, of a tower, or a head."""
    if found := _PART.match(parameter):
        return found[0]
    path = parameter.rpartition(".")[0].split(".")
    return ".".join(path[:1] if path[0] == "alignment" else path[:2]) or parameter


def _sample_costs(model: PrunedModel, batch: Batch, records: Iterable[Mapping[str, Any]]) -> list[results.SampleCost]:
    """Put the cost without pruning, and the tokens that entered, beside each sample's record."""
    dense = total(model.dense_macs(batch.text_lengths)).tolist()
    return [
        results.SampleCost(
            id=record["id"],
            gmacs=gmacs_of(whole, round(1e9 * record["gmacs"])),
            tokens_entered={name: entered[0] for name, entered in _dense_tokens(model, length).items()},
            tokens_kept={name: tuple(kept) for name, kept in record["tokens_kept"].items()},
        )
        for record, whole, length in zip(records, dense, batch.text_lengths, strict=True)
    ]


def _dense_samples(model: PrunedModel, samples: Sequence[Batch]) -> tuple[results.SampleCost, ...]:
    """Say what each sample costs where nothing is pruned."""
    found: list[results.SampleCost] = []
    for sample in samples:
        kept, gmacs = _dense_tokens(model, sample.text_lengths[0]), model.dense_gmacs(sample.text_lengths)
        found += _sample_costs(model, sample, [{"id": sample.ids[0], "gmacs": gmacs, "tokens_kept": kept}])
    return tuple(found)


def _dense_tokens(model: PrunedModel, length: int) -> dict[str, list[int]]:
    """Return what would leave every layer without pruning, for one sample with a text of so many tokens."""
    return {
        name: list(model.dense_tokens(site, [length])) * site.layers
        for site in model.sites
        for name in site.rows(0, range(model.images_per_text))
    }
