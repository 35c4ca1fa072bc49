"""A disk that is full when the test says so: at the seam where the aggregator writes files, and in SQLite."""

from __future__ import annotations

import errno
import os
import types

import aggregator.engine.spool
import aggregator.store.folder
import aggregator.store.tensor_file

WRITES = ("write", "pwrite", "fsync", "replace")


class FullDisk:
    """While `full`, whatever the state writes fails. `fill_at`: fails from that write on, `times` times."""

    def __init__(self, house, patch):
        self.house, self.full, self.writes = house, False, 0
        self.fill_at, self.times = None, 0
        seam = types.SimpleNamespace(**{name: getattr(os, name) for name in dir(os) if name[0] != "_"})
        for name in WRITES:
            setattr(seam, name, self._failing(getattr(os, name)))
        for module in (aggregator.store.folder, aggregator.engine.spool, aggregator.store.tensor_file):
            patch.setattr(module, "os", seam)

    def _failing(self, real):
        def call(*args, **options):
            self.writes += 1
            if self.fill_at is not None and self.writes >= self.fill_at and self.times:
                self.times -= 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **options)

        return call

    def fill(self):
        """Nothing more fits, into files or into the database."""
        self.full = True
        (count,) = self.house.state._database.execute("PRAGMA page_count").fetchone()
        self._pages(count)

    def free(self):
        self.full = False
        self._pages(2**30)

    def _pages(self, most):
        self.house.state._database.execute(f"PRAGMA max_page_count={most}")
