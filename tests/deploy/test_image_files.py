"""What the images are made of: requirements by variant, what is slimmed away, what a build is given."""

from __future__ import annotations

import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "deploy" / "image"


def listed(*words: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, IMAGE / "requirements.py", ROOT / "pyproject.toml", *words],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


def test_a_node_needs_the_dependencies_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert listed("onnxruntime") == project["dependencies"]


def test_an_extra_brings_those_it_names():
    found = {requirement.split(">")[0] for requirement in listed("onnxruntime", "aggregator")}
    assert {"aiohttp", "onnx", "rich", "grpcio"} <= found
    assert not any("edge-attention" in name for name in found)


@pytest.mark.parametrize("variant", ["onnxruntime-gpu[cuda,cudnn]", "onnxruntime-openvino"])
def test_a_variant_takes_the_place_of_onnxruntime(variant):
    found = [
        requirement for requirement in listed(variant, "aggregator") if requirement.startswith("onnxruntime")
    ]
    assert len(found) == 1
    assert found[0].startswith(f"{variant}>=")


def test_an_extra_that_is_not_there_is_said():
    done = subprocess.run(
        [sys.executable, IMAGE / "requirements.py", ROOT / "pyproject.toml", "onnxruntime", "nosuch"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "no extra 'nosuch'; it has aggregator" in done.stderr


def test_slimming_takes_tests_and_tools_and_leaves_the_rest(tmp_path):
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    gone = [
        "numpy/tests/test_x.py",
        "numpy/f2py/x.py",
        "onnxruntime/tools/x.py",
        "numpy/x.pyi",
        "a/x.h",
        "ours/x.py",
    ]
    kept = ["numpy/x.py", "onnxruntime/capi/x.so", "a/LICENSE", "a/py.typed", "a/NOTICE.h"]
    for name in [*gone, *kept]:
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text("")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "edge-ours").write_text("")
    # In place of the probe's Python, one that agrees.
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "python").chmod(0o755)
    runpy.run_path(str(IMAGE / "slim.py"))["main"](tmp_path, ["ours"])
    assert [name for name in gone if (site / name).exists()] == []
    assert [name for name in kept if not (site / name).exists()] == []
    assert not (tmp_path / "bin" / "edge-ours").exists()


def test_a_build_is_given_what_the_dockerfiles_copy():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[1] != "!*"
    for needed in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "protos",
        "edge_attention",
        "edge_node",
        "aggregator",
    ):
        assert f"!{needed}" in ignored or f"!{needed}/" in ignored, needed
    assert not any(word.startswith(("!tests", "!.git", "!.venv", "!secrets")) for word in ignored)


@pytest.mark.parametrize("name", ["aggregator", "edge"])
def test_both_dockerfiles_begin_alike(name):
    """So that the second build finds the first one's layers, the dependencies among them."""
    text = (ROOT / "deploy" / f"{name}.Dockerfile").read_text()
    other = (
        (ROOT / "deploy" / ("edge" if name == "aggregator" else "aggregator"))
        .with_suffix(".Dockerfile")
        .read_text()
    )
    start, end = text.index("ARG BASE="), text.index("-r /build/requirements.txt\n")
    assert text[start:end] == other[other.index("ARG BASE=") : other.index("-r /build/requirements.txt\n")]
