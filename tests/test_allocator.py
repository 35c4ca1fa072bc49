"""Blocks as large as messages are used again, and not cleared anew by the system for each."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """if True:
    import resource
    from edge_attention.allocator import keep_blocks
    keep_blocks()
    def faults():
        for _ in range(50):
            first, second = b"x" * SIZE, b"y" * SIZE
            del first, second
    faults()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    faults()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Faults of 50 times two blocks that are written to, once as many have been."""


def faults(size: int, **environment: str) -> int:
    code = FAULTS.replace("SIZE", str(size))
    found = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=found | environment
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such call")
def test_blocks_of_messages_are_used_again_and_larger_ones_are_not_kept():
    pages = 100 * (1 << 20) // 4096
    assert faults(1 << 20) < pages // 10
    assert faults(16 << 20) > 16 * pages // 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such call")
def test_the_operator_has_the_last_word():
    kept = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    assert faults(1 << 20, **kept) > 100 * (1 << 20) // 4096 // 2
