"""A confined process has nothing but what it was handed; each layer by itself keeps files away."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edge_node.cell import system_calls

HERE = Path(__file__).resolve().parent
ROOT = os.geteuid() == 0
LANDLOCK_WITH_SCOPES = 6


def doubled():
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "doubled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString().hex()


MODEL = doubled()


def confined(**told):
    """The finished process, after it was told `told`."""
    environment = {"PATH": "/usr/bin:/bin", "ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [sys.executable, str(HERE / "confined.py"), json.dumps({"model": MODEL, **told})],
        capture_output=True, env=environment, timeout=120, cwd="/",
    )  # fmt: skip


def answer(**told):
    done = confined(**told)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def landlock_version():
    found = answer(without=["_seccomp"], tries=[])["report"]["landlock"]
    if not found:
        pytest.skip("this kernel has no Landlock")
    return found


def test_it_can_do_nothing_but_work_on_what_it_has():
    found = answer()
    assert found["report"]["seccomp"], found
    assert found["report"]["shut"]
    assert found["can"] == []
    assert found["works"]
    assert found["open"], "a descriptor that was not to be kept is open, or one that was is not"


@pytest.mark.skipif(not ROOT, reason="only root can become another user")
def test_root_becomes_a_user_of_its_own():
    found = answer()
    assert found["report"]["user"] == found["uid"] != 0
    assert found["report"]["empty_root"]
    assert found["report"]["namespaces"]


@pytest.mark.skipif(not ROOT, reason="only root can become another user first")
def test_it_is_shut_in_without_root_too():
    found = answer(user=12_345)
    assert found["report"]["user"] is None
    assert found["can"] == []
    assert found["works"]


def test_where_seccomp_is_not_let_through_the_older_call_does():
    found = answer(refused=["syscall"], without=["_landlock"])
    assert found["report"]["seccomp"]
    assert found["can"] == []


def test_what_is_open_says_so():
    others = ["_landlock", "_enter_empty_root", "_become_own_user", "_seccomp"]
    found = answer(without=others, refused=["unshare"], tries=["open", "udp"])
    assert not found["report"]["shut"]
    assert found["describe"].startswith("open: ")
    assert {"open", "udp"} <= set(found["can"])


FILES = {"open", "open proc", "open here", "write", "list", "mkdir"}


def test_seccomp_alone_is_enough():
    others = ["_landlock", "_enter_empty_root", "_become_own_user"]
    found = answer(without=others, refused=["unshare"])
    assert found["can"] == []
    assert found["describe"].startswith("seccomp (not here: ")


def test_landlock_alone_keeps_files_away():
    version = landlock_version()
    tries = [*FILES, "inet", "unix", "kill"]
    found = answer(
        without=["_seccomp", "_enter_empty_root", "_become_own_user"], refused=["unshare"], tries=tries
    )
    assert not FILES & set(found["can"])
    if version >= LANDLOCK_WITH_SCOPES:
        assert not {"inet", "unix", "kill"} & set(found["can"])


@pytest.mark.skipif(
    not ROOT, reason="the root is changed by root, or in a user namespace, which not all have"
)
def test_an_empty_root_alone_keeps_files_away():
    found = answer(without=["_seccomp", "_landlock"], tries=["open", "open proc", "list"])
    assert not {"open", "open proc", "list"} & set(found["can"])


def test_what_needs_devices_has_no_network_and_starts_nothing():
    found = answer(devices=True)
    assert not {
        "inet",
        "unix",
        "udp",
        "fork",
        "run",
        "kill",
        "ptrace",
        "read memory",
        "write",
        "mkdir",
    } & set(found["can"])
    assert found["works"]


def test_threads_that_are_there_are_held_by_seccomp_or_it_refuses():
    found = answer(thread=True)
    assert found["report"]["seccomp"]
    assert not found["report"]["landlock"]
    assert found["can"] == []
    refused = confined(thread=True, without=["_seccomp"])
    assert refused.returncode != 0
    assert b"other threads" in refused.stderr


def test_a_process_that_does_not_end_is_ended_by_its_processor_time():
    assert confined(spin=True, seconds=1).returncode == -signal.SIGKILL


def test_memory_is_bounded():
    assert "memory" not in answer(memory=128 << 20)["can"]
    assert "memory" in answer(memory=4 << 30)["can"]


@pytest.mark.parametrize("machine", system_calls.MACHINES)
def test_filters_fit_the_kernel(machine):
    """4,096 instructions of eight bytes at most, every jump within the program."""
    for code in (system_calls.allow_listed(machine, 1), system_calls.deny_listed(machine)):
        assert 0 < len(code) // 8 <= 4096
        last = len(code) // 8 - 1
        for at in range(last + 1):
            operation, yes, no = code[8 * at], code[8 * at + 2], code[8 * at + 3]
            if operation & 7 == 5:
                assert at + 1 + max(yes, no) <= last
    assert platform.machine() not in system_calls.MACHINES or answer()["report"]["seccomp"]
