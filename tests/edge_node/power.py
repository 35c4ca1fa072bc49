"""A disk whose power goes: it knows what is on it for sure, and makes what a machine might find afterwards.

What was written and not synced is there in any part, down to 16 bytes; of names that were made, changed or
removed and not synced the first so many are. The files are real ones, so mappings and allocation are too.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from edge_node.store.disk import Disk

BLOCK = 16


class PowerLoss(BaseException):
    """The power went, before the operation that was about to be."""


class PowerDisk(Disk):
    """`operations`: after so many the power goes. `lies`: says it has synced and has not, at times."""

    def __init__(self, folder, operations=10**9, lies=None):
        self.folder, self.left, self.lies = folder, operations, lies
        self.synced: dict[int, bytes] = {}
        self.open: dict[int, int] = {}
        self.names: dict[str, int] = {}  # as they are on the disk
        self.now: dict[str, int] = {}
        self.changes: list[dict[str, int]] = []  # names after each change since

    def step(self):
        if not self.left:
            raise PowerLoss
        self.left -= 1

    def make_folder(self, folder):
        folder.mkdir(parents=True, exist_ok=True)

    def inode(self, path):
        name = str(path.relative_to(self.folder))
        if name not in self.now:
            descriptor = os.open(path, os.O_RDWR)
            self.now[name] = descriptor
            self.open[descriptor] = descriptor
            self.changed()
        return self.now[name]

    def changed(self):
        self.changes.append(dict(self.now))

    def create(self, path, size):
        self.step()
        super().create(path, size)
        self.inode(path)

    def write(self, path, data, at=0):
        self.step()
        super().write(path, data, at)
        self.inode(path)

    def sync(self, path):
        self.step()
        if not path.exists():
            raise FileNotFoundError(path)
        if self.lies is None or self.lies.random() < 0.7:
            self.synced[self.inode(path)] = self.content(self.inode(path))

    def sync_folder(self, folder):
        self.step()
        if self.lies is None or self.lies.random() < 0.7:
            self.names, self.changes = dict(self.now), []

    def rename(self, old, new):
        self.step()
        super().rename(old, new)
        self.now[str(new.relative_to(self.folder))] = self.now.pop(str(old.relative_to(self.folder)))
        self.changed()

    def remove(self, path):
        self.step()
        super().remove(path)
        if self.now.pop(str(path.relative_to(self.folder)), None) is not None:
            self.changed()

    def content(self, descriptor):
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)

    def found(self, folder: Path, random: np.random.Generator) -> Path:
        """What is found after the power went, as a folder."""
        states = [self.names, *self.changes]
        for name, inode in states[random.integers(len(states))].items():
            kept, last = self.synced.get(inode, b""), self.content(inode)
            size = len([kept, last][random.integers(2)])
            pages = np.zeros((2, -(-max(len(kept), len(last)) // BLOCK) * BLOCK), np.uint8)
            for page, data in zip(pages, (kept, last), strict=True):
                page[: len(data)] = np.frombuffer(data, np.uint8)
            which = random.random(pages.shape[1] // BLOCK) < random.random()
            mixed = np.where(np.repeat(which, BLOCK), pages[0], pages[1])
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(mixed[:size].tobytes())
        return folder

    def close(self):
        for descriptor in self.open:
            os.close(descriptor)
