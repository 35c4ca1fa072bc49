"""Contexts as files: an import that fails in the middle leaves nothing, or says what it leaves."""

from __future__ import annotations

import os

import numpy as np
import pytest

from edge_attention.client.context_files import ContextWriter
from edge_attention.client.contexts import AsyncContext
from edge_attention.client.sync import Client
from edge_attention.core.errors import PermissionDenied, Unavailable
from edge_attention.core.messages.attention import ContextPiece, ContextSpec


@pytest.fixture
def file(tmp_path):
    tokens = np.ones((3, 2, 4), np.float32)
    writer = ContextWriter(tmp_path / "c.safetensors")
    writer.add(ContextPiece(ContextSpec("c", 4, 2, 4, 4, 1), 3, np.arange(3), tokens, tokens))
    assert writer.finish() == 3
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]
    return tmp_path / "c.safetensors"


@pytest.mark.parametrize("may", [True, False])
def test_an_import_that_ends_in_the_middle(address, fake, file, monkeypatch, may):
    async def append(self, *args, **options):
        raise Unavailable("no node is ready")

    async def drop(self):
        raise PermissionDenied("it takes an operator")

    monkeypatch.setattr(AsyncContext, "append", append)
    if not may:
        monkeypatch.setattr(AsyncContext, "drop", drop)
    with Client(address) as client, pytest.raises(Unavailable, match="no node is ready") as raised:
        client.import_context(file)
    said = "; context 'c' is there with a part of the tokens, and could not be dropped: it takes an operator"
    assert raised.value.message.endswith(said) is not may
    assert ("c" in fake.contexts) is not may


def test_an_export_outlives_the_power_by_its_name(tmp_path, monkeypatch):
    """What it has is synced before the file has its name, and the folder after that."""
    synced, fsync = [], os.fsync

    def noted(descriptor):
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), (tmp_path / "c.safetensors").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    tokens = np.ones((3, 2, 4), np.float32)
    writer = ContextWriter(tmp_path / "c.safetensors")
    writer.add(ContextPiece(ContextSpec("c", 4, 2, 4, 4, 1), 3, np.arange(3), tokens, tokens))
    writer.finish()
    (content, named), (folder, there) = synced
    assert (content.startswith(f"{tmp_path}/.c.safetensors."), named) == (True, False)
    assert (folder, there) == (str(tmp_path), True)
