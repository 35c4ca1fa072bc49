"""docs/serving.md typed as it stands: its models are made and deployed, and asked by each of its examples."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
from doc_blocks import block, text_of

from edge_attention.cli.local_fleet import AGGREGATOR, LocalFleet

PAGE = text_of("serving.md")

pytestmark = pytest.mark.e2e


def test_the_examples_are_answered_by_what_the_page_deploys(tmp_path):
    def run(*words):
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-c", block(PAGE, "models"))
    with LocalFleet() as fleet:
        fleet.start_aggregator("--metrics-port", "0")
        for name in ("node-1", "node-2", "node-3"):
            fleet.start_node(name)
        page = fleet.child(AGGREGATOR).wait_for(r"page at http://([^/\s]+)")[1]
        for line in block(PAGE, "deploy").splitlines():
            program, *words = shlex.split(line)
            assert program == "edge-attention"
            run(sys.executable, "-m", "edge_attention.cli.main", "--aggregator", fleet.address, *words)
        at = {"127.0.0.1:50051": fleet.address, "127.0.0.1:9464": page}
        blocks = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
        assert len(blocks) == 5
        for language, code in blocks:
            for written, real in at.items():
                code = code.replace(written, real)
            if language == "python":
                assert run(sys.executable, "-c", code).strip()
            else:
                said = run("bash", "-ec", code)
                assert '"error"' not in said
                assert '"outputs"' in said or '"choices"' in said
