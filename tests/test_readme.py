"""What the README shows is run: the two commands exist, the fleet by hand starts, the client code answers."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from edge_attention.cli.local_fleet import LocalFleet

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    found = re.search(rf"<!-- test: {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"README has no block {name!r}"
    return found[1]


def test_the_commands_it_names_are_there():
    commands = re.findall(r"^make (\S+)", README, re.MULTILINE)
    assert commands[:2] == ["run", "test"]
    for target in commands:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_every_folder_and_page_it_names_is_there():
    table = README.split("## What is where")[1]
    paths = re.findall(r"`([a-z_]+/[\w./]*)`", table) + re.findall(r"\]\(([\w./]+)\)", README)
    assert len(paths) > 12
    for path in paths:
        places = [ROOT / room / path for room in (".", "protos", "edge_attention", "aggregator")]
        assert any(place.exists() for place in places), f"README names {path}, which is not there"


def test_every_page_is_found_from_here():
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert pages - set(re.findall(r"\]\((docs/\w+\.md)", README)) == set()


@pytest.mark.e2e
def test_the_fleet_by_hand_answers():
    lines = [shlex.split(line) for line in block("fleet").splitlines()]
    assert [line[0] for line in lines] == ["edge-aggregator", "edge-node", "edge-node"]
    assert lines[0][1:] == ["--listen", "127.0.0.1:50051"]
    with LocalFleet() as fleet:
        # The same flags, on a port the system picks: another fleet may run on this machine.
        fleet.start_aggregator()
        for line in lines[1:]:
            assert line[1:3] == ["--aggregator", "127.0.0.1:50051"]
            fleet.start_node(line[line.index("--name") + 1])
        code = block("client").replace("127.0.0.1:50051", fleet.address)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True (4, 8, 64)\n")
    assert "'a':" in done.stdout
    assert "'b':" in done.stdout


@pytest.mark.e2e
def test_the_demo_ends_well_and_writes_every_figure(tmp_path):
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "edge_attention.cli.main", "demo", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(file.read_text())
    accuracy, partial = figures["accuracy"], figures["partial"]
    assert abs(accuracy["fleet"] - accuracy["one_machine"]) <= 0.01
    assert accuracy["fleet"] > max(accuracy["alone"].values())
    assert set(accuracy["alone"]) == set(figures["mass"]) == {"means", "errors", "worst"}
    assert figures["parameter_difference"] <= 1e-4
    assert figures["attention_error"] <= 1e-5
    assert 0 < figures["bytes"]["sent"] < figures["bytes"]["if_shipped"]
    assert partial["exact"] is False
    assert partial["coverage"] == [[0, 32768]]
    assert partial["actual_error"] <= partial["bound"]
    assert figures["seconds"] > 0
    # What the README shows is what it ends with: to one patient of 114, as processors round otherwise.
    shown = {
        name: float(value) / 100
        for name, value in re.findall(r"^ (.+?) +(\d+\.\d\d)%  ", README, re.MULTILINE)
    }
    assert abs(shown["the fleet"] - accuracy["fleet"]) < 0.01
    assert abs(shown["all data on one machine"] - accuracy["one_machine"]) < 0.01
    for lab, alone in accuracy["alone"].items():
        assert abs(shown[f"lab {lab} alone"] - alone) < 0.01
    sent = float(re.search(r"bytes sent, training +([\d.]+) MiB", README)[1])
    assert abs(sent - figures["bytes"]["sent"] / 2**20) < 0.02 * sent
