"""How a person gets to a node's log, as its failures on private data say."""

import os
import socket
import subprocess
import sys

from edge_node.log_place import log_place

HERE = socket.gethostname()
ASK = "from edge_node.log_place import log_place; print(log_place())"


def asked(**how):
    ran = subprocess.run([sys.executable, "-c", ASK], stdout=subprocess.PIPE, text=True, check=True, **how)
    return ran.stdout.strip()


def test_a_file_is_named(tmp_path):
    with (tmp_path / "node.log").open("w") as log:
        assert asked(stderr=log) == f"the file {tmp_path}/node.log, on {HERE}"


def test_a_long_path_is_cut_and_shown_in_one_line(tmp_path):
    folder = tmp_path / "a\nb" / ("x" * 200)
    folder.mkdir(parents=True)
    with (folder / "node.log").open("w") as log:
        said = asked(stderr=log)
    assert "a\\nb" in said
    assert len(said) == 200


def test_under_systemd_it_is_the_journal_and_the_unit_is_named(tmp_path):
    out = os.fstat(2)
    environment = {"JOURNAL_STREAM": f"{out.st_dev}:{out.st_ino}"}
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/system.slice/clinic-node.service\n")
    assert log_place(environment, tmp_path) == f"journalctl -u clinic-node, on {HERE}"
    (tmp_path / "proc/self/cgroup").write_text("0::/user.slice\n")
    assert log_place(environment, tmp_path) == f"journalctl -u edge-node, on {HERE}"
    # Inherited by a process whose output goes elsewhere.
    assert "journalctl" not in asked(stderr=subprocess.DEVNULL, env=os.environ | {"JOURNAL_STREAM": "1:1"})


def test_in_a_container(tmp_path):
    def printing(environment, root):
        reading, writing = os.pipe()
        kept = os.dup(2)
        os.dup2(writing, 2)
        try:
            return log_place(environment, root)
        finally:
            os.dup2(kept, 2)
            for descriptor in (reading, writing, kept):
                os.close(descriptor)

    assert printing({}, tmp_path) == f"what edge-node prints, on {HERE}"
    (tmp_path / ".dockerenv").touch()
    assert printing({}, tmp_path) == f"docker logs {HERE}"
    assert printing({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path) == f"kubectl logs {HERE}"
    # The container's first process writes elsewhere: who started this one has its words.
    (tmp_path / "proc/1/fd").mkdir(parents=True)
    (tmp_path / "proc/1/fd/2").touch()
    assert printing({}, tmp_path) == f"what edge-node prints, on {HERE}"
