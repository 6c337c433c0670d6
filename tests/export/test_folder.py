"""The files beside exported graphs: pinned, agreed with the checkpoint's own processor, and run without madtp."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import TypeAdapter
from tokenizers import normalizers

from madtp_cli.errors import SourceError
from madtp_cli.export.folder import Inference, text_input, write_companions
from madtp_cli.results import Gmacs
from tests.export.toy_graphs import DEC, ENC, SEP, processor, read, write_folder

TASKS = ("nlvr2", "retrieval", "vqa", "caption")
FILES = {
    "README.md",
    "example.py",
    "examples",
    "inference.json",
    "madtp_inputs.py",
    "madtp_runtime.py",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
# Runs a script where nothing but what the folder promises can be imported.
BLOCKED = """
import runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"madtp_cli", "torch", "transformers", "tokenizers", "onnx", "pydantic"}:
            raise ImportError(name + " is not there")

sys.meta_path.insert(0, Blocker())
sys.path.insert(0, sys.argv[1].rpartition("/")[0])
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_example(folder: Path, *arguments: str) -> list[str]:
    """Run example.py from elsewhere, without madtp and what it needs; return its lines."""
    command = [sys.executable, "-I", "-c", BLOCKED, str(folder / "example.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exports")
    for task in TASKS:
        write_folder(root / task, task, answers=("red", "blue") if task == "vqa" else ())
    return {task: root / task for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_a_folder_has_all_it_needs(task: str, folders: dict[str, Path]) -> None:
    names = {path.name for path in folders[task].iterdir()}
    assert names - {f"{name}.onnx" for name in read(folders[task])["graphs"]} == FILES


@pytest.mark.parametrize("task", TASKS)
def test_the_example_runs_without_madtp(task: str, folders: dict[str, Path]) -> None:
    """It answers about the pictures in the folder as the graphs' rules say, and says what was kept, where graphs do."""
    lines = run_example(folders[task])
    expected = {
        "nlvr2": r": (true|false) \(probability 0\.\d{3}\)",
        "vqa": r": (red|blue) \(probability 0\.\d{3}\)",
        "caption": "^a circle$",
        "retrieval": r"^-?\d\.\d{3} ",
    }
    assert re.search(expected[task], lines[0]), lines
    if task == "nlvr2":
        assert lines[1:3] == [f"{side}: 3 tokens kept; after each layer [5, 4, 3]" for side in ("left", "right")]
    assert len(lines) == {"nlvr2": 4, "vqa": 1, "caption": 1, "retrieval": 2}[task]


def test_the_example_takes_files(folders: dict[str, Path], tmp_path: Path) -> None:
    """The lighter right image makes the toy graph say true, the darker one false."""
    for name, value in (("dark", 10), ("light", 240)):
        Image.new("L", (30, 20), value).save(tmp_path / f"{name}.png")
    dark, light = str(tmp_path / "dark.png"), str(tmp_path / "light.png")
    assert run_example(folders["nlvr2"], dark, light, "a red circle")[0].startswith("a red circle: true")
    assert run_example(folders["nlvr2"], light, dark, "a red circle")[0].startswith("a red circle: false")


def test_the_example_says_what_it_takes(folders: dict[str, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "example.py", "left.png"], capture_output=True, text=True, cwd=folders["nlvr2"], check=False
    )
    assert done.returncode == 1
    assert done.stderr == 'python example.py left.png right.png "a sentence": run the exported model of this folder.\n'


@pytest.mark.parametrize("task", TASKS)
def test_the_example_is_short(task: str, folders: dict[str, Path]) -> None:
    lines = (folders[task] / "example.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line]) <= 15
    assert max(map(len, lines)) <= 120


def test_what_travels_is_the_package_s_own_code(folders: dict[str, Path]) -> None:
    """Word for word, but for where the one module finds the other; and it names nothing of madtp's."""
    package = Path(__file__).parents[2] / "madtp_cli" / "export"
    assert (folders["vqa"] / "madtp_inputs.py").read_text() == (package / "inputs.py").read_text()
    own = (package / "runtime.py").read_text()
    assert own.count("madtp_cli") == 1
    assert (folders["vqa"] / "madtp_runtime.py").read_text() == own.replace("madtp_cli.export.inputs", "madtp_inputs")


# inference.json ------------------------------------------------------------------------------------------------


def test_the_description_is_pinned(folders: dict[str, Path]) -> None:
    """Names and types that programs rely on: they grow and are never renamed."""
    found = read(folders["vqa"])
    assert next(iter(found)) == "schema_version"
    assert {name: type(value).__name__ for name, value in found.items()} == {
        "schema_version": "int",
        "family": "str",
        "task": "str",
        "checkpoint": "str",
        "format": "str",
        "mode": "str",
        "precision": "str",
        "opset": "int",
        "graphs": "dict",
        "text": "dict",
        "labels": "list",
        "ranking": "dict",
        "writing": "NoneType",
        "image_size": "int",
        "image_tokens": "int",
        "pruning": "dict",
        "gmacs": "NoneType",
        "tokens_kept": "dict",
        "versions": "dict",
    }
    assert found["graphs"]["model"] == {
        "file": "model.onnx",
        "inputs": [
            {"name": "images", "dtype": "float32", "shape": ["B", 3, 8, 8]},
            {"name": "text", "dtype": "int64", "shape": ["B", "L"]},
            {"name": "text_lengths", "dtype": "int64", "shape": ["B"]},
        ],
        "outputs": [
            {"name": "states", "dtype": "float32", "shape": ["B", 3]},
            {"name": "states_lengths", "dtype": "int64", "shape": ["B"]},
        ],
    }
    assert found["text"] == {"opens": ENC, "closes": SEP, "longest": 16}
    assert found["ranking"] == {"answers": ["red", "blue"], "opens": DEC, "compared": 2, "label_smoothing": 0.1}
    caption = read(folders["caption"])
    assert caption["writing"] == {"prompt": [DEC], "closes": SEP, "min_length": 1, "max_length": 6}


@pytest.mark.parametrize("task", TASKS)
def test_the_description_is_read_back_as_it_was(task: str, folders: dict[str, Path]) -> None:
    text = (folders[task] / "inference.json").read_text(encoding="utf-8")
    assert TypeAdapter(Inference).validate_json(text).to_json() == text


def test_the_readme_says_how_to_run_it_and_what_goes_in(tmp_path: Path) -> None:
    given = write_folder(tmp_path / "out", "nlvr2", batch=2, length=12)
    plain = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for expected in (
        "# toy as onnx",
        "pip install numpy pillow onnxruntime\npython example.py",
        'model.answer("left.png", "right.png", "a sentence")',
        "| input | `images` | float32 | [2, 2, 3, 8, 8] |",
        "| output | `logits` | float32 | [2, 2] |",
        "`logits` are for false, true, in this order.",
        "The batch is fixed (2): fewer samples are filled up.",
        "Longer texts are cut to 12 tokens.",
    ):
        assert expected in plain
    assert "drops tokens" not in plain
    pruned = Inference(
        **{
            **{name: getattr(given, name) for name in Inference.__dataclass_fields__},
            "pruning": {"method": "madtp"},
            "gmacs": Gmacs(dense=0.5, pruned=0.1, reduction=0.8),
            "mode": "static",
            "precision": "fp16",
        }
    )
    (tmp_path / "pruned").mkdir()
    write_companions(tmp_path / "pruned", pruned, processor("nlvr2"))
    text = (tmp_path / "pruned" / "README.md").read_text(encoding="utf-8")
    assert "(method madtp): 0.1 instead of 0.5 gmacs" in text
    assert "80.0% less" in text
    assert "Every sample keeps the same number of tokens" in text
    assert "Half precision" in text


# Processors that cannot travel -----------------------------------------------------------------------------------


def test_a_tokenizer_that_is_read_otherwise_is_refused(tmp_path: Path) -> None:
    """One that writes digits as other digits first: the difference is shown before anything is handed over."""
    strange = processor("nlvr2")
    backend: Any = strange.tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Replace("Red", "blue"), backend.normalizer])
    given = write_folder(tmp_path / "out", "nlvr2")
    (tmp_path / "strange").mkdir()
    with pytest.raises(SourceError, match="cannot travel with an export"):
        write_companions(tmp_path / "strange", given, strange)
    assert not (tmp_path / "strange" / "inference.json").exists()


def test_images_that_are_prepared_otherwise_are_refused(tmp_path: Path) -> None:
    strange = processor("nlvr2")
    strange.image_processor.do_rescale = False
    given = write_folder(tmp_path / "out", "nlvr2")
    (tmp_path / "strange").mkdir()
    with pytest.raises(SourceError, match=r"preprocessor_config\.json prepares images in a way that cannot travel"):
        write_companions(tmp_path / "strange", given, strange)


@pytest.mark.parametrize(("task", "opens"), [("nlvr2", ENC), ("vqa", ENC), ("caption", DEC), ("retrieval", 2)])
def test_texts_open_as_the_task_reads_them(task: str, opens: int) -> None:
    found = text_input(processor(task), 9)
    assert (found.opens, found.closes, found.longest) == (opens, SEP, 9)
    assert text_input(processor(task)).longest == 16
