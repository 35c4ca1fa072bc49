"""The commands of docs/serving.md that go to the HTTP port, as written, against a real port."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path

import pocket_models
import pytest
from ports import run

from aggregator.bounds.budget import Budgets
from aggregator.inference.generation.generator import Generator
from aggregator.inference.generation.metrics import GenerationMetrics
from aggregator.inference.generation.texts import DeploymentTexts
from aggregator.inference.protocol.data_plane import DataPlane
from aggregator.observe.metrics import Metrics
from tests.aggregator.inference.generation.local_sessions import LocalSessions, random_decoder

PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
PORT = "127.0.0.1:9464"


@pytest.fixture
def with_port(tmp_path):
    """Runs `work(address)` in a thread, in front of the models that the page names."""
    (tmp_path / "tokenizer.json").write_text(json.dumps({"edge_attention": "bytes"}))
    budgets = Budgets()
    texts = DeploymentTexts(lambda name: ("small-1", tmp_path))
    sessions = LocalSessions({"small": random_decoder()})
    generator = Generator(sessions, texts, budgets, GenerationMetrics(Metrics()))
    plane = DataPlane([pocket_models.PocketModels(pocket_models.simple())], budgets)

    def go(work):
        async def scenario(port):
            await asyncio.to_thread(work, port.base.partition("//")[2])

        run(scenario, offers=(plane, generator), budgets=budgets)

    return go


def test_curl(with_port):
    if shutil.which("curl") is None:
        pytest.skip("curl is not here: apt-get install curl")
    commands = [one for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
                for one in re.split(r"^(?=curl)", block, flags=re.MULTILINE) if PORT in one]  # fmt: skip
    assert len(commands) >= 8

    def work(address):
        said = {}
        for command in commands:
            asked = command.replace(PORT, address).replace("curl ", "curl --fail-with-body --max-time 60 ", 1)
            done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True)
            assert done.returncode == 0, (command, done.stdout)
            said[re.search(r"\d(/v\S+)", command)[1]] = done.stdout
        sums = json.loads(said["/v2/models/simple/infer"])["outputs"][0]["data"]
        assert sums == list(range(1, 17))
        assert json.loads(said["/v2/repository/index"])[0]["name"] == "simple"
        assert json.loads(said["/v1/models"])["data"][0]["id"] == "small"
        assert json.loads(said["/v1/completions"])["usage"]["completion_tokens"] <= 12
        assert said["/v1/chat/completions"].endswith("data: [DONE]\n\n")

    with_port(work)


def test_the_openai_package(with_port, capsys):
    pytest.importorskip("openai")
    block = re.search(r"<!-- test: openai -->\n```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[1]
    with_port(lambda address: exec(compile(block.replace(PORT, address), "docs/serving.md", "exec"), {}))
    assert len(capsys.readouterr().out) > 3
