"""The Python blocks of docs/client.md run in order, and its job file is one."""

import asyncio
import re
from pathlib import Path

import numpy as np

from edge_attention import FederatedJob, read_job
from edge_attention.jobs.parameters import write_safetensors

PAGE = (Path(__file__).parents[2] / "docs" / "client.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_blocks_run(address, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("encoder", "head", "digits", "rows"):
        Path(f"{name}.onnx").write_bytes(name.encode())
    names: dict = {}
    *first, last = blocks("python")
    for block in first:
        # The fake's run is called "job".
        text = block.replace("127.0.0.1:50051", address).replace('run("patients")', 'run("job")')
        exec(compile(text, "docs/client.md", "exec"), names)
        if "answer" in names:
            np.testing.assert_allclose(sum(names["answer"].mass.values()), 1, atol=1e-4)
    assert asyncio.run(names["main"]()).exact
    exec(last, names)
    assert "there is no context 'nowhere'" in capsys.readouterr().out
    assert Path("patients.safetensors").exists()


def test_the_job_file_is_one(tmp_path):
    for name in ("encoder", "head"):
        (tmp_path / f"{name}.onnx").write_bytes(name.encode())
    block, _ = blocks("toml")
    (tmp_path / "job.toml").write_text(block)
    job, files = read_job(tmp_path / "job.toml").prepare()
    assert (job.name, job.rounds, len(job.encoders), len(files)) == ("patients", 100, 2, 2)


def test_the_federated_job_file_is_one(tmp_path):
    (tmp_path / "digits.onnx").write_bytes(b"digits")
    (tmp_path / "start.safetensors").write_bytes(write_safetensors({"w": np.ones(3, np.float32)}))
    np.savez(tmp_path / "probe.npz", x=np.zeros((4, 64), np.float32))
    _, block = blocks("toml")
    (tmp_path / "job.toml").write_text(block)
    job = read_job(tmp_path / "job.toml")
    assert isinstance(job, FederatedJob)
    assert job.prepare()[0].rounds == 50
    # What the file shows as a comment is a key there is, too.
    shown = re.sub(r"^# (?=[a-z_]+ = |\[)", "", block, flags=re.MULTILINE)
    assert shown != block
    (tmp_path / "job.toml").write_text(shown)
    job, files = read_job(tmp_path / "job.toml").prepare()
    assert (job.consensus.attention, len(files)) == ("attention", 2)
