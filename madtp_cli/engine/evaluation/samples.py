"""Real samples to measure costs on: texts spread over a split, each with images of its own.

Adaptive pruning decides by what it sees, so random pixels would measure another model. A data set may let texts share
an image; here none do, because that would hide the cost of the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from madtp_cli.data.batch import Batch, Split
from madtp_cli.engine.tasks.base import Normalisation
from madtp_cli.errors import SourceError, UsageError
from madtp_cli.models.base import PrunedModel


def spread_samples(data: Split[Batch], count: int) -> list[Batch]:
    """Pick `count` samples evenly over a split, as batches of one; a small split's samples repeat."""
    return [data.batch(row * len(data) // count, 1) for row in range(count)]


def fit_samples(
    samples: Sequence[Batch], model: PrunedModel, normalise: Normalisation, text_tokens: int | None = None
) -> list[Batch]:
    """Resize images to what the model takes and normalise them, and cut or repeat words to `text_tokens` if given.

    Raises SourceError for words the model does not have, UsageError for sentences longer than it can read.
    """
    limits = model.limits
    if text_tokens is None:
        found, most = max(sample.text_lengths[0] for sample in samples), limits.text_tokens
        if found > most:
            raise SourceError(
                f"the data's texts have up to {found} tokens, and the model reads at most {most}; cut them with "
                f"--text-tokens {most}"
            )
    else:
        check_text_tokens(model, text_tokens)
    words = max(int(sample.text.max()) for sample in samples) + 1
    if words > limits.words:
        raise SourceError(
            f"the data's sentences use {words} words but the model has {limits.words}: it was made for other data"
        )
    fitted = []
    for sample in samples:
        ids = sample.text.tolist()
        if text_tokens is not None:
            ids = [ids[0], *islice(cycle(ids[1:] or ids), text_tokens - 1)]
        fitted.append(
            replace(
                sample,
                images=normalise(_resize(sample.images, limits.image_size), torch.device("cpu")),
                text=torch.tensor(ids),
                text_lengths=[len(ids)],
                auxiliary={},
            )
        )
    return fitted


def check_text_tokens(model: PrunedModel, tokens: int) -> None:
    """Refuse texts that are longer than a model can read; raises UsageError."""
    longest = model.limits.text_tokens
    if tokens > longest:
        raise UsageError(f"--text-tokens {tokens}: the model reads at most {longest} tokens; give fewer")


def one_sample(batch: Batch, row: int) -> Batch:
    """Cut one sample out of a batch, with images of its own; what only a loss or a metric needs stays behind."""
    begin = sum(batch.text_lengths[:row])
    index = batch.image_index[row].reshape(-1)  # [1], or [2] of a pair
    images, place = index.unique(return_inverse=True)
    return Batch(
        images=batch.images[images],
        text=batch.text[begin : begin + batch.text_lengths[row]].clone(),
        text_lengths=[batch.text_lengths[row]],
        image_index=place.reshape(1, *batch.image_index.shape[1:]),
        ids=(batch.ids[row],),
        groups=(batch.groups[row],),
    )


def join_samples(samples: Sequence[Batch]) -> Batch:
    """Put batches of one into one batch, each with its own images; what only a loss or a metric needs stays behind."""
    images = [sample.images for sample in samples]
    shifts = [0, *torch.tensor([len(image) for image in images]).cumsum(0).tolist()]
    return Batch(
        images=torch.cat(images),
        text=torch.cat([sample.text for sample in samples]),
        text_lengths=[length for sample in samples for length in sample.text_lengths],
        image_index=torch.cat([sample.image_index + shift for sample, shift in zip(samples, shifts, strict=False)]),
        ids=tuple(name for sample in samples for name in sample.ids),
        groups=tuple(group for sample in samples for group in sample.groups),
    )


def _resize(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size:
        return images
    resized = interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)
