"""docs/client.md typed as it stands: its files, its fleet, each Python block and each job's file."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
from doc_blocks import block, text_of

from edge_attention.cli.local_fleet import LocalFleet

PAGE = text_of("client.md")

pytestmark = pytest.mark.e2e


def fleet_of(line):
    """Node -> dataset -> file, as that line of `edge-attention up` has them."""
    words = shlex.split(line)
    assert words[:5] == ["edge-attention", "up", "--nodes", "2", "--allow-own-data"]
    assert set(words[5::2]) == {"--data"}
    nodes = {"node-1": {}, "node-2": {}}
    for text in words[6::2]:
        key, file = text.split("=")
        node, dataset = key.split(":")
        nodes[node][dataset] = file
    return nodes


def test_the_blocks_run_against_the_fleet_that_it_names(tmp_path):
    def run(*words):
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("-c", block(PAGE, "files"))
    with LocalFleet() as fleet:
        fleet.start_aggregator()
        for name, data in fleet_of(block(PAGE, "fleet")).items():
            files = {dataset: tmp_path / file for dataset, file in data.items()}
            fleet.start_node(name, "--allow-own-data", data=files)
        code = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
        # The page says how `main` is run; the client is closed by the last block.
        code += "\nimport asyncio\nprint(asyncio.run(main()).exact)\n"
        said = run("-c", code.replace("127.0.0.1:50051", fleet.address))
        for job in re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
            (tmp_path / "job.toml").write_text(job)
            train = ["train", "job.toml", "--json"]
            run("-m", "edge_attention.cli.main", "--aggregator", fleet.address, *train)
    assert "node-1 ready" in said
    assert "no context 'nowhere'" in said
    assert said.endswith("True\n")
    made = ("patients.safetensors", "trained.onnx", "trained.safetensors")
    assert [name for name in made if not (tmp_path / name).exists()] == []
