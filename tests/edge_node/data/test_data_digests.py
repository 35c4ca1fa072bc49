"""The digest of a dataset: another one where anything is another, and of a key that the node alone has."""

from __future__ import annotations

import stat

import numpy as np
import pytest

from edge_node.data.datasets import read
from edge_node.data.digests import digest_key

CSV = "id,weight,kind\n1,2.5,cat\n2,3.5,dog\n3,,cat\n"


def digest(folder, text, key=b"k" * 32, name="rows.csv"):
    (folder / name).write_text(text)
    dataset = read(f"rows={folder / name}")
    assert dataset.describe().digest == "", "it says nothing unless it is told to"
    dataset.tell_changes(key)
    return dataset.describe().digest


def test_it_is_the_same_after_a_restart_and_another_one_for_any_change(tmp_path):
    whole = digest(tmp_path, CSV)
    assert len(whole) == 64
    assert digest(tmp_path, CSV) == whole == digest(tmp_path, CSV, name="again.csv")
    for change in (
        ("2.5", "2.25"),
        ("dog", "cow"),
        ("3,,cat", "3,0,cat"),
        ("3,,cat", "4,,cat"),
        ("weight", "heft"),
        ("1,2.5,cat\n2,3.5,dog", "2,3.5,dog\n1,2.5,cat"),
    ):
        assert digest(tmp_path, CSV.replace(*change)) != whole, change
    assert digest(tmp_path, CSV, key=b"l" * 32) != whole


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_of_an_npz_file_each_value_counts(tmp_path, dtype):
    values = np.arange(200_000).reshape(-1, 2).astype(dtype)
    found = []
    for change in (0, 1):
        values[-1, 1] += change
        np.savez(tmp_path / "rows.npz", id=np.arange(100_000), x=values)
        dataset = read(f"rows={tmp_path / 'rows.npz'}")
        dataset.tell_changes(b"k" * 32)
        found.append(dataset.describe().digest)
    assert found[0] != found[1]


def test_the_key_is_kept_where_the_node_keeps_things_and_nobody_else_reads_it(tmp_path):
    assert digest_key(None, b"") == b"", "a node that keeps nothing has none"
    kept = digest_key(tmp_path / "store", b"")
    assert len(kept) == 32
    assert digest_key(tmp_path / "store", b"") == kept
    assert stat.S_IMODE((tmp_path / "store" / "data-key").stat().st_mode) == 0o600
    assert digest_key(tmp_path / "other", b"") != kept
    shared = digest_key(tmp_path / "store", b"s" * 16)
    assert shared == digest_key(None, b"s" * 16) != kept
