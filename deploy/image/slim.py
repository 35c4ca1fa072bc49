"""Takes out of a virtual environment what nothing of ours runs, and checks that the rest still works.

    python3 slim.py ENVIRONMENT [--without PACKAGE ...]

What goes: tests and type stubs of packages, headers and static libraries, NumPy's compiler tools, ONNX
Runtime's offline tools (they need `onnx`, which a node has not), and with --without whole packages of ours.
"""

import shutil
import subprocess
import sys
from pathlib import Path

# Relative to site-packages. `import numpy` and `import onnxruntime` load none of them.
TOOLS = [
    "numpy/f2py",  # compiles Fortran
    "numpy/_core/include",  # headers for C extensions
    "numpy/_core/lib",  # static libraries for the same
    "numpy/_pyinstaller",
    "onnxruntime/backend",  # runs onnx's own test suite
    "onnxruntime/datasets",  # sample models
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "onnxruntime/transformers",
    "google/protobuf/compiler",
]
FOLDERS = {"tests", "__pycache__"}
ENDINGS = {".pyi", ".pyx", ".pxd", ".a", ".h", ".c", ".cpp"}
# Kept whatever its ending: a package may read it.
NOTICES = {"LICENSE", "NOTICE"}

PROBE = """
import asyncio, cryptography.x509, grpc, jwt, numpy, onnxruntime, prometheus_client
import grpc_health.v1.health_pb2_grpc, edge_node.executor, edge_node.link, edge_node.runtime
import edge_attention.client.sync, edge_node.health
assert "onnx" not in __import__("sys").modules
print("onnxruntime", onnxruntime.__version__, onnxruntime.get_available_providers())
"""


def size(root: Path) -> int:
    return sum(f.stat().st_size for f in root.rglob("*") if f.is_file() and not f.is_symlink())


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main(environment: Path, without: list[str]) -> None:
    site = next(environment.glob("lib/python3*/site-packages"))
    before = size(environment)
    for tool in TOOLS:
        remove(site / tool)
    for path in sorted(environment.rglob("*"), reverse=True):
        folder = path.is_dir() and path.name in FOLDERS
        if folder or (path.suffix in ENDINGS and path.is_file() and path.stem not in NOTICES):
            remove(path)
    for package in without:
        remove(site / package)
        for script in (environment / "bin").glob(f"*{package}"):
            remove(script)
    subprocess.run([environment / "bin" / "python", "-c", PROBE], check=True)
    print(f"{environment}: {before >> 20} MiB, slimmed to {size(environment) >> 20} MiB")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(Path(arguments[0]), arguments[2:] if arguments[1:2] == ["--without"] else [])
