#!/usr/bin/env bash
# torch 2.13.0 (torch.onnx.export with dynamo=True, and torch.export.save), onnx 1.23.2, onnxscript 0.7.2.
#
# A good engineer would expect an exported graph to hold operators and weights, so that one model exported twice gives
# one file. Seen: both formats also hold the Python stack of every operator, with the absolute paths and the source lines
# of the files that built the model. So a file that is handed on names the folders of the machine it was made on (a user's
# home as a rule) and quotes source code; and the same model, exported from two folders, gives files that differ in bytes
# and in length. The graphs themselves are equal: with the metadata cleared, the ONNX files are the same to the byte.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 numpy
for place in one a_second_and_longer_place; do
  mkdir -p "$folder/$place"
  cat > "$folder/$place/model.py" <<'PY'
import torch


class Model(torch.nn.Module):
    def forward(self, x):
        return torch.relu(x @ x.T).sum(-1)  # a line of source
PY
  cat > "$folder/$place/export.py" <<'PY'
import torch
from model import Model

program = torch.export.export(Model().eval(), (torch.ones(3, 4),))
torch.export.save(program, "model.pt2")
torch.onnx.export(program, f="model.onnx", dynamo=True, verbose=False)
PY
  (cd "$folder/$place" && "$folder/venv/bin/python" export.py > log 2>&1)
done
"$folder/venv/bin/python" - "$folder" <<'PY'
import sys
import zipfile
from pathlib import Path

import onnx

root = Path(sys.argv[1])
places = [root / "one", root / "a_second_and_longer_place"]
for place in places:
    inside = b"".join(zipfile.ZipFile(place / "model.pt2").read(name) for name in zipfile.ZipFile(place / "model.pt2").namelist())
    for name, content in (("model.onnx", (place / "model.onnx").read_bytes()), ("model.pt2", inside)):
        told = (str(place / "model.py").encode() in content, b"a line of source" in content)
        print(f"{name} made in a folder {len(str(place))} letters long: names its path {told[0]}, quotes its source {told[1]}")
        assert told[0], "the path is no longer there"
sizes = [(place / "model.onnx").stat().st_size for place in places]
print("bytes of the two ONNX files:", sizes)
assert sizes[0] != sizes[1]


def bare(path: Path) -> bytes:
    model = onnx.load(path)
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    return model.SerializeToString(deterministic=True)


same = bare(places[0] / "model.onnx") == bare(places[1] / "model.onnx")
print("equal to the byte once the metadata is cleared:", same)
assert same
PY
