"""Generates the Python code of `protos/` beside the .proto files; `--check` fails if it is stale."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = Path("edge_attention/v1")
# protoc writes module names for a package at the root of its own search path; ours is `protos`.
# Only names of Python modules end in `_pb2`; the names of messages (`edge_attention.v1.Tensor`) stay.
IMPORT = re.compile(r"(?<![\w.])edge_attention\.v1(?= import|\.\w+_pb2|\s+as)|(?<=from )edge_attention\.v1")


def generate(target: Path) -> None:
    files = sorted(
        str(path.relative_to(ROOT / "protos")) for path in (ROOT / "protos" / HERE).glob("*.proto")
    )
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}"]
    command.append(f"-I{resources.files('grpc_tools') / '_proto'}")
    command += [f"--python_out={target}", f"--grpc_python_out={target}"]
    for name in ("mypy", "mypy_grpc"):
        plugin = Path(sys.executable).parent / f"protoc-gen-{name}"
        command += [f"--plugin=protoc-gen-{name}={plugin}", f"--{name}_out={target}"]
    subprocess.run([*command, *files], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for path in (target / HERE).iterdir():
        path.write_text(IMPORT.sub("protos.edge_attention.v1", path.read_text()))


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {path.name: path.read_bytes() for path in (Path(folder) / HERE).iterdir()}
    kept = ROOT / "protos" / HERE
    stale = [
        name
        for name, data in fresh.items()
        if not (kept / name).exists() or (kept / name).read_bytes() != data
    ]
    extra = [path.name for path in kept.glob("*_pb2*") if path.name not in fresh]
    if "--check" in sys.argv:
        if stale or extra:
            print(f"stale generated code in {kept}: {', '.join(sorted(stale + extra))}; run `make protos`")
        return 1 if stale or extra else 0
    for name in stale:
        (kept / name).write_bytes(fresh[name])
    for name in extra:
        (kept / name).unlink()
    print(f"protos: {len(stale)} written, {len(fresh) - len(stale)} fresh")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
