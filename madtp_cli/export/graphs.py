"""What a task hands over to be written: its graphs, and how to use and check them.

A family adds the graphs of a task in a file of its own, and names it where its `exports` says:

- a graph is a module over plain tensors that is put together from encoders.ImageEncoder and encoders.TextEncoder, whose
  towers are given the cuts that schedule.cuts plans, and returns a tuple of tensors in the order of `outputs`;
- `example` are inputs to trace with, at least two samples where the form leaves their number open (a size of one would
  be taken for a constant); `varying` names the dimensions that callers choose;
- `run` answers a batch of samples through whatever executes the graphs, `expect` through the packed model: both return
  tensors by the same names, of which `kept` and `positions` must be equal and the others close.

Habits of inputs and outputs: images float32 normalised, [B, 3, H, W], or [B, 2, 3, H, W] for pairs; text int64 [B, L],
padded with 0, text_lengths int64 [B]; `*_kept` int64 counts the tokens that left every layer, [B, layers] (pairs:
[B, 2, layers]); `*_positions` int64 are the original places of the tokens that left the last one, -1 for a merged
token, -2 where a shorter sample has none. Outputs that hold numbers are float32 whatever the precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from madtp_cli.data.batch import Batch, RetrievalBatch
from madtp_cli.errors import UsageError
from madtp_cli.export.padded import NOTHING
from madtp_cli.export.schedule import Form
from madtp_cli.models.base import PrunedModel
from madtp_cli.models.family import families, family_of
from madtp_cli.models.tower import LayerTrace

Tensors = Mapping[str, Tensor]
Call = Callable[[str, Tensors], dict[str, Tensor]]
"""Runs the graph of a name on its inputs, wherever it lies: its outputs, by name."""


@dataclass(frozen=True)
class Axis:
    """A dimension whose size callers choose: its name, and the most it may be, if there is a bound."""

    name: str
    most: int | None = None


@dataclass(frozen=True)
class Graph:
    """One graph: its module, inputs to trace with, the names of its outputs, and by input the dimensions that vary."""

    name: str
    module: nn.Module
    example: Tensors
    outputs: tuple[str, ...]
    varying: Mapping[str, Mapping[int, Axis]] = field(default_factory=dict)

    def __call__(self, inputs: Tensors) -> dict[str, Tensor]:
        """Run the module in PyTorch."""
        return dict(zip(self.outputs, self.module(**inputs), strict=True))


@dataclass(frozen=True)
class TaskExport:
    """A task's graphs for a model and a form; a batch through them, and through the packed model.

    score: the name of a measure of how right the outputs are, and that measure: of samples as the data gives them (with
    labels), and of the outputs of all of them, one after the other.
    """

    graphs: Callable[[Any, Form], tuple[Graph, ...]]
    run: Callable[[Call, Batch, Form], dict[str, Tensor]]
    expect: Callable[[Any, Batch], dict[str, Tensor]]
    score: tuple[str, Callable[[Sequence[Batch], Tensors], float]] | None = None


def is_kept(output: str) -> bool:
    """Tell whether an output says which tokens were kept, and so must be equal and not close."""
    return output.endswith(("_kept", "_positions"))


def text_axes(model: Any, form: Form) -> tuple[dict[int, Axis], dict[int, Axis]]:
    """Return the varying dimensions of text [B, L] and of anything else [B, ...]."""
    batch = {0: Axis("batch")} if form.batch is None else {}
    longest: int = model.limits.text_tokens
    return batch | ({1: Axis("text", longest)} if form.text_tokens is None else {}), batch


def example_text(model: Any, form: Form) -> dict[str, Tensor]:
    """Make texts to trace with."""
    batch = form.batch or 2
    length = form.text_tokens or min(7, model.limits.text_tokens)
    return {"text": torch.ones(batch, length, dtype=torch.int64), "text_lengths": torch.full((batch,), length)}


def example_images(model: Any, form: Form) -> Tensor:
    """Make images to trace with, [B, 3, H, W], or [B, 2, 3, H, W] for a model that reads pairs."""
    size, images = model.limits.image_size, model.images_per_text
    shape = (form.batch or 2, *((images,) if images > 1 else ()), 3, size, size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def pad_text(batch: Batch, form: Form) -> dict[str, Tensor]:
    """Lay a batch's texts out as graphs take them, as wide as the longest or as the form says."""
    text = pad_sequence(list(batch.text.split(batch.text_lengths)), batch_first=True)
    if form.text_tokens is not None:
        text = torch.nn.functional.pad(text, (0, form.text_tokens - text.shape[1]))
    return {"text": text, "text_lengths": torch.tensor(batch.text_lengths)}


def traced(site: str, trace: tuple[LayerTrace, ...], rows: Tensor | None = None) -> dict[str, Tensor]:
    """Return what a packed tower kept as graphs say it; `rows` picks samples, in any shape."""
    kept = torch.stack([torch.tensor(layer.leaving) for layer in trace], 1)
    last = trace[-1]
    places = pad_sequence(list(last.kept.cpu().split(list(last.leaving))), batch_first=True, padding_value=NOTHING)
    if rows is not None:
        kept, places = kept[rows], places[rows]
    return {f"{site}_kept": kept, f"{site}_positions": places}


def recall(samples: Sequence[Batch], outputs: Mapping[str, Tensor]) -> float:
    """Return the share of texts whose own image is the most similar of all, an image that comes twice counting once."""
    names = [name for sample in samples if isinstance(sample, RetrievalBatch) for name in sample.image_ids]
    best = (outputs["text_embeds"] @ outputs["image_embeds"].T).argmax(1).tolist()
    return sum(names[image] == name for image, name in zip(best, names, strict=True)) / len(names)


def export_of(model: PrunedModel) -> TaskExport:
    """Return how a model is exported; raises UsageError for one that cannot be."""
    found: TaskExport | None = family_of(model.family).exports().get(model.task)
    if found is None:
        known = ", ".join(f"{task} ({family.name})" for family in families() for task in family.exports())
        raise UsageError(f"export has no graphs for {model.task} ({model.family}); it knows {known}")
    return found
