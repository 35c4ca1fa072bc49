"""Whenever the power goes: what was acknowledged is there, or known to be missing; other bytes never are."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from power import PowerDisk, PowerLoss

from edge_attention.core.errors import NotFound
from edge_node.store.sequence_files import Files
from edge_node.store.store import Origin, Store
from edge_node.store.tiles import read

LIMIT = 1 << 14
NAMES = ("context/a/keys", "context/a/values", "context/b/keys")
KEPT = ("job/r/kept/0", "job/r/kept/1")


class Life:
    """A store on a disk, and what may be found of it.

    `sure`: tokens of a name that were acknowledged and that nothing has been asked to replace; `may_be_gone`:
    it was asked to drop them. `written`: by name and position, all tokens ever written there. `kept`: by
    name, all arrays of it that may be found: of a disk that `lies` any that ever was, of another one the last
    one that was acknowledged and those since.
    """

    def __init__(self, folder, disk, lies):
        self.store, self.lies = Store(LIMIT, Files(folder, disk)), lies
        self.sure: dict[str, np.ndarray] = {}
        self.may_be_gone: set[str] = set()
        self.written = defaultdict(set)
        self.private: set[str] = set()
        self.kept = defaultdict(list)
        self.kept_sure: set[str] = set()

    def append(self, name, back, count, seed, repeat, private):
        held = self.store.sequences().get(name, 0)
        at = max(held - back, 0)
        if held and self.store.get(name).origin is None:
            private = False  # it would be refused
        source = np.random.default_rng(seed).standard_normal((count, 2, 2)).astype(np.float32)
        if repeat and held:
            source = read(self.store._sequences[name].tiles, at, held)
        elif name in self.sure:
            self.sure[name] = self.sure[name][:at]
        for token, position in zip(source, itertools.count(at)):
            self.written[name, position].add(token.tobytes())
        if private:
            self.private.add(name)
        self.store.append(name, source, at, 4, Origin("d", "o") if private else None)

    def drop(self, name):
        self.may_be_gone.add(name)
        self.store.drop(name)

    def keep(self, name, seed):
        array = np.random.default_rng(seed).standard_normal(5)
        self.kept[name].append(array)
        self.store.put(name, array)

    def commit(self):
        self.store.commit([*NAMES, *KEPT])
        for name in NAMES:
            self.sure.pop(name, None)
            if tokens := self.store.sequences().get(name):
                self.sure[name] = read(self.store._sequences[name].tiles, 0, tokens)
        self.may_be_gone.clear()
        for arrays in self.kept.values() if not self.lies else ():
            del arrays[:-1]
        self.kept_sure = set(self.kept)

    def check(self, folder, sure=True):
        store = Store(LIMIT, Files(folder))
        held = store.sequences()
        for name in NAMES:
            tokens = np.empty((0, 2, 2))
            if name in held:
                tokens = read(store._sequences[name].tiles, 0, held[name])
            for position, token in enumerate(tokens):
                assert token.tobytes() in self.written[name, position], f"{name} {position}: other bytes"
            if sure and name in self.sure and name not in self.may_be_gone:
                wanted = self.sure[name]
                assert len(tokens) >= len(wanted), f"{name}: {len(tokens)} of {len(wanted)}"
                np.testing.assert_array_equal(tokens[: len(wanted)], wanted)
            if name in held:
                tiles = store.get(name)
                rest = tiles.array[-1, :, held[name] % 4 or 4 :]
                assert not rest.any(), "behind the last token"
        for name, arrays in self.kept.items():
            try:
                found = store.get(name).array
            except NotFound:
                assert not sure or name not in self.kept_sure, f"{name} is not there"
                continue
            assert any(np.array_equal(found, array) for array in arrays), f"{name}: other bytes"
        store._files._lock.close()


change = st.one_of(
    st.tuples(
        st.just("append"),
        st.sampled_from(NAMES),
        st.integers(0, 9),
        st.integers(1, 9),
        st.integers(0, 10**6),
        st.booleans(),
        st.booleans(),
    ),
    st.tuples(st.just("drop"), st.sampled_from(NAMES)),
    st.tuples(st.just("keep"), st.sampled_from(KEPT), st.integers(0, 10**6)),
    st.just(("commit",)),
    st.just(("commit",)),
)


def live(changes, operations, seed, lies):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge_node.store.journal.COMPACT", 10 ** (2 + seed % 4))
        here, there = Path(folder) / "store", Path(folder) / "found"
        here.mkdir()
        there.mkdir()
        random = np.random.default_rng(seed)
        disk = PowerDisk(here, operations, random if lies else None)
        life = None
        try:
            with contextlib.suppress(PowerLoss):
                life = Life(here, disk, lies)
                for method, *rest in changes:
                    getattr(life, method)(*rest)
            if life is None:
                return
            for number in range(3):
                image = there / str(number)
                image.mkdir()
                life.check(disk.found(image, random), sure=not lies)
        finally:
            if life is not None:
                life.store._files._lock.close()
            disk.close()


@settings(max_examples=120, deadline=None)
@given(st.lists(change, max_size=14), st.integers(0, 90), st.integers(0, 2**32 - 1))
def test_what_was_acknowledged_is_there_whenever_the_power_goes(changes, operations, seed):
    live(changes, operations, seed, lies=False)


@settings(max_examples=80, deadline=None)
@given(st.lists(change, max_size=14), st.integers(0, 90), st.integers(0, 2**32 - 1))
def test_a_disk_that_lies_is_found_out(changes, operations, seed):
    live(changes, operations, seed, lies=True)
