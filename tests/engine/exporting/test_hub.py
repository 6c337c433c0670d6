"""Uploading: what would go is listed and checked first, it goes as one commit, and a refusal is one line."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from rich.console import Console

from madtp_cli.engine.exporting.hub import TEXTS, upload
from madtp_cli.errors import SourceError
from madtp_cli.results import HubUpload
from tests.tiny_runs import FOLDER


class FakeHub:
    """The hub as its client shows it: repositories made, commits added, and what it refuses."""

    def __init__(self, refusal: Exception | None = None, public: bool = False) -> None:
        self.refusal, self.public = refusal, public
        self.made: list[tuple[str, bool | None]] = []
        self.commits: list[tuple[str, dict[str, Path]]] = []

    def create_repo(self, name: str, *, private: bool | None, exist_ok: bool) -> str:
        assert exist_ok
        if self.refusal:
            raise self.refusal
        self.made.append((name, private))
        return f"https://hub/{name}"

    def repo_info(self, name: str) -> Any:
        return MagicMock(private=not self.public)

    def create_commit(self, name: str, operations: list[Any], *, commit_message: str) -> None:
        assert commit_message
        self.commits.append((name, {each.path_in_repo: Path(each.path_or_fileobj) for each in operations}))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeHub]:
    """Stand in for the hub, logged in."""

    def stand_in(**options: Any) -> FakeHub:
        fake = FakeHub(**options)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: fake)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
        return fake

    return stand_in


def push(checkpoint: Path | str, name: str = "me/tiny", *, dry_run: bool = False, **options: Any) -> HubUpload:
    return upload(
        str(checkpoint),
        name,
        dry_run=dry_run,
        console=options.pop("console", Console(file=io.StringIO())),
        **{"private": False, **options},
    )


def refusal(checkpoint: Path | str, name: str = "me/tiny", **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        push(checkpoint, name, **options)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    assert "hf_secret" not in str(caught.value)
    return str(caught.value)


def http_error(status: int, text: str) -> HfHubHTTPError:
    return HfHubHTTPError(text, response=MagicMock(status_code=status))


# What goes ---------------------------------------------------------------------------------------------------


def test_a_dry_run_lists_exactly_what_goes(pruned: Path, hub: Callable[..., FakeHub]) -> None:
    """Oracle: the folder. The hub is not even asked."""
    fake = hub(refusal=AssertionError("a dry run asks nothing"))
    found = push(pruned, dry_run=True)
    assert {file.path: file.bytes for file in found.files} == {
        path.name: path.stat().st_size for path in pruned.iterdir()
    }
    assert {file.path for file in found.files} >= FOLDER
    assert (found.uploaded, found.token_found, found.private) == (False, True, False)
    assert found.card["library_name"] == "madtp"
    assert found.url.endswith("/me/tiny")
    assert not fake.made


def test_files_that_name_places_on_this_machine_are_named(
    pruned: Path, tmp_path: Path, hub: Callable[..., FakeHub]
) -> None:
    """Whoever uploads them should know; the file of weights is not searched, and other paths are nobody's secret."""
    shutil.copytree(pruned, tmp_path / "mine")
    for file in (tmp_path / "mine").iterdir():
        if file.suffix in TEXTS:
            file.write_text(file.read_text(encoding="utf-8").replace(str(Path.home()), ""), encoding="utf-8")
    (tmp_path / "mine" / "notes.md").write_text(f"see {tmp_path}/data", encoding="utf-8")
    (tmp_path / "mine" / "other.md").write_text("see /usr/bin", encoding="utf-8")
    hub()
    said = io.StringIO()
    push(tmp_path / "mine", dry_run=True, console=Console(file=said, width=500))
    assert "notes.md: say where files lie on this machine" in said.getvalue()
    assert "other.md" not in said.getvalue()


def test_all_goes_as_one_commit(pruned: Path, tmp_path: Path, hub: Callable[..., FakeHub]) -> None:
    """What was exported goes along in its folder; hidden files and folders stay."""
    shutil.copytree(pruned, tmp_path / "mine")
    (tmp_path / "mine" / ".env").write_text("secret", encoding="utf-8")
    (tmp_path / "mine" / "cache").mkdir()
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "model.onnx").write_bytes(b"graph")
    for name in ("examples/left.png", "__pycache__/x.pyc", ".git/config"):
        (tmp_path / "exported" / name).parent.mkdir()
        (tmp_path / "exported" / name).touch()
    fake = hub()
    found = push(tmp_path / "mine", exported={"onnx": tmp_path / "exported"})
    ((name, files),) = fake.commits
    assert name == "me/tiny"
    assert set(files) == {file.path for file in found.files}
    assert set(files) - {path.name for path in pruned.iterdir()} == {"onnx/model.onnx", "onnx/examples/left.png"}
    assert set(files) >= FOLDER
    assert files["onnx/model.onnx"].read_bytes() == b"graph"
    assert (found.uploaded, found.url) == (True, "https://hub/me/tiny")
    assert fake.made == [("me/tiny", None)]  # what its owner's settings say


def test_private_is_never_published(pruned: Path, hub: Callable[..., FakeHub]) -> None:
    """A repository that is there keeps its visibility, so a public one is refused before anything goes."""
    fake = hub()
    assert push(pruned, private=True).private
    assert fake.made == [("me/tiny", True)]
    public = hub(public=True)
    assert refusal(pruned, private=True).startswith("me/tiny: is public already; make it private")
    assert not public.commits


def test_a_built_in_checkpoint_may_go(hub: Callable[..., FakeHub]) -> None:
    assert "model.safetensors" in {file.path for file in push("builtin:shapes_nlvr", dry_run=True).files}


# What is refused ---------------------------------------------------------------------------------------------


def test_what_is_not_loadable_is_refused(pruned: Path, tmp_path: Path, hub: Callable[..., FakeHub]) -> None:
    """By whoever would fetch it: a half folder, one without a card, a file, a folder of somebody else's."""
    fake = hub()
    for gone, message in (
        ("tokenizer.json", "tokenizer.json: no such file; the checkpoint folder is incomplete"),
        ("README.md", "README.md: no such file; a repository needs a model card"),
    ):
        shutil.copytree(pruned, tmp_path / gone)
        (tmp_path / gone / gone).unlink()
        assert message in refusal(tmp_path / gone)
    assert "no such checkpoint folder" in refusal(tmp_path / "nowhere")
    assert not fake.made


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("# no header\n", "has no header"),
        ("---\n- a\n- list\n---\n", "its header is none that the hub reads"),
        ("---\nlicense: [unclosed\n---\n", "its header is none that the hub reads"),
        (
            "---\nmodel-index:\n- name: x\n  results:\n  - task: {type: y}\n---\n",
            "its header is none that the hub reads",
        ),
    ],
)
def test_a_card_that_the_hub_would_refuse_is(
    card: str, message: str, pruned: Path, tmp_path: Path, hub: Callable[..., FakeHub]
) -> None:
    fake = hub()
    shutil.copytree(pruned, tmp_path / "mine")
    (tmp_path / "mine" / "README.md").write_text(card, encoding="utf-8")
    assert message in refusal(tmp_path / "mine", dry_run=True)
    assert not fake.made


def test_a_card_without_a_licence_is_told(pruned: Path, hub: Callable[..., FakeHub]) -> None:
    said = io.StringIO()
    hub()
    push(pruned, dry_run=True, console=Console(file=said, width=500))
    assert "README.md: names no licence" in said.getvalue()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny", "--hub tiny: names no owner; give owner/name, as in me/tiny"),
        ("a/b/c", "--hub a/b/c: is no id of a repository: "),
        ("me/ti ny", "--hub me/ti ny: is no id of a repository: "),
        ("me/tiny@v1", "--hub me/tiny@v1: is no id of a repository: "),
    ],
)
def test_an_id_is_checked_first(name: str, message: str) -> None:
    assert refusal("nowhere", name).startswith(message)


def test_without_a_token_a_dry_run_says_so_and_an_upload_is_refused(
    pruned: Path, hub: Callable[..., FakeHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = hub()
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert not push(pruned, dry_run=True).token_found
    wanted = "me/tiny: cannot be written without a token of the Hugging Face hub; log in with: hf auth login, or set"
    assert refusal(pruned).startswith(wanted)
    assert not fake.made


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (http_error(401, "Invalid username"), "me/tiny: the hub does not know the token; log in with: hf auth login"),
        (http_error(403, "no\nrights"), "me/tiny: the token may not write there (no rights); take one with write acc"),
        (http_error(500, "down"), "me/tiny: the hub refused it (down); nothing was uploaded"),
        (RepositoryNotFoundError("gone", response=MagicMock(status_code=404)), "me/tiny: the hub refused it (gone)"),
        (OfflineModeIsEnabled("offline"), "me/tiny: the Hugging Face hub cannot be reached (offline); nothing was"),
        (ConnectionError("no route"), "me/tiny: the Hugging Face hub cannot be reached (no route); nothing was"),
    ],
    ids=["401", "403", "500", "404", "offline", "no network"],
)
def test_what_the_hub_says_is_told(error: Exception, message: str, pruned: Path, hub: Callable[..., FakeHub]) -> None:
    fake = hub(refusal=error)
    assert refusal(pruned).startswith(message)
    assert not fake.commits
