"""The power of a node's box goes: what it had acknowledged is there afterwards, or is known to be missing.

The block device as it is in that moment is what a machine would find. Root's alone, with a loop device.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess

import numpy as np
import pytest
from fleets import SPEC, Fleet, certified, exact, queries, tokens, until

KEYS, VALUES = tokens(8_000)
ASKED = queries(3)


def run(*arguments):
    return subprocess.run([str(a) for a in arguments], check=True, capture_output=True, text=True, timeout=60)


@pytest.fixture
def box(tmp_path):
    """Mounts ext4 of its own; `box()` cuts the power and gives the folder that is found then."""
    if os.geteuid() or not (shutil.which("mkfs.ext4") and shutil.which("losetup")):
        pytest.skip("needs root, mkfs.ext4 and a loop device")
    mounted, disk = [], tmp_path / "disk0"

    def mount(disk):
        folder = tmp_path / f"box{len(mounted)}"
        folder.mkdir()
        try:
            run("mount", "-o", "loop", disk, folder)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no loop device can be mounted: {error.stderr}")
        mounted.append(folder)
        return folder

    run("truncate", "-s", "300M", disk)
    run("mkfs.ext4", "-q", "-F", disk)

    def cut(damage=lambda data: None):
        found = tmp_path / f"disk{len(mounted)}"
        run("cp", "--sparse=always", disk, found)
        damage(found)
        return mount(found)

    try:
        yield mount(disk), cut
    finally:
        for folder in mounted:
            with contextlib.suppress(subprocess.CalledProcessError):
                run("umount", "-l", folder)


def node(own, store):
    own.start_node("a", "--threads", "1", "--store", str(store), "--memory-limit", "60MB")


def test_what_a_node_acknowledged_is_there_after_a_power_loss(fleet, box):
    folder, cut = box
    own = fleet("--lease", "3")
    node(own, folder / "store")
    with own.client() as client:
        context = client.create_context("memory", **SPEC)
        context.append(KEYS[:5_000], VALUES[:5_000])
        os.sync()  # that was long ago
        context.append(KEYS[5_000:], VALUES[5_000:])
        found = cut()
        own.kill("a")
        node(own, found / "store")
        exact(until(lambda: whole(context), "the node's return"), ASKED, KEYS, VALUES)
        context.append(KEYS, VALUES)
        twice = np.concatenate([KEYS, KEYS]), np.concatenate([VALUES, VALUES])
        exact(context.attend(ASKED), ASKED, *twice)


def test_what_the_disk_lost_is_known_to_be_missing(fleet, box):
    folder, cut = box
    own = fleet("--lease", "3")
    node(own, folder / "store")

    def zeros(disk):
        """The pages of one tile are found unwritten."""
        needle = VALUES[4_000, 0].tobytes()
        data = bytearray(disk.read_bytes())
        at = data.index(needle)
        data[at - at % 4096 : at - at % 4096 + 4096] = bytes(4096)
        disk.write_bytes(data)

    with own.client() as client:
        context = client.create_context("memory", **SPEC)
        context.append(KEYS, VALUES)
        found = cut(zeros)
        own.kill("a")
        node(own, found / "store")
        until(lambda: [n.state.value for n in client.nodes()] == ["ready"], "the node's return")
        answer = context.attend(ASKED, deadline=5)
        certified(answer, ASKED, KEYS, VALUES)
        (segment,) = context.describe().segments
        assert (segment.holders, segment.live) == (("a",), ())
        assert "tokens are left" in own.said("a")


def whole(context):
    answer = context.attend(ASKED, deadline=5)
    return answer if answer.exact else None


def test_a_box_with_aggregator_and_node_comes_back_with_all_that_was_acknowledged(box):
    folder, cut = box
    with contextlib.ExitStack() as stack:
        own = Fleet(folder, "--lease", "3", state=True)
        stack.callback(own.stop)
        node(own, folder / "store")
        with own.client() as client:
            context = client.create_context("memory", **SPEC)
            appended = context.append(KEYS, VALUES, request_id="mine")
            found = cut()  # nothing was synced but what they sync themselves
        own.kill("a")
        other = Fleet(found, "--lease", "3", state=True)
        stack.callback(other.stop)
        node(other, found / "store")
        with other.client() as client:
            context = client.context("memory")
            exact(until(lambda: whole(context), "the node's return"), ASKED, KEYS, VALUES)
            assert context.append(KEYS, VALUES, request_id="mine").ranges == appended.ranges
            assert context.describe().tokens == len(KEYS)
