"""Run the Triton kernel's arithmetic on the CPU: python -m tests.attention.interpreted CASES RESULTS.

In a process of its own, because Triton interprets what is defined while TRITON_INTERPRET is set, and nothing else.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


def multiply_bf16() -> None:
    """Mend the interpreter of triton 3.7, whose product of bf16 tiles multiplies their bit patterns as integers."""
    plain = interpreter.InterpreterBuilder.create_dot

    def real(tile: Any) -> Any:
        if tile.data.dtype != np.uint16:
            return tile
        return interpreter.TensorHandle((tile.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return plain(self, real(a), real(b), *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot


def main() -> None:
    """Read keyword arguments of `statistics` by name, and write what it returns for each."""
    from madtp_cli.attention.received_kernel import statistics

    multiply_bf16()
    cases = torch.load(sys.argv[1])
    torch.save({name: statistics(**arguments) for name, arguments in cases.items()}, sys.argv[2])


if __name__ == "__main__":
    main()
