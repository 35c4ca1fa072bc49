"""What docs/federated.md says of options, files and commands is so; its TOML is read as jobs."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edge_attention.cli.train import train
from edge_attention.core import combine, strategies
from edge_attention.core.messages.training import StartRunRequest
from edge_attention.jobs.federated_job_file import federated_job
from edge_attention.jobs.job_file import read_job
from edge_attention.jobs.parameters import write_safetensors
from edge_attention.wire.services import START_RUN

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "federated.md").read_text(encoding="utf-8")
FIRST, *OTHERS = re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path):
    for name in ("model", "step", "encoder"):
        (tmp_path / f"{name}.onnx").write_bytes(name.encode())
    for name in ("start", "trained"):
        values = {"weight": np.ones(3, np.float32)}
        (tmp_path / f"{name}.safetensors").write_bytes(write_safetensors(values))
    np.savez(tmp_path / "probe.npz", features=np.zeros((4, 8), np.float32))
    return tmp_path


def merged(first, second):
    """`first` with the keys of `second`; a table that both have, key by key."""
    tables = {
        key: merged(first[key], value)
        for key, value in second.items()
        if isinstance(value, dict) and isinstance(first.get(key), dict)
    }
    return {**first, **second, **tables}


def test_the_first_job_is_one(folder):
    (folder / "job.toml").write_text(FIRST)
    job, files = read_job(folder / "job.toml").prepare()
    assert (job.name, job.strategy.name, job.model.inputs, len(files)) == (
        "first",
        "fedavg",
        {"labels": "label"},
        1,
    )


@pytest.mark.parametrize("fragment", OTHERS, ids=lambda text: text.splitlines()[0])
def test_every_fragment_fits_the_first_job(fragment, folder):
    content = merged(tomllib.loads(FIRST), tomllib.loads(fragment))
    # Compared as they travel: every fragment says something that is not the default.
    before, after = (
        START_RUN.request.encode(
            StartRunRequest(federated=federated_job(folder / "job.toml", said).prepare()[0])
        )
        for said in (tomllib.loads(FIRST), content)
    )
    assert after != before


def table(heading):
    """name -> options of the first table after `heading`."""
    section = PAGE.split(heading)[1]
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|", section.split("\n\n#")[0], re.MULTILINE)
    return {name: re.findall(r"`(\w+)` ([\d.]+)", options) for name, options in rows}


@pytest.mark.parametrize(
    ("heading", "kinds"), [("## Strategies\n", strategies), ("### How updates become one\n", combine)]
)
def test_the_tables_have_every_name_and_default(heading, kinds):
    found = table(heading)
    assert set(found) == set(kinds._BY_NAME)
    for name, options in found.items():
        known = kinds.to_config(kinds.from_config(name))["options"]
        if name != "gradient_averaging":  # it has those of its optimizer
            assert {option: float(value) for option, value in options} == known, name


def test_the_commands_it_names_are_there():
    named = set(re.findall(r"`?train (\w+)\b (?:RUN|first)", PAGE)) | set(re.findall(r"`train (\w+)`", PAGE))
    assert {"watch", "stop", "resume", "export", "list"} == named
    shown = CliRunner().invoke(train, ["--help"]).output
    for name in named:
        assert re.search(rf"^  {name}\b", shown, re.MULTILINE), name


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere():
    for file, anchor in re.findall(r"\]\(([\w.]*)(?:#([\w-]+))?\)", PAGE):
        target = DOCS / (file or "federated.md")
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), f"{file}#{anchor}"
