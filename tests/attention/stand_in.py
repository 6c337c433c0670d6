"""What stands in for a GPU: a kernel of torch's contract, and a count of what a GPU would make the host wait for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

T = TypeVar("T")


class Kernel:
    """Attend by offsets as torch.nn.attention.varlen.varlen_attn says it does, one span at a time."""

    def __init__(self, by_head: bool) -> None:
        self.by_head = by_head  # the log-sum-exp as torch returns it, else as torch documents it
        self.width = 0

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        return_aux: Any,
        scale: float,
        window_size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert return_aux.lse
        assert max_q == cu_seq_q.diff().max()
        assert max_k == cu_seq_k.diff().max()
        assert len(query) == cu_seq_q[-1]
        assert len(key) == len(value) == cu_seq_k[-1]
        self.width = query.shape[-1]
        outs, norms = [], []
        for mine, theirs in zip(pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True):
            q, k, v = query[slice(*mine)], key[slice(*theirs)], value[slice(*theirs)]
            scores = torch.einsum("qhd,khd->hqk", q, k) * scale
            if window_size == (-1, 0):
                scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
            outs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
            norms.append(scores.logsumexp(-1).T)
        lse = torch.cat(norms).float()
        return torch.cat(outs), lse.T.contiguous() if self.by_head else lse


class Waits(TorchFunctionMode):
    """Note every call inside a `with` block that needs a value, or a size that depends on one, on the host."""

    ASKED = frozenset(
        getattr(Tensor, name)
        for name in (
            *("__bool__", "__contains__", "__float__", "__index__", "__int__", "cpu", "equal", "item", "masked_select"),
            *("nonzero", "numpy", "tolist", "unique"),
        )
    ) | {torch.equal, torch.masked_select, torch.nonzero, torch.unique}

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.counts = True

    def leaving_out(self, call: Callable[..., T]) -> Callable[..., T]:
        """Wrap a call so that nothing it does is counted."""

        def uncounted(*args: Any, **kwargs: Any) -> T:
            self.counts = False
            try:
                return call(*args, **kwargs)
            finally:
                self.counts = True

        return uncounted

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.counts and (func in self.ASKED or _sized_by_values(func, args, kwargs)):
            self.calls.append(func.__name__)
        return func(*args, **kwargs)


def _sized_by_values(func: Any, args: Any, kwargs: Any) -> bool:
    if func in (Tensor.__getitem__, Tensor.__setitem__):
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(each, Tensor) and each.dtype == torch.bool for each in index)
    if func in (torch.repeat_interleave, Tensor.repeat_interleave):
        repeats = args[-1]
        return isinstance(repeats, Tensor) and kwargs.get("output_size") is None
    return func is torch.where and len(args) == 1
