"""Activations of hidden layers, written in place where no gradient will ask for what was there.

A hidden layer is the largest tensor of a model. A second one of its size is new memory at every call, which costs a
one-pair pass of dense BLIP-B a twentieth of its time on a CPU. What holds on to a map's output in inference, such as a
forward hook, therefore finds it activated. Graphs that are traced stay out of place: they may be given gradients later.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def gelu(x: Tensor) -> Tensor:
    """Return gelu(x), in x itself if no gradient is computed."""
    if _kept():
        return functional.gelu(x)
    return functional.gelu(x, out=x)  # type: ignore[call-arg]  # torch's stubs do not know it


def quick_gelu(x: Tensor) -> Tensor:
    """Return x sigmoid(1.702 x), OpenAI's approximation of gelu, in x itself if no gradient is computed."""
    if _kept():
        return x * torch.sigmoid(1.702 * x)
    return x.mul_((1.702 * x).sigmoid_())


def _kept() -> bool:
    """Return whether what was there may be asked for again."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()
