"""Tiny random BLIPs that read one image, their twins among HF transformers' classes, and inputs for them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from madtp_cli.costs.counters import torch_macs
from madtp_cli.models.base import PrunedModel, initialise
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.spec import PruningSpec
from madtp_cli.models.tower import LayerTrace

PAD, CLS, SEP, DEC, ENC = 0, 1, 2, 28, 29
CONFIG: Any = small_config(
    image_size=32,
    vocab_size=30,
    vision_layers=3,
    vision_width=32,
    vision_heads=4,
    text_layers=3,
    text_width=32,
    text_heads=2,
    projection_width=12,
    dec_token_id=DEC,
    enc_token_id=ENC,
    sep_token_id=SEP,
    pad_token_id=PAD,
)
DENSE = PruningSpec(layers={"vision": (0, 1, 2), "text": (0, 1, 2)}, alignment_tokens=6, alignment_dim=16)
PRUNED = PruningSpec(
    method="madtp",
    strength=0.5,
    layers={"vision": (0, 1, 2), "text": (0, 1, 2)},
    alignment_tokens=6,
    alignment_dim=16,
)


def base_config(image_size: int) -> Any:
    """Describe BLIP-B at full size."""
    return small_config(
        image_size=image_size,
        vocab_size=30524,
        vision_width=768,
        vision_heads=12,
        patch_size=16,
        text_layers=12,
        text_width=768,
        text_heads=12,
        projection_width=256,
    )


def build(kind: Any, spec: PruningSpec = DENSE) -> Any:
    """Build a model with the weights that all tests share, and any pruning."""
    model = kind(CONFIG, alignment=spec.alignment(kind.sites_of(CONFIG)), plan=spec.plan(), strength=spec.strength)
    model.load_state_dict(_state(kind))
    return model.eval()


@cache
def _state(kind: Any) -> dict[str, Tensor]:
    """Draw weights so that no part of the model is idle: biases and norms too."""
    torch.manual_seed(3)
    model = kind(CONFIG, alignment=DENSE.alignment(kind.sites_of(CONFIG)))
    initialise(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "temp":
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.state_dict()


def transformers_own(kind: type[Any], model: PrunedModel) -> Any:
    """Give HF's class our tensors by name: every one that is not the alignment's or the ITC temperature."""
    theirs = kind(CONFIG).eval()
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("alignment.")}
    state.pop("temp", None)
    theirs.load_state_dict(state, strict=True)
    return theirs


def images(count: int) -> Tensor:
    """Draw normalised images [count, 3, 32, 32]."""
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def texts(lengths: list[int], start: int, end: int | None = SEP, seed: int = 2) -> list[Tensor]:
    """Draw texts that open with `start` and close with `end`, if any."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(3, 28, (length,), generator=generator) for length in lengths]
    for text in drawn:
        text[0] = start
        if end is not None:
            text[-1] = end
    return drawn


def padded(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Lay texts out as HF takes them: ids and mask [S, longest]."""
    ids = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=PAD)
    lengths = torch.tensor([len(part) for part in parts])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def kept(trace: tuple[LayerTrace, ...], row: int) -> list[list[int]]:
    """List the positions of one sample that left every layer."""
    return [layer.kept.split(list(layer.leaving))[row].tolist() for layer in trace]


def row_of(macs: dict[str, Tensor], row: int) -> dict[str, int]:
    """Read one sample's costs."""
    return {path: int(cost[row]) for path, cost in macs.items()}


def counted(module: Any, *args: Any) -> int:
    """Let torch count a call."""
    return torch_macs(module, *args).macs
