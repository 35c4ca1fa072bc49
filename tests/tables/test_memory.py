"""A file takes at most four times its size while a node reads it, whatever is in it: a process's peak."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

TIMES = 4
SLACK = 3 << 20
"""Bytes of what is there once: pieces of 8,192 values, buffers, what the allocator keeps."""

READ = """
import pathlib, sys
from edge_node.data.datasets import read

def peak():
    return next(int(l.split()[1]) << 10 for l in open('/proc/self/status') if l.startswith('VmHWM'))

small = pathlib.Path(sys.argv[1] + '.small.csv')
small.write_text('id,a,b,c\\n' + ''.join(f'{i},{i}.5,w{i % 9},\\n' for i in range(9000)))
read(f'd={small}')
pathlib.Path('/proc/self/clear_refs').write_text('5')
before = peak()
try:
    dataset = read(f'd={sys.argv[1]}')
except Exception as error:
    print(type(error).__name__, error)
print(peak() - before)
"""


def rows(count, row):
    return "".join(row(i) for i in range(count))


FILES = {
    "one long cell": lambda: "id,age,notes\n" + rows(
        20_000, lambda i: f"{i},{20 + i % 50},{'x' * 200_000 if i == 7 else 'ok'}\n"
    ),
    "a cell that is too long": lambda: "id,age,notes\n" + rows(
        20_000, lambda i: f"{i},{20 + i % 50},{'x' * 900_000 if i == 7 else 'ok'}\n"
    ),
    "digits": lambda: "a,b\n" + rows(600_000, lambda i: f"{i % 10},{i % 7}\n"),
    "one column": lambda: "a\n" + rows(800_000, lambda i: f"{i % 10}\n"),
    "ids": lambda: "id,a\n" + rows(300_000, lambda i: f"{i},1\n"),
    "decimals": lambda: "a,b\n" + rows(150_000, lambda i: f"{i / 8},{i / 7:.4f}\n"),
    "gaps": lambda: "a,b,c\n" + rows(300_000, lambda i: f"{i % 9 or ''},,{i % 7}\n"),
    "words": lambda: "a,b\n" + rows(400_000, lambda i: f"{'xyz'[i % 3]},{'uvw'[i % 3]}\n"),
    "words that come late": lambda: "a,b\n" + rows(400_000, lambda i: f"{i % 10},x\n") + "x,x\n",
    "text that is set aside": lambda: "a,b\n" + rows(200_000, lambda i: f"name {i * 7919},{i % 7}\n"),
    "wide": lambda: ",".join(f"g{i}" for i in range(3_000)) + "\n" + rows(
        300, lambda i: ",".join(str((i * j) % 997) for j in range(3_000)) + "\n"
    ),
    "cells over lines": lambda: "a,b\n" + rows(200_000, lambda i: f'"{i % 9}\n",{i % 7}\n'),
    "other scripts": lambda: "a,b\n" + rows(60_000, lambda i: f"\N{GRINNING FACE}{'x' * 30}{i},{i % 7}\n"),
}  # fmt: skip


@pytest.mark.parametrize("what", FILES)
def test_memory_is_near_the_size_of_the_file(tmp_path, what):
    path = tmp_path / "d.csv"
    path.write_text(FILES[what]())
    size = path.stat().st_size
    assert size > 400_000
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    *said, peak = done.stdout.splitlines()
    wrong = "line 9: a value of over 262,144 characters; is a quote"
    assert wrong in said[0] if what == "a cell that is too long" else not said
    print(what, f"{size / 1e6:.1f} MB, {int(peak) / size:.2f} times")
    assert int(peak) <= TIMES * size + SLACK


def test_text_in_an_array_of_one_width(tmp_path):
    """An .npz is as large as it is, unpacked; its words are codes."""
    np.savez(tmp_path / "d.npz", a=np.arange(100_000), t=np.array(["x" * 50, "y"])[np.arange(100_000) % 2])
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "d.npz")], capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= TIMES * (tmp_path / "d.npz").stat().st_size + SLACK
