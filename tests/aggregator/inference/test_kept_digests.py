"""Digests of weights outlive the aggregator, as long as the model's files are the same."""

from __future__ import annotations

import json
import os

import pytest
from small_cut import SmallCut

from aggregator.inference import part_pieces
from aggregator.inference.course import Course
from aggregator.inference.kept_digests import FILE, read_digests, write_digests
from aggregator.inference.part_pieces import pieces_of
from aggregator.store.deployments import DeploymentFolder


@pytest.fixture
def folder(tmp_path):
    made = DeploymentFolder(tmp_path / "m-1")
    made.model.parent.mkdir(parents=True)
    made.model.write_bytes(b"onnx")
    (made.model.parent / "weights.bin").write_bytes(b"weights")
    return made


def test_nothing_is_hashed_twice(tmp_path, folder, monkeypatch):
    cut, hashed = SmallCut(tmp_path / "cut", rows=8), []
    digest_of = part_pieces.digest_of
    monkeypatch.setattr(part_pieces, "digest_of", lambda data: hashed.append(data) or digest_of(data))
    course, known = Course(cut.schedule), {}
    pieces = [pieces_of("m", "s", course, part, cut, known) for part in range(2)]
    assert len(hashed) == len(known) > 0, "constants are known by their digests"
    # A digest that is said is the bytes'.
    assert all(digest_of(piece.open()) == piece.digest for part in pieces for piece in part)
    write_digests(folder, known)
    hashed.clear()
    again = read_digests(folder)
    assert again == known
    for part in range(2):
        found = pieces_of("m", "s", course, part, cut, again)
        assert [(p.name, p.digest, p.shape) for p in found] == [
            (p.name, p.digest, p.shape) for p in pieces[part]
        ]
    assert hashed == []


@pytest.mark.parametrize("what", ["touched", "longer", "another", "damaged", "no digest", "gone"])
def test_digests_of_files_that_have_changed_are_none(tmp_path, folder, what):
    cut, known = SmallCut(tmp_path / "cut"), {}
    pieces_of("m", "s", Course(cut.schedule), 0, cut, known)
    write_digests(folder, known)
    assert read_digests(folder) == known
    weights, kept = folder.model.parent / "weights.bin", folder.path / FILE
    if what == "touched":
        os.utime(weights, ns=(1, 1))
    elif what == "longer":
        stat = weights.stat()
        weights.write_bytes(b"weights, more")
        os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif what == "another":
        (folder.model.parent / "more.bin").write_bytes(b"")
    elif what == "damaged":
        kept.write_bytes(kept.read_bytes()[:-9])
    elif what == "no digest":
        data = json.loads(kept.read_bytes())
        data["weights"][0][2] = "../x"
        kept.write_text(json.dumps(data))
    else:
        kept.unlink()
    assert read_digests(folder) == {}
