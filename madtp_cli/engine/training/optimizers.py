"""AdamW, or Muon for the blocks' weight matrices beside AdamW for everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from madtp_cli.errors import RecipeError

OptimizerName = Literal["adamw", "muon"]


def make_optimizers(
    name: OptimizerName,
    module: nn.Module,
    *,
    learning_rate: float,
    alignment_learning_rate: float,
    matrix_learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
) -> list[Optimizer]:
    """Build the optimisers of a module's trainable parameters.

    The alignment module has its own learning rate; norms, biases, embeddings and alignment tokens do not decay. With
    `muon` the matrices inside transformer blocks are orthogonalised (https://kellerjordan.github.io/posts/muon) at
    `matrix_learning_rate`. Raises RecipeError if this torch has no Muon.
    """
    matrices: list[nn.Parameter] = []
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for key, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if name == "muon" and parameter.ndim == 2 and ".layer" in key and ".alignment." not in key:
            matrices.append(parameter)
            continue
        decays = parameter.ndim >= 2 and "embedding" not in key and not key.endswith("alignment.tokens")
        groups.setdefault((".alignment." in key, decays), []).append(parameter)
    rest = [
        {
            "params": parameters,
            "lr": alignment_learning_rate if aligns else learning_rate,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (aligns, decays), parameters in groups.items()
    ]
    optimizers: list[Optimizer] = [AdamW(rest, betas=betas, fused=True)]
    if name == "muon":
        optimizers.insert(0, _muon(matrices, matrix_learning_rate, weight_decay))
    return optimizers


def _muon(parameters: Sequence[nn.Parameter], learning_rate: float, weight_decay: float) -> Optimizer:
    try:
        from torch.optim import Muon
    except ImportError:
        raise RecipeError(
            f"training.optimizer muon needs torch 2.9 or newer, got {torch.__version__}; try adamw"
        ) from None
    # Scaled so that an update is as large as AdamW's, and one learning rate means the same for both.
    return Muon(parameters, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
