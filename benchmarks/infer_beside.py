"""Beside what else one would take: `python -m benchmarks.infer_beside`, MiniLM's sizes, 128 and 512 tokens.

ONNX Runtime on one box, Ray with one actor a stage (infer_beside_ray.py), ours over two nodes by tokens and
by layers (infer_beside_ours.py), and with `--llama-cpp FOLDER --gguf FILE` llama.cpp over RPC
(infer_beside_llama.py), each in turns with ONNX Runtime. What was measured goes to stderr as it comes, as
JSON; the table of docs/performance.md to stdout. What is lacking is said before anything runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["lacking", "main", "table"]

PACKAGES = {
    "aiohttp": "aiohttp",
    "grpc_reflection": "grpcio-reflection",
    "onnx": "onnx",
    "psutil": "psutil",
    "ray": "ray",
}
"""Imported name -> what pip calls it. What is in no node's install."""
PROGRAMS = ("llama-bench", "ggml-rpc-server")
LENGTHS = (128, 512)
HEAD = ("", *(f"{length} tokens" for length in LENGTHS), "MB a request", "MB a process", "one of it killed")


def lacking(programs: Path | None, gguf: Path | None) -> str | None:
    """What is not there, in one sentence with the remedy; None if all is."""
    if missing := [pip for name, pip in PACKAGES.items() if importlib.util.find_spec(name) is None]:
        return f"not installed: {', '.join(missing)}; pip install 'edge-attention[demo]' ray psutil"
    if (programs is None) != (gguf is None):
        return "--llama-cpp and --gguf go together: programs and the model that they run"
    if programs is not None and gguf is not None:
        if missing := [name for name in PROGRAMS if not os.access(programs / name, os.X_OK)]:
            return f"--llama-cpp {programs} has no program {' nor '.join(missing)}: docs/performance.md"
        if not gguf.is_file():
            return f"--gguf {gguf} is no file: convert_hf_to_gguf.py of llama.cpp writes it, --outtype f32"
    return None


def table(found: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> str:
    """What was measured, as Markdown.

    Args:
        found: length -> who -> `times` what ONNX Runtime takes, `mb` a request, `held` MB of each process,
            `killed`: what the next request is answered, and `seconds` after which.
    """
    rows = [HEAD, ("---",) * len(HEAD)]
    for who in next(iter(found.values())):
        of = [found[length][who] for length in found]
        rows.append(
            (
                who,
                *(f"{one['times']:.2f} times" for one in of),
                " and ".join(f"{one['mb']:.1f}" for one in of),
                "; ".join(", ".join(f"{held:.0f}" for held in one["held"]) for one in of),
                "; ".join(dict.fromkeys(one["killed"] for one in of))
                + "".join(f", {one['seconds']:.1f} s" for one in of if one["seconds"]),
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _measured(length: int, programs: Path | None, gguf: Path | None) -> dict[str, dict[str, Any]]:
    """Everybody at one length, as `table` takes it."""
    from benchmarks.infer_beside_llama import llama_cpp
    from benchmarks.infer_beside_ours import ours
    from benchmarks.infer_beside_ray import ray_stages
    from benchmarks.infer_models import MINILM, model_file

    staged = _said({"length": length, **ray_stages(length)})
    found: dict[str, dict[str, Any]] = {
        "ONNX Runtime, one process": {
            "times": 1.0,
            "mb": 0.0,
            "held": [],  # its process is this one, which holds all sorts of things
            "killed": "the service is gone",
            "seconds": 0.0,
        },
        "Ray, an actor a stage, 2 stages": {
            "times": staged["ray_by_onnxruntime"],
            "mb": staged["ray_bytes"] / 1e6,
            "held": staged["ray_actor_resident_mb"],
            "killed": staged["ray_after_kill"],
            "seconds": staged["ray_after_kill_seconds"],
        },
    }
    if programs is not None and gguf is not None:
        theirs = _said({"length": length, **llama_cpp(programs, gguf, length)})
        for who in ("one process", "two servers"):
            found[f"llama.cpp, {who}"] = {
                "times": theirs["by_onnxruntime"][who],
                "mb": theirs["bytes"] / 1e6 if who == "two servers" else 0.0,
                "held": theirs["server_resident_mb"] if who == "two servers" else [],
                "killed": theirs["after_kill"] if who == "two servers" else "the service is gone",
                "seconds": 0.0,
            }
    with tempfile.TemporaryDirectory() as folder:
        by_plan = _said({"length": length, "plans": ours(model_file(MINILM, Path(folder)), length)})["plans"]
    for plan, one in by_plan.items():
        found[f"ours, 2 nodes by {plan}"] = {
            "times": one["by_onnxruntime"],
            "mb": one["bytes"] / 1e6,
            "held": [sum(held) for held in one["daemon_and_cells_mb"].values()],
            "killed": f"{one['after_kill']}{', the same bits' if one['same_bits_after_kill'] else ''}",
            "seconds": one["after_kill_seconds"],
        }
    return found


def _said(one: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(one, indent=1), file=sys.stderr, flush=True)
    return one


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="MiniLM over two processes: ours, Ray, llama.cpp, by turns.")
    parser.add_argument("--llama-cpp", type=Path, help="folder of llama-bench and ggml-rpc-server")
    parser.add_argument("--gguf", type=Path, help="MiniLM as llama.cpp reads it, float32")
    wanted = parser.parse_args(arguments)
    if why := lacking(wanted.llama_cpp, wanted.gguf):
        parser.error(why)
    print(table({length: _measured(length, wanted.llama_cpp, wanted.gguf) for length in LENGTHS}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
