"""Statistics from the log-sum-exp: the Triton kernel (interpreted, and compiled for GPUs that are not here) and torch.

The oracle is the definition in float64 (tests/attention/definition.py) on the same rounded inputs.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from madtp_cli.attention import received
from madtp_cli.attention.varlen import offsets
from madtp_cli.tokens import Spans
from tests.attention import definition

ROOT = Path(__file__).parents[2]
NEEDS_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
HEADS = 2
# Of one tile and of more, of one token; a tile is 64 tokens.
SPANS = {"uniform": Spans.of([66, 66]), "ragged": Spans.of([5, 70, 1, 33])}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """What statistics are asked of."""

    spans: str
    dtype: str
    width: int
    causal: bool
    summary: Literal["first", "last"]

    def __str__(self) -> str:
        return f"{self.spans}-{self.dtype}-{self.width}-{'causal' if self.causal else 'all'}-{self.summary}"

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return q, k, the output [T, H, D] and its log-sum-exp [T, H]; q and k are views of one tensor, as in BLIP."""
        spans, generator = SPANS[self.spans], torch.Generator().manual_seed(self.width)
        qkv = 1.5 * torch.randn(spans.total, 3, HEADS, self.width, generator=generator)
        q, k, v = qkv.to(DTYPES[self.dtype]).unbind(1)
        out, norms = definition.attention(q, k, v, spans, spans, self.causal)
        return q, k, out.to(q.dtype), norms.float()

    def check(self, found: tuple[Tensor, Tensor]) -> None:
        """Compare class_row and received with the definition: 2e-5 of values near one, which is fp32's rounding."""
        q, k, out, _ = self.tensors()
        expected = definition.statistics(q, k, out, SPANS[self.spans], self.causal, self.summary)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == torch.float32
            torch.testing.assert_close(ours.double(), theirs, atol=2e-5, rtol=2e-5)


SUMMARIES: tuple[Literal["first", "last"], ...] = ("first", "last")
PRECISIONS = [("fp32", 80), ("fp16", 32), ("fp16", 64), ("bf16", 64), ("bf16", 80)]
CASES = [
    Case(spans, *precision, causal, summary)
    for spans, precision, causal, summary in product(SPANS, PRECISIONS, (False, True), SUMMARIES)
]
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tensor, Tensor]]:
    """Run the kernel on all cases in one interpreted process."""
    folder = tmp_path_factory.mktemp("interpreted")
    arguments: dict[str, dict[str, Any]] = {}
    for case in CASES:
        q, k, out, norms = case.tensors()
        spans = SPANS[case.spans]
        arguments[str(case)] = {
            "q": q,
            "k": k,
            "out": out,
            "norms": norms.T.contiguous().T,  # as flash attention leaves it: head by head in memory
            "offsets": offsets(spans, q.device),
            "longest": spans.longest,
            "causal": case.causal,
            "last": case.summary == "last",
        }
    torch.save(arguments, folder / "cases")
    subprocess.run(
        [sys.executable, "-m", "tests.attention.interpreted", folder / "cases", folder / "results"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        check=True,
    )
    results: dict[str, tuple[Tensor, Tensor]] = torch.load(folder / "results")
    return results


@NEEDS_TRITON
@EVERY_CASE
def test_the_kernel_follows_the_definition(case: Case, interpreted: dict[str, tuple[Tensor, Tensor]]) -> None:
    """The kernel's own arithmetic, tile by tile, in every precision, width and shape of spans."""
    case.check(interpreted[str(case)])


@NEEDS_TRITON
@pytest.mark.skipif(bool(os.environ.get("TRITON_INTERPRET")), reason="an interpreted kernel does not compile")
@pytest.mark.parametrize(("capability", "width"), [(80, 80), (90, 64)])
def test_the_kernel_compiles_for_gpus(
    capability: int, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's own compiler makes machine code of it, with matrix instructions, in the least shared memory there is.

    That is 99 KiB a block, on compute capability 8.6 and 8.9.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from madtp_cli.attention import received_kernel as kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"HEADS": 12, "WIDTH": width, "LANES": triton.next_power_of_2(width), "CAUSAL": True, "LAST": True}
    constants |= {"QUERIES": kernel.QUERIES, "KEYS": kernel.KEYS}
    types = {"q": "*bf16", "k": "*bf16", "out": "*bf16", "offsets": "*i32", "scale": "fp32"}
    types |= dict.fromkeys(("norms", "class_row", "received"), "*fp32") | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in kernel._statistics.arg_names}
    # Addresses and strides are multiples of 16, as they are for these widths: loads then overlap, in shared memory.
    even = [place for place, name in enumerate(signature) if signature[name][0] == "*" or name[:2] in ("q_", "k_")]
    attributes = {(place,): [["tt.divisibility", 16]] for place in even}
    source = ASTSource(kernel._statistics, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert len(compiled.asm["cubin"]) > 0
    assert ("wgmma.mma_async" if capability == 90 else "mma.sync") in compiled.asm["ptx"]
    assert compiled.metadata.shared <= 99 * 1024


@EVERY_CASE
@pytest.mark.parametrize("elements", [1, 1 << 26], ids=["one query", "all queries"])
def test_torch_follows_the_definition(case: Case, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in for the kernel, whatever the blocks it works in."""
    monkeypatch.setattr(received, "BLOCK_ELEMENTS", elements)
    q, k, out, norms = case.tensors()
    case.check(received.by_blocks(q, k, out, norms, SPANS[case.spans], causal=case.causal, summary=case.summary))


def test_statistics_carry_no_gradient() -> None:
    """The contract of Statistics; on a CPU torch computes them."""
    q, k, out, norms = CASES[0].tensors()
    spans = SPANS[CASES[0].spans]
    found = received.statistics(q.requires_grad_(), k, out, norms, spans, causal=False, summary="first")
    assert found.class_row is not None
    assert not found.class_row.requires_grad
    assert not found.received.requires_grad


def test_a_triton_that_compiles_nothing_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch takes over, with one warning that says why; a CPU is not asked at all."""
    received.kernel_works.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not received.kernel_works(torch.device("cpu"))
    if importlib.util.find_spec("triton") is None or torch.cuda.is_available():
        pytest.skip("needs triton and no GPU")
    with pytest.warns(UserWarning, match="Triton is here but compiles nothing"):
        assert not received.kernel_works(torch.device("cuda"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not received.kernel_works(torch.device("cuda"))
    received.kernel_works.cache_clear()
