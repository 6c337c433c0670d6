"""Every backend that a CPU has, in every precision, against padded fp32; what is allowed stands in agreement.py.

Padded itself is held against the definition in float64 by test_attention.py.
"""

from __future__ import annotations

import pytest

from madtp_cli.attention import Backend, Summary
from tests.attention import agreement

SHAPES = pytest.mark.parametrize("shape", agreement.SHAPES)
SELF_ATTENTION = pytest.mark.parametrize("shape", [name for name in agreement.SHAPES if name != "cross"])
DTYPES = pytest.mark.parametrize("dtype", agreement.DTYPES)
# varlen pads on a CPU, as it does for fp32 on a GPU.
BACKENDS = pytest.mark.parametrize("backend", ["auto", "segments", "padded", "varlen"])


@SHAPES
@DTYPES
@BACKENDS
def test_output_and_gradients_agree(shape: str, dtype: str, backend: Backend) -> None:
    """Forward in training and in inference, and backward to queries, keys and values."""
    agreement.compare(shape, agreement.DTYPES[dtype], backend, "cpu")


@SELF_ATTENTION
@DTYPES
@BACKENDS
@pytest.mark.parametrize("summary", ["first", "last"])
def test_statistics_agree(shape: str, dtype: str, backend: Backend, summary: Summary) -> None:
    """The output that comes with them, the class row and attention received, in training and in inference."""
    agreement.compare_statistics(shape, agreement.DTYPES[dtype], backend, "cpu", summary)
