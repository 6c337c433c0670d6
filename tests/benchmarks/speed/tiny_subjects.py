"""The benchmark's two models, tiny: what is compared there at full size is compared here in milliseconds."""

from __future__ import annotations

from typing import Any

from benchmarks.speed import subjects
from benchmarks.speed.subjects import SUBJECTS, Inputs, Subject
from madtp_cli.models.base import PrunedModel
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.clip.configs import small_clip_config

WORDS = 6
SIZES: dict[str, Any] = {"image_size": 32, "vocab_size": 40, "vision_layers": 3, "vision_heads": 2, "text_heads": 2}
CONFIGS: dict[str, Any] = {
    # The last text layer joins the images by its merge layer, those before by their mean.
    "blip-nlvr2": small_config(**SIZES, vision_width=32, text_width=32, text_layers=3, merge_from=2),
    "clip-l14": small_clip_config(**SIZES, vision_width=32, text_width=48, text_layers=2, eos_token_id=39),
}


def tiny(subject: Subject, config: Any = None) -> PrunedModel:
    """Build a tiny model in the place of a subject's, or that of a given configuration."""
    name = next(name for name, each in SUBJECTS.items() if each.family == subject.family)
    return subjects.build(subject, CONFIGS[name] if config is None else config)


def model_and_inputs(name: str, samples: int = 2) -> tuple[PrunedModel, Inputs]:
    """Return a tiny model and samples for it."""
    model = tiny(SUBJECTS[name])
    return model, subjects.draw(model, samples, WORDS)
