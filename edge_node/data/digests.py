"""What tells outside this node whether a dataset is still the one that it was, and nothing else of it.

A keyed digest of all of it. The key is this node's alone: with one that the aggregator knew, it could try
guesses of a small dataset. It has to be the same after a restart, so a node that keeps nothing has none.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

import numpy as np

from edge_attention.core.data_digests import named_digest
from edge_attention.tables.table import Table

__all__ = ["data_digest", "digest_key"]

_ROWS = 1 << 16
"""Rows that are looked at at a time."""
_LENGTH = 32


def digest_key(store: Path | None, secret: bytes) -> bytes:
    """The key: of `secret` (--id-key), else kept in `store`; b"" without either.

    Raises OSError as the disk does.
    """
    if secret:
        return hmac.digest(secret, b"data", "sha256")
    if store is None:
        return b""
    file = store / "data-key"
    try:
        kept = file.read_bytes()
    except FileNotFoundError:
        kept = b""
    if len(kept) == _LENGTH:
        return kept
    made = secrets.token_bytes(_LENGTH)
    store.mkdir(parents=True, exist_ok=True)
    beside = file.with_name("data-key.part")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(made)
        out.flush()
        os.fsync(out.fileno())
    beside.replace(file)
    return made


def data_digest(table: Table, key: bytes) -> str:
    """As `named_digest`, by HMAC-SHA-256: of the table's ids, and of each column's name, type and values."""
    found = hmac.new(key, digestmod=hashlib.sha256)

    def add(what: bytes) -> None:
        found.update(len(what).to_bytes(8, "little"))
        found.update(what)

    if table.ids is not None:
        for identity in table.ids:
            add(identity)
    for name, column in table.columns.items():
        add(name.encode())
        add(f"{column.values.dtype.str} {column.values.shape}".encode())
        for word in column.words or ():
            add(word.encode())
        for array in (column.values, *(() if column.missing is None else (column.missing,))):
            for start in range(0, len(array), _ROWS):
                found.update(np.ascontiguousarray(array[start : start + _ROWS]).tobytes())
    return named_digest(hmac.digest(key, b"name", "sha256"), found.digest())
