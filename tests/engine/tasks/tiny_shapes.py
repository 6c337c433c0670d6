"""A tiny random model of every task that reads the generated data, and the task around it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from madtp_cli.data.sentences import CLS, DEC, ENC, PAD, SEP, TOKEN_IDS, VOCABULARY
from madtp_cli.models.base import initialise
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.clip.configs import small_clip_config
from madtp_cli.models.family import model_class
from madtp_cli.models.processor import Processor
from madtp_cli.models.spec import PruningSpec

CPU = torch.device("cpu")
SHARED: dict[str, Any] = {
    **{"image_size": 96, "patch_size": 32, "vocab_size": len(VOCABULARY), "vision_layers": 2, "text_layers": 2},
    **{"vision_width": 24, "vision_heads": 2, "text_width": 24, "text_heads": 2},
}
LAYERS = {"vision": (0, 1), "text": (0, 1)}
PRUNED = PruningSpec(method="madtp", strength=0.5, layers=LAYERS, alignment_tokens=3, alignment_dim=8)
DENSE = PruningSpec(alignment_tokens=3, alignment_dim=8)


def make_model(family: str, task: str, spec: PruningSpec = DENSE, seed: int = 0) -> Any:
    """Build it in eval mode; every seed has its own weights, biases and norms too."""
    ids = {"dec_token_id": TOKEN_IDS[DEC], "enc_token_id": TOKEN_IDS[ENC], "sep_token_id": TOKEN_IDS[SEP]}
    config = (
        small_clip_config(**SHARED, eos_token_id=TOKEN_IDS[SEP], projection_dim=10)
        if family == "clip"
        else small_config(**SHARED, **ids, pad_token_id=TOKEN_IDS[PAD], projection_width=10, merge_from=1)
    )
    torch.manual_seed(seed)
    model = model_class(family, task)(
        config,
        alignment=spec.alignment(model_class(family, task).sites_of(config)),
        plan=spec.plan(),
        strength=spec.strength,
    )
    initialise(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in ("temp", "logit_scale"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@cache
def processor(family: str, task: str) -> Processor:
    """Make the processor of the generated data's words."""
    return Processor.from_words(VOCABULARY, 96, family=family, task=task)


def words_of(ids: Any) -> str:
    """Read ids without special tokens."""
    special = {TOKEN_IDS[token] for token in (PAD, CLS, SEP, DEC, ENC)}
    return " ".join(VOCABULARY[token] for token in ids if int(token) not in special)
