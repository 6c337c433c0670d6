"""The choice of an attention backend: what is refused, and that what is accepted is in force."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import get_args, get_origin

import pytest
import torch
from typer.testing import CliRunner

from madtp_cli import attention
from madtp_cli.attention import varlen
from madtp_cli.cli import app
from madtp_cli.commands import options
from madtp_cli.engine.building.attention import attention_used, use_attention
from madtp_cli.errors import UsageError


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Leave the process as it was."""
    with attention.backend("auto"):
        yield


def test_the_option_offers_every_backend() -> None:
    """The command line, which imports no torch, against the package."""
    assert get_origin(options.Attention) is not None
    assert set(get_args(get_args(options.Attention)[0])) == set(attention.BACKENDS)


@pytest.mark.parametrize("name", ["segments", "padded", "auto"])
def test_what_runs_everywhere_is_in_force_at_once(name: attention.Backend) -> None:
    """A choice replaces the one before it, back to `auto`."""
    use_attention(name, "cpu", "fp32")
    assert attention.backend_in_force() == name


def test_varlen_where_it_cannot_run_is_refused() -> None:
    """What, why and what to try, in one line; the backend in force stays."""
    attention.use_backend("padded")
    with pytest.raises(UsageError) as refused:
        use_attention("varlen", "cpu", "bf16")
    assert str(refused.value) == (
        "--attention varlen cannot be used here: it runs on cuda only, not on cpu; "
        "try --device cuda with --precision bf16, or --attention auto"
    )
    assert attention.backend_in_force() == "padded"


def test_varlen_where_it_can_run_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device and precision that are asked about are those that the command resolved."""
    asked = []
    monkeypatch.setattr(varlen, "unavailable", lambda *where: asked.append(where))
    use_attention("varlen", "cpu", "fp16")
    assert asked == [(torch.device("cpu"), torch.float16)]
    assert attention.backend_in_force() == "varlen"


@pytest.mark.parametrize(
    ("name", "device", "precision", "used"),
    [
        ("auto", "cpu", "bf16", "auto"),
        ("segments", "cpu", "fp32", "segments"),
        ("auto", "cuda", "fp32", "padded"),
        ("auto", "cuda", "bf16", "varlen"),
        ("varlen", "cuda", "fp32", "padded"),
        ("padded", "cuda", "bf16", "padded"),
    ],
)
def test_figures_name_what_computed_them(
    name: attention.Backend, device: str, precision: str, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU that has varlen, `auto` says which it was."""
    monkeypatch.setattr(varlen, "available", lambda where, dtype: where.type == "cuda" and dtype in varlen.DTYPES)
    with attention.backend(name):
        assert attention_used(torch.device(device), precision) == used


@pytest.mark.parametrize("command", [["evaluate"], ["profile", "--no-latency"]])
def test_a_command_ends_with_2(command: list[str]) -> None:
    """The exit code of wrong usage, before anything is opened."""
    name, *flags = command
    result = CliRunner().invoke(app, [name, "no-such-folder", "--device", "cpu", "--attention", "varlen", *flags])
    assert result.exit_code == 2
    assert result.stderr.startswith("madtp: error: --attention varlen cannot be used here: ")
    assert len(result.stderr.splitlines()) == 1


def test_prune_ends_with_2() -> None:
    """The same for a recipe."""
    result = CliRunner().invoke(app, ["prune", "--recipe", "quickstart", "--device", "cpu", "--attention", "varlen"])
    assert result.exit_code == 2
    assert "it runs on cuda only, not on cpu" in result.stderr


@pytest.mark.parametrize("name", ["segments", "padded"])
def test_a_command_computes_by_the_backend(name: str) -> None:
    """Evaluating two samples by another backend gives the document of the default, but for the backend's name."""
    arguments = ["evaluate", "builtin:shapes_nlvr", "--limit", "2", "--device", "cpu", "--json"]
    plain = CliRunner().invoke(app, arguments)
    forced = CliRunner().invoke(app, [*arguments, "--attention", name])
    assert forced.exit_code == 0, forced.stderr
    assert attention.backend_in_force() == name
    default = json.loads(plain.stdout)
    assert default["attention_backend"] == "auto"
    assert json.loads(forced.stdout) == {**default, "attention_backend": name}
