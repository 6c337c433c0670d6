"""Samples to look at: what a model answers to each, what it costs, and which tokens its pruned layers keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL.Image import Image
from torch import Tensor

from madtp_cli.costs.analytic import total
from madtp_cli.data.batch import Batch, prepared
from madtp_cli.engine.tasks.base import Task
from madtp_cli.models.base import Output, PrunedModel
from madtp_cli.models.processor import Processor
from madtp_cli.models.sites import Site
from madtp_cli.models.tower import LayerTrace
from madtp_cli.report.kept_tokens import KeptTokens, Sample, SiteView

_WORD_END = "</w>"  # how CLIP's tokenizer marks the last piece of a word


@torch.inference_mode()
def show_samples(
    model: PrunedModel, task: Task, batches: Sequence[Batch], processor: Processor, *, labelled: bool = True
) -> list[Sample]:
    """Run batches of one sample each, images uint8, and tell what was kept.

    `labelled` tells whether they are a data set's, which know what is right; then `reference` is said. `right` is left
    open: only a whole split can tell for every task.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    shown = []
    for batch in batches:
        output = task.forward(model, batch, device)
        images = batch.image_index.flatten().tolist()
        shown.append(
            Sample(
                id=batch.ids[0],
                images=tuple(batch.images[image].permute(1, 2, 0).cpu().numpy() for image in images),
                words=pieces(processor, batch.text),
                answer=task.answers(model, batch, output)[0],
                reference=task.references(batch)[0] if labelled else None,
                right=None,
                gmacs=int(total(model.macs(output))) / 1e9,
                dense_gmacs=int(total(model.dense_macs(output.text_lengths))) / 1e9,
                sites=_views(model, output, images),
            )
        )
    model.train(was_training)
    return shown


def own_sample(processor: Processor, images: Sequence[Image], text: str, name: str) -> Batch:
    """Make a batch of one from a user's text and its image, or pair of images, for `show_samples`.

    Raises ValueError for a number of images that the task does not take.
    """
    wanted = 2 if processor.task == "nlvr2" else 1
    if len(images) != wanted:
        raise ValueError(f"{processor.task} takes {wanted} image{'s' * (wanted > 1)} with a text, got {len(images)}")
    words = processor.words(text)
    return Batch(
        images=prepared([processor.image(image) for image in images]),
        text=torch.tensor(words),
        text_lengths=[len(words)],
        image_index=torch.tensor([[0, 1]] if wanted == 2 else [0]),
        ids=(name,),
        groups=("",),
    )


def pieces(processor: Processor, ids: Tensor) -> tuple[str, ...]:
    """Return the pieces of words that ids [N] stand for."""
    return tuple(piece.removesuffix(_WORD_END) for piece in processor.tokenizer.convert_ids_to_tokens(ids.tolist()))


def _views(model: PrunedModel, output: Output, images: Sequence[int]) -> Mapping[str, SiteView]:
    """View a pass over one sample, whose images are these rows, site by site."""
    return {
        name: _view(site, model.dense_tokens(site, output.text_lengths)[0], output.traces[site.name], row)
        for site in model.sites
        for name, row in site.rows(0, images).items()
    }


def _view(site: Site, tokens: int, trace: Sequence[LayerTrace], row: int) -> SiteView:
    """View what happened at a site to one image or text of so many tokens before any pruning."""
    layers = []
    for layer in trace:
        if layer.prunes:
            begin = sum(layer.leaving[:row])
            kept = layer.kept[begin : begin + layer.leaving[row]].tolist()
            alone = tuple(position for position in kept if position >= 0)
            layers.append(KeptTokens(layer.layer, alone, len(kept) - len(alone)))
    return SiteView(tokens, tuple(layers), site.reads, site.prefix)
