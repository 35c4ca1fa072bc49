"""Measuring this machine: from trees like /proc and /sys, and for real."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention import box
from edge_attention.core.messages.box import Box
from edge_attention.doctor import measure_box
from edge_attention.doctor.box_findings import no_such_provider

MEMINFO = "MemTotal:       16000000 kB\nMemFree:  1 kB\nMemAvailable:    8000000 kB\n"


def tree(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_this_machine():
    found = box.describe("auto")
    assert found.processors >= found.usable_processors >= 1
    assert found.memory > found.memory_available > 0
    assert "CPUExecutionProvider" in found.providers
    assert {"python", *box.PACKAGES} == found.versions.keys()
    assert found.id == box.describe().id
    assert box.describe().providers == (), "nobody asked what graphs run on"


def test_without_proc_and_sys_less_is_known(tmp_path):
    found = box.describe(root=tmp_path)
    assert (found.id, found.memory, found.memory_limit, found.processor_limit) == ("", 0, 0, 0.0)
    assert found.processors >= 1


def test_version_2_control_groups_count_up_the_tree(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/system.slice/edge-node.service\n",
            "sys/fs/cgroup/system.slice/edge-node.service/cpu.max": "max 100000\n",
            "sys/fs/cgroup/system.slice/edge-node.service/memory.max": "max\n",
            "sys/fs/cgroup/system.slice/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/system.slice/memory.max": "1073741824\n",
            "sys/fs/cgroup/elsewhere/memory.max": "1\n",
        },
    )
    found = box.describe(root=root)
    assert (found.processor_limit, found.memory_limit) == (1.5, 2**30)
    assert (found.memory, found.memory_available) == (16_000_000 * 1024, 8_000_000 * 1024)
    assert found.room == 2**30
    assert box.usable_memory(root) == 2**30
    (root / "sys/fs/cgroup/system.slice/memory.max").write_text("max\n")
    assert box.usable_memory(root) == 16_000_000 * 1024
    (root / "proc/meminfo").unlink()
    assert box.usable_memory(root) > 2**28, "what this machine says where there is no /proc"


def test_a_container_whose_path_is_the_hosts(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/docker/abc\n",
            "sys/fs/cgroup/cpu.max": "50000 100000\n",
            "sys/fs/cgroup/memory.max": "536870912\n",
        },
    )
    found = box.describe(root=root)
    assert (found.processor_limit, found.memory_limit) == (0.5, 2**29)


def test_version_1_control_groups(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/box\n3:memory:/box\n2:devices:/other\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "268435456\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    found = box.describe(root=root)
    assert (found.processor_limit, found.memory_limit) == (2.0, 2**28)


@pytest.mark.parametrize("text", ["", "nonsense", "0::", "0::/../../..\n", "0::/a\n0::/b"])
def test_odd_control_groups_are_no_limit(tmp_path, text):
    found = box.describe(root=tree(tmp_path, {"proc/self/cgroup": text, "sys/fs/cgroup/cpu.max": "max"}))
    assert (found.processor_limit, found.memory_limit) == (0.0, 0)


def test_two_machines_are_told_apart_and_one_is_known_again(tmp_path):
    boot = "proc/sys/kernel/random/boot_id"
    a, b = (box.describe(root=tree(tmp_path / n, {boot: n})).id for n in ("one", "two"))
    assert a != b
    assert "one" not in a
    assert box.describe(root=tmp_path / "one").id == a


def test_cores_and_room():
    assert Box(processors=8, usable_processors=4, processor_limit=1.5).cores == 1.5
    assert Box(processors=8, usable_processors=4).cores == 4
    assert Box(processors=8).cores == 8
    assert Box().cores == Box().room == 0
    assert Box(memory=8, memory_limit=16).room == 8


@given(
    st.builds(
        Box,
        id=st.text(max_size=200),
        time_seconds=st.floats(),
        processor_limit=st.floats(),
        keepalive_seconds=st.floats(),
        provider_asked=st.text(max_size=200),
        providers=st.lists(st.text(max_size=100), max_size=40).map(tuple),
        versions=st.dictionaries(st.text(max_size=100), st.text(max_size=100), max_size=40),
    )
)
def test_what_a_peer_says_is_bounded(said):
    kept = said.bounded()
    assert all(
        math.isfinite(n) and n >= 0 for n in (kept.time_seconds, kept.processor_limit, kept.keepalive_seconds)
    )
    texts = [kept.id, kept.provider_asked, *kept.providers, *kept.versions, *kept.versions.values()]
    assert len(texts) <= 2 + 16 + 32
    assert all(len(text) <= 64 for text in texts)
    assert kept.bounded() == kept


def test_what_is_right_is_kept_as_it_is():
    found = box.describe("auto")
    assert found.bounded() == found


# What only the doctor asks


def test_this_release_says_what_it_needs():
    needs = measure_box.required()
    assert needs.keys() == set(box.PACKAGES)
    assert set(needs["protobuf"].split(",")) == {">=6.31.1", "<8"}


def test_the_runtime_here_is_right():
    trial = measure_box.try_runtime("auto")
    assert trial.problem == ""
    assert trial.error < 1e-5
    assert trial.used in trial.available


def test_a_provider_that_is_none_or_not_there(caplog):
    none = measure_box.try_runtime("abacus")
    assert (none.known, none.wanted, none.problem) == (False, "abacus", "")
    finding = no_such_provider("x", none.wanted, none.available)
    assert (finding.status.value, "abacus" in finding.measured) == ("failed", True)
    away = measure_box.try_runtime("migraphx")
    assert (away.problem, away.used) == ("", "CPUExecutionProvider")
    assert not caplog.records, "it is a finding, and said once"


def test_an_accelerator_is_seen(tmp_path):
    assert measure_box.devices(tmp_path) == ()
    assert measure_box.devices(tree(tmp_path, {"dev/nvidiactl": ""})) == ("nvidia",)


def test_the_kernel_says_who_keeps_its_clock():
    synchronised, error = measure_box.clock_source()
    assert synchronised in (True, False, None)
    assert (error is None) == (synchronised is not True)
    assert error is None or 0 <= error < 60
