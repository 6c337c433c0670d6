"""Second opinions on what a forward pass costs: fvcore's and torch's counters over one real pass.

Both watch the operators that really run and know nothing of costs/analytic.py. One table each says what an operator
costs in multiply-adds (MACs); what is left out on purpose (`OUTSIDE_CONVENTION`) and what no table knows is returned,
never silenced. Traps met here: fvcore counts a multiply-add as 1 and torch as 2; fvcore lets attention vanish because
it has no entry for `scaled_dot_product_attention`; torch counts it as 0 on a CPU unless it is split into products.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from madtp_cli import attention


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Arithmetic that our convention leaves out: it is not a linear map, a convolution, an attention product or a merge.
OUTSIDE_CONVENTION = _names(
    """
    abs add amax amin argmax argsort batch_norm clamp clamp_max clamp_min cos cumsum div dropout embedding erf exp floor
    floor_divide gelu group_norm layer_norm linalg_vector_norm log max maximum mean min minimum mul native_dropout
    native_group_norm native_layer_norm neg norm pow rand reciprocal relu remainder round rsqrt rsub safe_softmax
    scatter_reduce sigmoid sin softmax sort sqrt square std sub sum tanh topk var
    """
)
# Views, copies, look-ups, comparisons and integer book-keeping: no arithmetic to count, and not worth a line.
NO_ARITHMETIC = _names(
    """
    Int ScalarImplicit alias arange as_strided bitwise_and bitwise_not bitwise_or bitwise_xor cat chunk clone
    contiguous copy detach empty empty_like empty_strided eq expand expand_as fill flatten full full_like gather ge
    gt index index_copy index_fill index_put index_select lift_fresh local_scalar_dense logical_and logical_not
    logical_or lt le masked_fill movedim narrow ne new_empty new_full new_ones new_zeros nonzero nonzero_static ones
    ones_like pad permute repeat repeat_interleave reshape resolve_conj resolve_neg scalar_tensor scatter
    searchsorted select size slice split split_with_sizes squeeze stack t to to_copy transpose tril type_as unbind
    unflatten unsafe_view unsqueeze view where zero zeros zeros_like __and__ __iand__ __ior__ __or__ __xor__
    """
)


@dataclass(frozen=True)
class Count:
    """What a counter saw: MACs by operator and by module, and calls of the operators that it gave no cost.

    modules names those with any cost; what runs outside every module (pruning) is in the operators alone. `left_out` is
    arithmetic outside the convention, `unknown` are operators that no table here names.
    """

    counter: str
    operators: Mapping[str, int]
    modules: Mapping[str, int]
    left_out: Mapping[str, int]
    unknown: Mapping[str, int]

    @property
    def macs(self) -> int:
        """All multiply-adds."""
        return sum(self.operators.values())

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Every operator seen but not counted, the unknown ones first."""
        return (*(f"{name} (unknown)" for name in sorted(self.unknown)), *sorted(self.left_out))


def fvcore_macs(model: nn.Module, *args: Any) -> Count:
    """Count one inference of model(*args) by tracing it with fvcore; args may hold tensors and plain values.

    A trace is of these inputs: what a model decides from its data (which tokens stay) is counted as it was decided.
    """
    from fvcore.nn import FlopCountAnalysis

    with _ready(model), torch.no_grad():
        left_out: Counter[str] = Counter()
        adapter = _OnTensors(model, args)
        analysis = FlopCountAnalysis(adapter, adapter.tensors)
        # What fvcore would log is in the record: unknown operators by name, modules that are never called by absence.
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.set_op_handle(**{f"aten::{name}": None for name in _spellings(NO_ARITHMETIC)})
        analysis.set_op_handle(**{f"aten::{name}": _note(name, left_out) for name in _spellings(OUTSIDE_CONVENTION)})
        analysis.set_op_handle(
            **{
                "aten::scaled_dot_product_attention": _jit(_attention),
                "aten::baddbmm": _jit(lambda shapes: prod(shapes[1]) * shapes[2][-1]),
                "aten::index_add": _jit(_merge),
                "aten::index_add_": _jit(_merge),
            }
        )
        operators = {name: int(macs) for name, macs in analysis.by_operator().items() if macs}
        modules = {name.removeprefix("model."): int(macs) for name, macs in analysis.by_module().items() if macs}
    return Count(
        counter="fvcore",
        operators=operators,
        modules={name: macs for name, macs in modules.items() if name not in ("", "model")},
        left_out=_by_name(left_out),
        unknown=_by_name({name.removeprefix("aten::"): calls for name, calls in analysis.unsupported_ops().items()}),
    )


def torch_macs(model: nn.Module, *args: Any) -> Count:
    """Count one inference of model(*args) with torch's FlopCounterMode, attention split into its products."""
    merges = torch.ops.aten.index_add, torch.ops.aten.index_add_
    mapping = {name: lambda x, dim, index, source, **_: 2 * _merge([x, [], index, source]) for name in merges}
    seen = _Recorder()
    with (
        _ready(model),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping=mapping) as counter,
        seen,
    ):
        model(*args)
    flops = {scope: {str(op): value for op, value in ops.items()} for scope, ops in counter.get_flop_counts().items()}
    operators = {name.removeprefix("aten."): macs // 2 for name, macs in flops.pop("Global", {}).items()}
    root = f"{type(model).__name__}."
    return Count(
        counter="torch",
        operators={name: macs for name, macs in operators.items() if macs},
        modules={name.removeprefix(root): sum(ops.values()) // 2 for name, ops in flops.items() if root in name},
        left_out={name: calls for name, calls in seen.calls.items() if name in OUTSIDE_CONVENTION},
        unknown={
            name: calls
            for name, calls in seen.calls.items()
            if name not in OUTSIDE_CONVENTION | NO_ARITHMETIC and name not in operators
        },
    )


def _attention(shapes: Sequence[Sequence[int]]) -> int:
    """Count softmax(q k^T) v: q [..., Nq, D], k [..., Nk, D], v [..., Nk, Dv]."""
    q, k, v = shapes[:3]
    return prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _merge(shapes: Sequence[Sequence[int]]) -> int:
    """Count a weighted sum of token states by index_add(x, dim, index, source); sums of single numbers do not count.

    Pruning also sums scores [T, K] with it where samples differ in length; that adds less than 0.1 % to a total.
    """
    source = shapes[3]
    return prod(source) if len(source) > 1 else 0


def _jit(formula: Callable[[Sequence[Sequence[int]]], int]) -> Callable[[list[Any], list[Any]], int]:
    """Adapt a formula on input shapes to fvcore's handles on traced values."""

    def handle(inputs: list[Any], outputs: list[Any]) -> int:
        return formula([value.type().sizes() if value.isCompleteTensor() else [] for value in inputs])

    return handle


def _note(name: str, calls: Counter[str]) -> Callable[[list[Any], list[Any]], Counter[str]]:
    """Make a handle that costs nothing and remembers the call."""

    def handle(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        calls[name] += 1
        return Counter()

    return handle


def _spellings(names: frozenset[str]) -> Iterator[str]:
    """Name operators as they may stand in a trace: plain, in place, private."""
    for name in names:
        yield from (name, f"{name}_", f"_{name}")


def _by_name(calls: Mapping[str, int]) -> dict[str, int]:
    """Add up the spellings of each operator."""
    merged: Counter[str] = Counter()
    for name, count in calls.items():
        merged[_plain(name)] += count
    return dict(merged)


def _plain(name: str) -> str:
    """Return an operator's name without the marks of in-place and private variants."""
    return name if name.startswith("__") else name.strip("_")


class _Recorder(TorchDispatchMode):
    """Remember which operators run, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.calls[_plain(func._overloadpacket.__name__)] += 1
        return func(*args, **(kwargs or {}))


class _OnTensors(nn.Module):
    """Call a model with tensors only, as a trace demands: the plain values among its arguments are kept inside."""

    def __init__(self, model: nn.Module, args: Sequence[Any]) -> None:
        super().__init__()
        self.model = model
        self.slots = [arg if not isinstance(arg, Tensor) else None for arg in args]
        self.places = [place for place, arg in enumerate(args) if isinstance(arg, Tensor)]
        self.tensors = tuple(args[place] for place in self.places)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return every tensor of the model's output."""
        args = list(self.slots)
        for place, tensor in zip(self.places, tensors, strict=True):
            args[place] = tensor
        return tuple(_tensors(self.model(*args)))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


@contextmanager
def _ready(model: nn.Module) -> Iterator[None]:
    """Put a model into the state whose cost is meant: eval mode (constants folded), no padding to batch mates."""
    was_training = model.training
    model.eval()
    try:
        # Padding an image to the longer one of its pair is a matter of speed, not of what the sample needs.
        with attention.backend("segments"):
            yield
    finally:
        model.train(was_training)
