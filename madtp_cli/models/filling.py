"""Load tensors into a model: all of them, each of its shape and finite, or none."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from madtp_cli.errors import SourceError

MOST_FAULTS = 8  # tensors named when weights do not fit; a wrong width touches all of them


class WeightsError(SourceError):
    """Report tensors that a model cannot use: the message names the first, `faults` all of them."""

    def __init__(self, where: str, what: str, faults: Sequence[str], hint: str = "") -> None:
        self.faults = tuple(faults)
        named = [*faults[:MOST_FAULTS], *([f"and {len(faults) - MOST_FAULTS} more"] * (len(faults) > MOST_FAULTS))]
        super().__init__(f"{where}: {what}: {'; '.join([*named, *([hint] if hint else [])])}")


def fill(
    model: nn.Module,
    state: Mapping[str, Tensor],
    where: str,
    *,
    fresh_alignment: bool = False,
    fresh: Collection[str] = (),
    tied: Mapping[str, str] | None = None,
) -> None:
    """Load tensors into a model, refusing anything that does not match.

    With `fresh_alignment`, alignment tensors may be absent or of another shape (the module is then trained anew);
    those named by `fresh` may be absent, and so may copies of other tensors, which `tied` names. Raises WeightsError
    with one fault per tensor, also for tensors that fit and hold NaN or infinity, as a training that diverged leaves
    them.
    """
    own = model.state_dict()
    state = dict(state)
    if fresh_alignment:
        for key in [key for key in {*own, *state} if key.startswith("alignment.")]:
            if key not in own or key not in state or own[key].shape != state[key].shape:
                state.pop(key, None)
                own.pop(key, None)
    faults = _tie(own, state, tied or {})
    state |= {key: own[key] for key in fresh if key in own and key not in state}
    faults += [f"missing {key}" for key in own if key not in state]
    faults += [f"unexpected {key}" for key in state if key not in own]
    faults += [
        f"{key} has shape {list(state[key].shape)}, expected {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if faults:
        raise WeightsError(where, f"{len(faults)} tensors do not match the model", faults) from _whole(faults)
    untied = [key for key in own if key in state and key not in (tied or {})]
    if broken := [key for key in untied if not is_finite(state[key])]:
        what = f"NaN or infinite weights in {len(broken)} of {len(untied)} tensors"
        hint = "fetch it again, or take one saved before its training diverged"
        raise WeightsError(where, what, broken, hint) from _whole(broken)
    model.load_state_dict(state, strict=not fresh_alignment)


def is_finite(tensor: Tensor) -> bool:
    """Tell whether a tensor holds neither NaN nor infinity, as one without values (empty, or on meta) does."""
    if tensor.is_meta or not tensor.numel() or not tensor.is_floating_point():
        return True
    # Its ends are found in one pass without temporaries, and are NaN where anything is; of 8 bits torch finds none.
    ends = (tensor.float() if tensor.element_size() == 1 else tensor).aminmax()
    return bool(torch.isfinite(ends.min) & torch.isfinite(ends.max))


def _whole(faults: Sequence[str]) -> ValueError:
    """Make the cause of an error with faults, which --debug shows."""
    return ValueError("\n".join(faults))


def _tie(own: Mapping[str, Tensor], state: dict[str, Tensor], tied_to: Mapping[str, str]) -> list[str]:
    """Complete or drop copies of other tensors; the faults are copies that differ."""
    faults = []
    for copy, original in tied_to.items():
        if (tied := state.pop(copy, None)) is not None and not _same(tied, state.setdefault(original, tied)):
            faults.append(f"{copy} differs from {original}, which the model ties it to")
        if copy in own and original in state:
            state[copy] = state[original]
    return faults


def _same(left: Tensor, right: Tensor) -> bool:
    # NaN equals nothing, so that broken copies of one tensor would be told to differ.
    return torch.equal(left, right) or torch.equal(left.nan_to_num(), right.nan_to_num())
