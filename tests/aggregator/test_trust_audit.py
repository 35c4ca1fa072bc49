"""The audit log: whole lines, bounded for each subject, set aside when it is large."""

from __future__ import annotations

import json
import resource
import threading
from collections import Counter
from datetime import datetime

from aggregator.trust import audit as audits
from aggregator.trust import rate as rates
from aggregator.trust.audit import Audit


def test_lines_are_whole_whoever_writes(tmp_path):
    file = tmp_path / "audit.jsonl"

    def write(number):
        audit = Audit(file)  # as the command line beside the daemon
        for at in range(50):
            audit.write("enrolled", subject=f"node/{number}", reason="ä\n" * 100, at=at)
        audit.close()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 200
    assert set(lines[0]) == {"time", "event", "outcome", "subject", "peer", "reason", "at"}
    assert datetime.fromisoformat(lines[0]["time"]).tzinfo is not None


def test_a_stranger_cannot_fill_the_disk(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(rates.time, "monotonic", lambda: clock[0])
    audit = Audit(tmp_path / "audit.jsonl")
    for _ in range(10_000):
        audit.write("refused", outcome="refused", reason="x")
    audit.write("enrolled", subject="node/a")
    clock[0] += 10
    audit.write("refused", outcome="refused", reason="later")
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert len(lines) == audits.BURST + 2
    assert lines[-2]["event"] == "enrolled"
    assert lines[-1]["suppressed_before"] == 10_000 - audits.BURST


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_node_cannot_drive_out_what_was_written_of_others(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(rates.time, "monotonic", lambda: clock[0])
    audit = Audit(tmp_path / "audit.jsonl")
    audit.write("revoked", subject="node/b")
    releases = ["R" * 1_000_000] * 3 + ["s"] * 97
    for _ in range(1000):
        audit.write("registered", subject="node/a", releases=releases, note="n" * 10_000)
    audit.write("registered", subject="node/b", releases=["attention"])
    audit.write("refused", outcome="refused", reason="a stranger")
    for _ in range(300):
        audit.write("renewed", subject="node/a")
    lines = read(tmp_path / "audit.jsonl")
    assert lines[0]["event"] == "revoked"
    assert Counter((line["event"], line["subject"]) for line in lines) == {
        ("revoked", "node/b"): 1,
        ("registered", "node/a"): audits.BURST,
        ("registered", "node/b"): 1,
        ("refused", ""): 1,
        ("renewed", "node/a"): 300,
    }
    cut = lines[1]
    assert cut["releases"] == ["R" * 100] * 3 + ["s"] * 47
    assert cut["releases_count"] == 100
    assert cut["note"] == "n" * 1000
    assert "releases_count" not in lines[int(audits.BURST) + 1]
    clock[0] += 1
    audit.write("registered", subject="node/a")
    assert read(tmp_path / "audit.jsonl")[-1]["suppressed_before"] == 1000 - audits.BURST


def test_large_files_are_set_aside_by_whoever_writes_and_no_line_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(audits, "LARGE", 1000)
    monkeypatch.setattr(audits, "KEPT", 100)
    file = tmp_path / "audit.jsonl"
    daemon, command = Audit(file), Audit(file)
    for number in range(40):
        (daemon if number % 3 else command).write("enrolled", at=number)
    files = [file, *(tmp_path / f"audit.jsonl.{n}" for n in range(1, 20))]
    kept = [path for path in files if path.exists()]
    assert len(kept) > 4
    assert [line["at"] for path in reversed(kept) for line in read(path)] == list(range(40))
    assert all(path.stat().st_size < 1200 for path in kept)
    file.unlink()  # as an operator may
    daemon.write("enrolled", at=40)
    assert [line["at"] for line in read(file)] == [40]


def test_the_last_few_large_files_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(audits, "LARGE", 1)
    audit = Audit(tmp_path / "audit.jsonl")
    for number in range(10):
        audit.write("enrolled", at=number)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == [f"audit.jsonl.{n}" for n in range(1, audits.KEPT + 1)]
    assert [read(tmp_path / name)[0]["at"] for name in kept] == [9, 8, 7, 6]


def test_a_disk_that_cannot_be_written_stops_nobody(tmp_path, caplog):
    Audit(tmp_path / "nowhere" / "audit.jsonl").write("enrolled")
    assert "cannot be written" in caplog.text
    Audit(None).write("enrolled")


def test_a_disk_that_fills_up_in_the_middle_of_a_line_keeps_none_of_it(tmp_path, caplog):
    audit = Audit(tmp_path / "audit.jsonl")
    audit.write("enrolled", subject="node/a")
    size = (tmp_path / "audit.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
    try:
        audit.write("enrolled", subject="node/b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written" in caplog.text
    audit.write("enrolled", subject="node/c")
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line["subject"] for line in lines] == ["node/a", "node/c"]
