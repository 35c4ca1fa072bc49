"""Starting, killing and stopping child processes; the daemons are stubs."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_attention.cli.local_fleet import LocalFleet
from edge_attention.cli.main import cli
from edge_attention.cli.up import USUAL_PORT, free_or_any
from edge_attention.core.errors import AlreadyExists, DeadlineExceeded, FailedPrecondition, NotFound

HERE = str(Path(__file__).parent)
START = f"""
import os, sys
os.environ["PYTHONPATH"] = {HERE!r} + os.pathsep + os.environ.get("PYTHONPATH", "")
from edge_attention.cli.local_fleet import LocalFleet
LocalFleet.aggregator_module = LocalFleet.node_module = "stub_daemon"
"""


@pytest.fixture
def fleet(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", HERE, prepend=os.pathsep)
    monkeypatch.setattr(LocalFleet, "aggregator_module", "stub_daemon")
    monkeypatch.setattr(LocalFleet, "node_module", "stub_daemon")
    with LocalFleet(state=Path("/some/state")) as fleet:
        yield fleet


def gone(pid, seconds=120.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_fleet_from_start_to_stop(fleet):
    with pytest.raises(FailedPrecondition, match="start_aggregator"):
        _ = fleet.address
    assert fleet.start_aggregator("--lease", "2") == "127.0.0.1:54321"
    given = fleet.child("aggregator").wait_for("arguments (.*)")[1]
    assert given == "--listen 127.0.0.1:0 --state /some/state --lease 2"
    child = fleet.start_node("a", "--threads", "1", data={"d": "a.npz"}, allow_release=["x", "y"])
    assert child.wait_for("arguments (.*)")[1] == (
        "--aggregator 127.0.0.1:54321 --name a --data d=a.npz --allow-release x --allow-release y --threads 1"
    )
    with pytest.raises(AlreadyExists, match="a is running"):
        fleet.start_node("a")
    with pytest.raises(NotFound, match="no 'b' was started; there are aggregator, a"):
        fleet.kill("b")
    fleet.kill("a")
    assert child.process.returncode == -signal.SIGKILL
    again = fleet.start_node("a")
    assert again.pid != child.pid
    assert fleet.terminate("aggregator") == 0
    fleet.start_aggregator()
    assert "127.0.0.1:54321" in fleet.child("aggregator").wait_for("arguments (.*)")[1]
    pids = [child.pid for child in fleet.children.values()]
    fleet.stop()
    assert all(gone(pid) for pid in pids)


def test_a_child_that_does_not_start_is_quoted(fleet):
    fleet.start_aggregator()
    with pytest.raises(FailedPrecondition, match=r"broken ended with exit code 1.*\n    no such provider"):
        fleet.start_node("broken")
    with pytest.raises(DeadlineExceeded, match="did not say 'never'"):
        fleet.child("aggregator").wait_for("never", timeout=0.05)


def test_a_child_that_ignores_the_signal_is_killed(fleet):
    fleet.start_aggregator()
    child = fleet.start_node("a", "deaf")
    child.wait_for("^deaf")
    fleet.stop(timeout=0.2)
    assert gone(child.pid)


def test_children_end_with_a_parent_that_is_killed():
    code = START + (
        "import time\nfleet = LocalFleet(); fleet.start_aggregator(); fleet.start_node('a')\n"
        "print(*(c.pid for c in fleet.children.values()), flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pids = list(map(int, parent.stdout.readline().split()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def up(*arguments, port=("--port", "0")):
    code = START + (
        f"sys.argv = ['edge-attention', 'up', *{[*port, *arguments]!r}]\n"
        "from edge_attention.cli.main import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_stops_all_and_exits_zero(number):
    process = up("--nodes", "2", "--json")
    told = json.loads(process.stdout.readline())
    assert [child["name"] for child in told["children"]] == ["aggregator", "node-1", "node-2"]
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert all(gone(child["pid"]) for child in told["children"])


def test_up_is_where_commands_look_unless_somebody_else_is():
    """README's client, and commands without --aggregator, find it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_or_any(port) == 0
    assert free_or_any(port) == port
    assert f"127.0.0.1:{USUAL_PORT}" in [
        option.default for option in cli.params if option.name == "aggregator"
    ]


def test_up_on_a_port_that_is_taken_takes_another():
    with socket.socket() as taken:
        # Taken by this test, or by somebody else on this machine: both are so.
        with contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", USUAL_PORT))
            taken.listen()
        process = up("--nodes", "1", "--json", port=())
        told = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert told["aggregator"] != f"127.0.0.1:{USUAL_PORT}"
    assert process.returncode == 0


def test_up_names_its_own_option_where_a_port_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = up("--nodes", "1", port=("--port", port))
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert f"port {port} of 127.0.0.1 is taken" in err
    assert "--port" in err


def test_with_a_state_nodes_keep_theirs_too(tmp_path):
    process = up("--nodes", "2", "--state", str(tmp_path / "kept"), "--json")
    told = json.loads(process.stdout.readline())
    given = {
        child["name"]: Path(f"/proc/{child['pid']}/cmdline").read_text().split("\0")
        for child in told["children"]
    }
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    stores = {name: words[words.index("--store") + 1] for name, words in given.items() if "--store" in words}
    assert stores == {name: str(tmp_path / "kept" / "nodes" / name) for name in ("node-1", "node-2")}


def test_a_signal_at_any_moment_of_a_wait_is_only_noted():
    """With a threading.Event this ends in a deadlock."""
    code = (
        "import signal; from edge_attention.cli.up import StopAsked; stop = StopAsked(); count = 0\n"
        "def handle(*event):\n    global count; count += 1; stop.handle(*event)\n"
        "signal.signal(signal.SIGALRM, handle); signal.setitimer(signal.ITIMER_REAL, 1e-5, 1e-5)\n"
        "while count < 20_000:\n    stop.wait(0)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0); print(stop.asked)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_up_goes_on_without_a_node_but_not_without_the_aggregator():
    process = up("--nodes", "2", "--json")
    told = json.loads(process.stdout.readline())
    pids = {child["name"]: child["pid"] for child in told["children"]}
    os.kill(pids["node-1"], signal.SIGKILL)
    assert "node-1 ended with exit code -9" in process.stderr.readline()
    os.kill(pids["aggregator"], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "aggregator ended with exit code -9" in err
    assert "Traceback" not in err
    assert gone(pids["node-2"])
