"""From names to files: downloads go on, are checked and kept; the hub and what offline says."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from madtp_cli.errors import SourceError
from madtp_cli.models.fetch import cache_folder, download, fetch

CONTENT = bytes(range(256)) * 40
SHA = hashlib.sha256(CONTENT).hexdigest()


class Site(BaseHTTPRequestHandler):
    """Serve CONTENT with ranges; can break off, change its tag, or lie."""

    requests: ClassVar[list[str | None]] = []
    break_at: ClassVar[list[int]] = []  # bytes to send before breaking off, one for each of the next requests
    tag: ClassVar[str] = '"one"'
    content: ClassVar[bytes] = CONTENT

    def do_GET(self) -> None:
        """Answer one request."""
        asked = self.headers["Range"]
        self.requests.append(asked)
        if self.path == "/missing.pth":
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.headers["If-Range"] == self.tag else 0
        body = self.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", self.tag)
        self.end_headers()
        self.wfile.write(body[: self.break_at.pop(0)] if self.break_at else body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Serve on this machine, with a cache of its own."""
    monkeypatch.setenv("MADTP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Site.requests, Site.break_at, Site.tag, Site.content = [], [], '"one"', CONTENT
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_is_kept(site: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Byte equality, one request for two calls, the name in the address, and nothing printed off a terminal."""
    first = download(f"{site}/folder/model%20base.pth")
    assert first.path.read_bytes() == CONTENT
    assert first.path.name == "model base.pth"
    assert cache_folder() in first.path.parents
    assert first.notes == (f"{site}/folder/model%20base.pth: kept at {first.path}, sha256 {SHA}",)
    assert download(f"{site}/folder/model%20base.pth") == first
    assert Site.requests == [None]
    assert {path.name for path in first.path.parent.iterdir()} >= {"model base.pth", "model base.pth.json"}
    assert not list(first.path.parent.glob("*.part*"))
    assert capsys.readouterr() == ("", "")


def test_a_connection_that_breaks_off_is_taken_up(site: str) -> None:
    """Three pieces in one call, each from where the last ended."""
    Site.break_at = [1000, 500]
    assert download(f"{site}/x.pth").path.read_bytes() == CONTENT
    assert Site.requests == [None, "bytes=1000-", "bytes=1500-"]


def test_a_later_call_goes_on(site: str) -> None:
    """What three broken tries brought is not fetched again."""
    Site.break_at = [1000, 0, 0]
    with pytest.raises(
        SourceError, match=r"cannot be fetched \(the connection broke off after 1000 of 10240 bytes\); "
    ):
        download(f"{site}/x.pth")
    assert download(f"{site}/x.pth#sha256={SHA}").path.read_bytes() == CONTENT
    assert Site.requests[-1] == "bytes=1000-"


def test_a_file_that_changed_meanwhile_is_fetched_anew(site: str) -> None:
    """A new tag: the first part of the old file is not mixed with the rest of the new one."""
    Site.break_at = [1000, 0, 0]
    with pytest.raises(SourceError):
        download(f"{site}/x.pth")
    Site.tag, Site.content = '"two"', CONTENT[::-1]
    assert download(f"{site}/x.pth").path.read_bytes() == CONTENT[::-1]


def test_a_weak_tag_is_no_reason_to_go_on(site: str) -> None:
    """It does not promise equal bytes: every try starts anew."""
    Site.tag, Site.break_at = 'W/"one"', [1000]
    assert download(f"{site}/x.pth").path.read_bytes() == CONTENT
    assert Site.requests == [None, None]


def test_a_wrong_checksum_is_refused(site: str) -> None:
    """The message gives both, and nothing is kept; a file that is kept is checked too."""
    wrong = "0" * 64
    with pytest.raises(SourceError) as caught:
        download(f"{site}/x.pth#sha256={wrong}")
    assert str(caught.value) == (
        f"{site}/x.pth: what came has sha256 {SHA}, expected {wrong}; it was deleted, try again or check the address"
    )
    assert not [path for path in cache_folder().rglob("x.pth*") if path.suffix != ".lock"]
    path = download(f"{site}/x.pth#sha256={SHA.upper()}").path
    with pytest.raises(SourceError) as caught:
        download(f"{site}/x.pth#sha256={wrong}")
    assert str(caught.value).startswith(f"{path}: has sha256 {SHA}, but {site}/x.pth#sha256={wrong} asks for another; ")


def test_a_file_put_there_by_hand_is_found(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, the message names the place; a file at that place is used, and its checksum computed."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError) as caught:
        download(f"{site}/x.pth")
    message = str(caught.value)
    assert message.startswith(f"{site}/x.pth: cannot be fetched: HF_HUB_OFFLINE is set; download {site}/x.pth ")
    place = Path(message.rpartition(" put it at ")[2])
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    assert download(f"{site}/x.pth#sha256={SHA}").path == place
    assert Site.requests == []


def test_what_is_not_there_is_named(site: str) -> None:
    """One try for a missing file; the message says what to do by hand. Exit code 4."""
    with pytest.raises(SourceError) as caught:
        download(f"{site}/missing.pth")
    assert str(caught.value).startswith(f"{site}/missing.pth: cannot be fetched (HTTP Error 404: Not Found); download ")
    assert Site.requests == [None]
    assert caught.value.exit_code == 4


def test_no_network_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The message says what to fetch by hand and where to put it."""
    monkeypatch.setenv("MADTP_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(SourceError, match=r"x\.pth: cannot be fetched \(.*\); download https://nowhere\.invalid"):
        fetch("https://nowhere.invalid/x.pth")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "http://host/x.pth",
            "http://host/x.pth: only https addresses are fetched; download the file",
        ),
        ("s3://host/x.pth", "s3://host/x.pth: only https addresses are fetched"),
        (
            "https://host/x.pth#md5=1",
            "https://host/x.pth#md5=1: #md5=1 is no checksum; give #sha256= and 64",
        ),
        ("no/such/file.pth", "no/such/file.pth: no such file; give a checkpoint's file or folder"),
        ("org/file.pth", "org/file.pth: no such file; give a checkpoint's file or folder"),
        ("nowhere", "nowhere: no such checkpoint folder; give a folder that holds config.json and model.safetensors"),
    ],
)
def test_names_that_lead_nowhere_are_refused(source: str, message: str) -> None:
    """Before any network is asked."""
    with pytest.raises(SourceError) as caught:
        fetch(source)
    assert str(caught.value).startswith(message)


def test_a_path_that_exists_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder owner/name is that folder; a missing folder beside it is no id."""
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert fetch("owner/name").path == Path("owner/name")
    with pytest.raises(SourceError, match="owner/other: no such checkpoint folder; "):
        fetch("owner/other")


@pytest.mark.parametrize("there", ["model.safetensors", "pytorch_model.bin"])
def test_a_hub_id_is_fetched(there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Safetensors are asked for first, pickled weights only where there are none; with the revision."""
    asked: list[tuple[str, str | None, list[str]]] = []

    def snapshot(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        if any(Path(there).match(pattern) for pattern in allow_patterns):
            (tmp_path / there).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert fetch("owner/name@v1").path == tmp_path
    assert {(name, revision) for name, revision, _ in asked} == {("owner/name", "v1")}
    assert [patterns[-1] for _, _, patterns in asked] == ["model*.safetensors", "pytorch_model*.bin"][: len(asked)]
    assert len(asked) == (1 if there == "model.safetensors" else 2)


def test_the_hub_offline_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message gives the command to run elsewhere and what to do with its folder."""

    def snapshot(name: str, **_: object) -> str:
        raise LocalEntryNotFoundError(f"no network\nfor {name}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(SourceError) as caught:
        fetch("Salesforce/blip-vqa-base")
    message = str(caught.value)
    assert message.startswith(
        "Salesforce/blip-vqa-base: no such folder, and it cannot be fetched from the Hugging Face hub (no network for "
    )
    assert "run: hf download Salesforce/blip-vqa-base --local-dir FOLDER, copy FOLDER here" in message
    assert "\n" not in message


def test_a_bar_is_drawn_on_a_terminal_only(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a terminal the file's name is shown on standard error."""
    from io import StringIO

    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    download(f"{site}/shown.pth")
    assert "shown.pth" in screen.getvalue()
