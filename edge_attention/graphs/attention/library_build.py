"""Writes the files of `library/` from the code that builds them; `--check` fails if they are stale.

python -m edge_attention.graphs.attention.library_build [--check]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import onnx

from edge_attention.graphs.attention import library
from edge_attention.graphs.attention.build import GRAPHS, build

__all__ = ["main", "stale"]

FOLDER = Path(library.__file__).parent


def stale(folder: Path = FOLDER) -> list[str]:
    """Names whose file in `folder` is missing, differs as a model from what the code builds, or is left over.

    Compared as models, not as bytes: another version of onnx or protobuf may lay out the same model
    otherwise, and the committed bytes are the ones whose digests count.
    """
    found = {path.stem: path for path in folder.glob("*.onnx")}
    wrong = found.keys() ^ GRAPHS.keys()
    for name in found.keys() & GRAPHS.keys():
        if onnx.load_model_from_string(found[name].read_bytes()) != build(name):
            wrong.add(name)
    return sorted(wrong)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the library of attention graphs.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is stale")
    wrong = stale()
    if parser.parse_args(arguments).check:
        if wrong:
            print(f"Stale in {FOLDER}: {', '.join(wrong)}. Run `make graphs`.")
        return 1 if wrong else 0
    for name in wrong:
        path = FOLDER / f"{name}.onnx"
        if name in GRAPHS:
            path.write_bytes(build(name).SerializeToString(deterministic=True))
        else:
            path.unlink()
        print(f"{'wrote' if name in GRAPHS else 'removed'} {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
