"""Filling a model: tensors that do not fit, or hold no numbers, are counted, named and never loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from madtp_cli.models.blip.layouts import TIED
from madtp_cli.models.checkpoints import open_checkpoint
from madtp_cli.models.filling import MOST_FAULTS, WeightsError, fill, is_finite
from tests.models.released_states import released


def _model() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)))


def _refused(state: dict[str, Tensor]) -> WeightsError:
    model = _model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        fill(model, state, "x.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert str(caught.value.__cause__).splitlines() == list(caught.value.faults)
    assert caught.value.exit_code == 4
    return caught.value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_value_that_is_no_number_is_found(value: float, dtype: torch.dtype) -> None:
    """Wherever it stands; as torch.isfinite finds it."""
    tensor = torch.randn(3, 1000).to(dtype)
    assert is_finite(tensor)
    tensor[1, 777] = value
    assert not torch.isfinite(tensor).all()
    assert not is_finite(tensor)


def test_what_can_hold_none_is_passed() -> None:
    """The largest numbers, integers, empty tensors and those on meta; one NaN of eight bits is found."""
    assert is_finite(torch.full((9,), torch.finfo(torch.float16).max, dtype=torch.float16))
    assert is_finite(torch.tensor(0.07))
    assert is_finite(torch.arange(3))
    assert is_finite(torch.zeros(0))
    assert is_finite(torch.zeros(3, device="meta"))
    assert is_finite(torch.ones(3).to(torch.float8_e4m3fn))
    assert not is_finite(torch.tensor([1, float("nan")]).to(torch.float8_e4m3fn))


def test_weights_that_are_no_numbers_are_counted_and_named() -> None:
    """All ten tensors of five layers, of which the message names eight; then one alone."""
    error = _refused({key: value * float("nan") for key, value in _model().state_dict().items()})
    assert len(error.faults) == MOST_FAULTS + 2
    assert str(error).startswith("x.pth: NaN or infinite weights in 10 of 10 tensors: 0.weight; 0.bias; 1.weight; ")
    hint = "fetch it again, or take one saved before its training diverged"
    assert str(error).endswith(f"3.bias; and 2 more; {hint}")
    state = _model().state_dict()
    state["2.bias"] = torch.tensor([0.0, float("inf")])
    assert str(_refused(state)) == f"x.pth: NaN or infinite weights in 1 of 10 tensors: 2.bias; {hint}"


def test_tensors_that_do_not_fit_are_named_first() -> None:
    """A model of another shape is not asked for its values."""
    state = {key: value * float("nan") for key, value in _model().state_dict().items()}
    state["0.bias"] = torch.zeros(3)
    message = "x.pth: 1 tensors do not match the model: 0.bias has shape [3], expected [2]"
    assert str(_refused(state)) == message


def test_broken_copies_of_one_tensor_count_once(tmp_path: Path) -> None:
    """Salesforce's files hold the language head twice; NaN in both is no difference between them."""
    state = released("caption", madtp=False)
    for key in ("text_decoder.bert.embeddings.word_embeddings.weight", "text_decoder.cls.predictions.decoder.weight"):
        state[key] = state[key].clone()
        state[key][3, 4] = float("nan")
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(tmp_path / "x.pth").build()
    (fault,) = caught.value.faults
    assert fault == "text_decoder.bert.embeddings.word_embeddings.weight"
    assert fault in TIED.values()


def test_alignment_that_starts_anew_is_not_asked(tmp_path: Path) -> None:
    """Broken tokens of another shape than the new ones are not loaded; of the same shape they are refused."""
    state = released("vqa")
    state["space_dict"] = state["space_dict"] * float("nan")
    torch.save(state, tmp_path / "x.pth")
    opened = open_checkpoint(tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"NaN or infinite weights in 1 of \d+ tensors: alignment\.tokens; "):
        opened.build(opened.spec)
    assert opened.build(type(opened.spec)()).alignment is None
