"""Random token pruning: the control that every method has to beat."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from madtp_cli.pruning.base import Evidence, Need, fuse, keep_share
from madtp_cli.tokens import Selection

POSITIONS = 1 << 14  # a draw for every original position; merged tokens (-1) take the last


class Random:
    """Keep a random share of the tokens and merge the rest uniformly.

    The draw depends on the seed, the layer and the token's original position, never on the content or the batch: one
    random pattern per layer, the same for every sample, which training can get used to.
    """

    needs: frozenset[Need] = frozenset()
    couples = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def select(self, evidence: Evidence, strength: float) -> Selection:
        """Keep the share 1 - strength of every sample's tokens."""
        tokens = evidence.tokens
        draw = self.draw(evidence.layer, tokens.x.device)[tokens.position % POSITIONS]
        keep = keep_share(draw, tokens, strength)
        return fuse(keep, torch.ones_like(draw), tokens)

    def draw(self, layer: int, device: torch.device) -> Tensor:
        """Return a layer's number for every original position, [POSITIONS]."""
        return _draw(self.seed * 1000 + layer, device)


@lru_cache(maxsize=64)
def _draw(seed: int, device: torch.device) -> Tensor:
    """Draw a number for every original position, [POSITIONS], on the device once and for all."""
    with torch.inference_mode(False):  # training may use what inference drew first
        return torch.rand(POSITIONS, generator=torch.Generator().manual_seed(seed)).to(device)
