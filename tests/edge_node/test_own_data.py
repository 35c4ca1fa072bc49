"""--allow-own-data is for one machine: a node whose aggregator is elsewhere does not start with it."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = "from edge_node.main import main; main()"


@pytest.mark.parametrize("address", ["10.0.0.1:50051", "aggregator.example:50051"])
def test_a_node_of_an_aggregator_elsewhere_refuses_it(address):
    done = subprocess.run(
        [sys.executable, "-c", CODE, "--aggregator", address, "--name", "a", "--allow-own-data"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    said = f"--allow-own-data lets leave whatever a program asks for, and the aggregator is at {address[:-6]}"
    assert said in done.stderr
    assert "--allow-release" in done.stderr
    assert "Traceback" not in done.stderr
