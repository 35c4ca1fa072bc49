"""Generates the Python code of `protos/` beside the .proto files; `--check` fails if it is stale."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (Path("edge_attention/v1"), Path("edge_attention/open_inference/v2"))
# protoc writes module names for a package at the root of its own search path; ours is `protos`.
# Only names of Python modules end in `_pb2`; the names of messages (`edge_attention.v1.Tensor`) stay.
_NAME = r"edge_attention\.(?:open_inference\.v2|v1)"
IMPORT = re.compile(rf"(?<![\w.])({_NAME})(?= import|\.\w+_pb2|\s+as)|(?<=from )({_NAME})")


def generate(target: Path) -> None:
    files = sorted(
        str(path.relative_to(ROOT / "protos"))
        for package in PACKAGES
        for path in (ROOT / "protos" / package).glob("*.proto")
    )
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}"]
    command.append(f"-I{resources.files('grpc_tools') / '_proto'}")
    command += [f"--python_out={target}", f"--grpc_python_out={target}"]
    for name in ("mypy", "mypy_grpc"):
        plugin = Path(sys.executable).parent / f"protoc-gen-{name}"
        command += [f"--plugin=protoc-gen-{name}={plugin}", f"--{name}_out={target}"]
    subprocess.run([*command, *files], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for package in PACKAGES:
        for path in (target / package).iterdir():
            path.write_text(IMPORT.sub(lambda found: f"protos.{found[0]}", path.read_text()))


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {
            package / path.name: path.read_bytes()
            for package in PACKAGES
            for path in (Path(folder) / package).iterdir()
        }
    kept = ROOT / "protos"
    stale = [
        name
        for name, data in fresh.items()
        if not (kept / name).exists() or (kept / name).read_bytes() != data
    ]
    extra = [
        package / path.name
        for package in PACKAGES
        for path in (kept / package).glob("*_pb2*")
        if package / path.name not in fresh
    ]
    if "--check" in sys.argv:
        if stale or extra:
            names = ", ".join(str(name) for name in sorted(stale + extra))
            print(f"stale generated code in {kept}: {names}; run `make protos`")
        return 1 if stale or extra else 0
    for name in stale:
        (kept / name).write_bytes(fresh[name])
    for name in extra:
        (kept / name).unlink()
    print(f"protos: {len(stale)} written, {len(fresh) - len(stale)} fresh")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
