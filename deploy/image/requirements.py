"""Prints what pip must install for an image: the dependencies in pyproject.toml, and those of extras.

    python3 requirements.py PYPROJECT ONNXRUNTIME [EXTRA ...]

ONNXRUNTIME takes the place of `onnxruntime` (onnxruntime-gpu[cuda,cudnn], onnxruntime-openvino): the
wheels of its variants hold the same module and may not lie side by side. Installing from this list
before the sources are copied keeps the layer of dependencies while only our code changes.
"""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], onnxruntime: str, extras: list[str]) -> list[str]:
    own = str(project["name"])
    optional: dict[str, list[str]] = project["optional-dependencies"]
    listed: list[str] = list(project["dependencies"])
    wanted, seen = list(extras), set[str]()
    while wanted:
        extra = wanted.pop()
        if extra in seen:
            continue
        seen.add(extra)
        if extra not in optional:
            raise SystemExit(f"pyproject.toml has no extra {extra!r}; it has {', '.join(sorted(optional))}")
        for requirement in optional[extra]:
            other = re.fullmatch(rf"{re.escape(own)}\[([a-z,]+)\]", requirement)
            if other:
                wanted += other[1].split(",")
            else:
                listed.append(requirement)
    name = re.compile(r"onnxruntime(?![\w-])")
    if sum(1 for requirement in listed if name.match(requirement)) != 1:
        raise SystemExit("pyproject.toml should ask for onnxruntime exactly once")
    if onnxruntime != "onnxruntime":
        listed = [name.sub(onnxruntime, r, count=1) if name.match(r) else r for r in listed]
    return listed


if __name__ == "__main__":
    file, onnxruntime, *extras = sys.argv[1:]
    print("\n".join(requirements(tomllib.loads(Path(file).read_text())["project"], onnxruntime, extras)))
