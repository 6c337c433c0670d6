"""Peak memory: by hand on a few tensors, and on what a model allocates."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from madtp_cli.costs.memory import peak_mib

MIB = 2**18  # float32 elements


def test_the_peak_is_what_is_held_at_once() -> None:
    """3 MiB, 2 more while those are there, 1 after they are gone: 5, and what stays behind afterwards counts too."""
    kept = []

    def call() -> None:
        first = torch.empty(3 * MIB)
        second = torch.empty(2 * MIB)
        del first, second
        kept.append(torch.empty(MIB))

    assert peak_mib(call, "cpu") == pytest.approx(5)
    assert peak_mib(lambda: kept.append(torch.empty(7 * MIB)), "cpu") == pytest.approx(7)


def test_what_was_there_before_is_not_in_it() -> None:
    """A product of two matrices of 1 MiB makes a third one; without allocations there is no peak."""
    left, right = torch.ones(512, 512), torch.ones(512, 512)
    assert peak_mib(lambda: left @ right, "cpu") == pytest.approx(1)
    assert peak_mib(lambda: left.add_(right), "cpu") == 0


def test_temporaries_count() -> None:
    """A sum over a broadcast product holds the product: 4 MiB for a result of 4 bytes."""
    rows, columns = torch.ones(1024, 1), torch.ones(1, 1024)
    assert peak_mib(lambda: (rows * columns).sum(), "cpu") == pytest.approx(4, rel=1e-3)


def test_other_devices_are_not_known() -> None:
    """Where nothing keeps count there is no figure, and the call is not made in vain."""
    calls: list[int] = []
    assert peak_mib(lambda: calls.append(1), "meta") is None
    assert not calls


def test_what_only_frees_adds_nothing() -> None:
    """2 MiB given back: the most that was in use is what was there before."""
    held = [torch.empty(2 * MIB)]
    assert peak_mib(held.clear, "cpu") == 0


def test_within_another_profiler_there_is_no_figure() -> None:
    """Somebody else's profile goes on undisturbed, and the call is not made in vain."""
    calls: list[int] = []
    with torch.profiler.profile() as outer:
        assert peak_mib(lambda: calls.append(1), "cpu") is None
        torch.ones(2).add(1)
    assert not calls
    assert "aten::add" in [event.key for event in outer.key_averages()]


@pytest.mark.parametrize("level", [None, "3"])
def test_the_environment_stays_as_it_was(level: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the call fails; a level that was chosen holds."""
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    if level is not None:
        monkeypatch.setenv("KINETO_LOG_LEVEL", level)
    seen = []
    peak_mib(lambda: seen.append(os.environ["KINETO_LOG_LEVEL"]), "cpu")
    assert seen == [level or "6"]
    with pytest.raises(ZeroDivisionError):
        peak_mib(lambda: 1 / 0, "cpu")
    assert os.environ.get("KINETO_LOG_LEVEL") == level


def test_nothing_is_printed() -> None:
    """The profiler's own messages stay out of a command's stderr."""
    script = (
        "import torch\nfrom madtp_cli.costs.memory import peak_mib\nprint(peak_mib(lambda: torch.ones(262144), 'cpu'))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1.0\n", "")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_keeps_count_itself() -> None:
    """3 MiB and 2 more at once."""
    assert peak_mib(lambda: (torch.empty(3 * MIB, device="cuda"), torch.empty(2 * MIB, device="cuda")), "cuda") == 5
