"""A state folder and a node's store that the last release wrote open with this one, and go on."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from tests.compat import state

WRITTEN = Path(__file__).with_name("state.tar.gz")


@pytest.mark.e2e
def test_what_the_last_release_wrote_opens_and_goes_on(tmp_path):
    with tarfile.open(WRITTEN) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "written"
    assert json.loads((folder / "written_by.json").read_text())["version"]
    state.read(folder)
