"""Pictures for `profile --visualize`: which patches and words are kept, of a checkpoint's data or a user's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from rich.console import Console

from madtp_cli.data.batch import Batch
from madtp_cli.engine.building.data import make_task
from madtp_cli.engine.building.device import choose_device
from madtp_cli.engine.building.model import processor_of, starting_checkpoint
from madtp_cli.engine.building.own_recipe import own_recipe
from madtp_cli.engine.evaluation.examples import own_sample, show_samples
from madtp_cli.engine.evaluation.samples import spread_samples
from madtp_cli.engine.profiling.subject import Subject, open_subject
from madtp_cli.engine.tasks.base import Task
from madtp_cli.errors import SourceError, UsageError
from madtp_cli.models.base import PrunedModel, prunes
from madtp_cli.models.checkpoints import Checkpoint, open_checkpoint
from madtp_cli.models.processor import Processor
from madtp_cli.recipe import Recipe
from madtp_cli.report.overlay import kept_figure
from madtp_cli.results import Gmacs, Picture

SAMPLES = 6


@dataclass(frozen=True)
class Gallery:
    """A model that prunes, and the samples to show it on, batches of one; `labelled` ones know what is right."""

    model: PrunedModel
    task: Task
    processor: Processor
    batches: Sequence[Batch]
    labelled: bool

    def draw(self, folder: Path) -> tuple[Picture, ...]:
        """Run the samples and write one PNG for each; raises UsageError where that is not possible."""
        pictures = []
        shown = show_samples(self.model, self.task, self.batches, self.processor, labelled=self.labelled)
        for number, sample in enumerate(shown, 1):
            # Numbered, since names that differ may look alike then, and longer than those of a user's own images.
            path = (
                folder / f"survivors-{number}-{re.sub(r'[^A-Za-z0-9._-]+', '_', sample.id).strip('_.') or 'image'}.png"
            )
            try:
                folder.mkdir(parents=True, exist_ok=True)
                kept_figure(sample).savefig(path)
            except OSError as error:
                raise UsageError(f"--visualize {folder}: {path.name} cannot be written: {error.strerror}") from None
            reduction = 1 - sample.gmacs / sample.dense_gmacs
            pictures.append(
                Picture(
                    file=str(path),
                    id=sample.id,
                    answer=sample.answer,
                    reference=sample.reference,
                    gmacs=Gmacs(dense=sample.dense_gmacs, pruned=sample.gmacs, reduction=reduction),
                )
            )
        return tuple(pictures)


def open_gallery(
    checkpoint: str | None,
    recipe: Recipe | None,
    *,
    images: Sequence[Path] = (),
    text: str | None = None,
    device: str = "auto",
    seed: int | None = None,
) -> Gallery:
    """Open a checkpoint, or a recipe's, to be shown on its own validation data, or on images and a text of a user's.

    Raises UsageError for a model that prunes nothing, images or a text that the model does not take, SourceError for
    images that cannot be read.
    """
    quiet = Console(quiet=True)  # the profile says it all
    subject = open_subject(checkpoint, recipe, random_init=False, runs=True, seed=seed, console=quiet)
    model = subject.model.to(choose_device(device))
    if not prunes(model):
        raise UsageError(
            f"--visualize: {subject.checkpoint} prunes nothing as it is, so that every patch and every word is kept; "
            "name a pruned checkpoint"
        )
    source = starting_checkpoint(recipe) if recipe is not None else open_checkpoint(str(checkpoint))
    assert source is not None
    chosen = recipe or _recipe_of(source)
    processor = processor_of(source, chosen.model.tokenizer)
    task = make_task(chosen, processor, source.folder)
    batches = [_own(processor, images, text)] if text is not None else _of_data(subject)
    return Gallery(model, task, processor, batches, labelled=text is None)


def _of_data(subject: Subject) -> list[Batch]:
    assert subject.data is not None
    return spread_samples(subject.data, min(SAMPLES, len(subject.data)))


def _recipe_of(source: Checkpoint) -> Recipe:
    """Return the recipe that lies in a checkpoint's folder, or the plainest one of its task."""
    if source.folder is not None and (source.folder / "recipe.yaml").is_file():
        return own_recipe(source)
    return Recipe.model_validate(
        {
            "version": 1,
            "task": source.task,
            "model": {"family": source.family, "checkpoint": source.source},
            "data": {"name": "shapes"},
            "training": {"steps": 1},
        }
    )


def _own(processor: Processor, images: Sequence[Path], text: str) -> Batch:
    """Make a batch of one from a user's files and text."""
    wanted = 2 if processor.task == "nlvr2" else 1
    if len(images) != wanted:
        raise UsageError(
            f"--image: a model for {processor.task} takes {wanted} image{'s' * (wanted > 1)} with a text, "
            f"got {len(images)}"
        )
    tokens = len(processor.tokenizer(text)["input_ids"])
    if tokens > processor.longest:
        raise UsageError(f"--text has {tokens} tokens, and the model reads at most {processor.longest}; shorten it")
    opened = [_read(path) for path in images]
    return own_sample(processor, opened, text, "_".join(dict.fromkeys(path.stem for path in images)))


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise SourceError(f"--image {path}: no such file") from None
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(f"--image {path}: cannot be read as an image ({reason}); try a PNG or JPEG file") from None
