"""Activations against torch's own, in place and not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from madtp_cli.models.activations import gelu, quick_gelu

BOTH = pytest.mark.parametrize(
    ("ours", "theirs"),
    [(gelu, functional.gelu), (quick_gelu, lambda x: x * torch.sigmoid(1.702 * x))],
    ids=["gelu", "quick_gelu"],
)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inference_writes_the_same_bits_in_place(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    """The formula, out of place; and no second tensor of the hidden layer's size."""
    x = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = theirs(x)
    with torch.inference_mode():
        given = x.clone()
        found = ours(given)
    assert torch.equal(found, expected)
    assert found.data_ptr() == given.data_ptr()


@BOTH
def test_training_keeps_what_the_gradient_needs(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor]
) -> None:
    """Gradients of the formula, and inputs as they were."""
    x = torch.randn(40, 30, generator=torch.Generator().manual_seed(0), requires_grad=True)
    before = x.detach().clone()
    found = torch.autograd.grad(ours(x).sum(), x)
    expected = torch.autograd.grad(theirs(x).sum(), x)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(x, before)
