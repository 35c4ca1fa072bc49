"""What the steps share: the engine, the fleet, the box that joins it, and the commands of docs/deploy.md."""

from __future__ import annotations

import json
import re
import time
import tomllib
from typing import Any

from tests.compose import document
from tests.compose.console import run, say
from tests.compose.engine import Engine
from tests.compose.fleet import AGGREGATOR, ROOT, Project, Prometheus, client, last_object, make_variables


class World:
    """What the steps share."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.variables = make_variables(engine.folder)
        self.fleet = Project(engine, "edge-attention", ROOT, self.variables)
        self.box_folder = engine.folder / "loft"
        self.box_folder.mkdir()
        self.box = Project(engine, "loft", self.box_folder, {"COMPOSE_PROFILES": ""})
        self.version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        self.prometheus = Prometheus(self.variables["PROMETHEUS_PORT"])
        self.data = engine.folder / "labs"
        self.trust = engine.folder / "trust"
        self.token = engine.folder / "user-token"
        self.names: list[str] = []
        self.said = document.Substitution(
            self.fleet.compose,
            self.box_folder,
            skipped={
                "apt-get install": "what it installs is here: the engine runs",
                "git clone": "the test runs in a checkout",
                "NODES=3/ .env": "the checkout's file stays as it is: the variable is set",
                "exec grafana": "Grafana cannot be had here; its dashboards' queries are run instead",
            },
        )

    def image(self, name: str) -> str:
        return f"{name}:{self.version}"

    def nodes(self) -> dict[str, str]:
        """The fleet's nodes and their states, as the operator's command line says."""
        printed = self.fleet.execute("aggregator", "edge-attention", "nodes", "--json")
        return {node["name"]: node["state"] for node in json.loads(printed)}

    def client(self, *words: str, program: str = "client.py") -> dict[str, Any]:
        """What client.py, or another program, found, run as a user with a token."""
        image = self.image(AGGREGATOR)
        return last_object(client(self.fleet, image, self.token, self.data, *words, program=program))

    def run_document(self, block: str) -> str:
        """Runs a block of docs/deploy.md; what its last command printed."""
        printed = ""
        for command in document.commands(block):
            why = self.said.reason(command)
            if why:
                say(f"  $ {command}\n{'':11}not run: {why}")
                continue
            say(f"  $ {command}")
            real = self.said.apply(command)
            began = time.monotonic()
            printed = run(
                ["bash", "-euo", "pipefail", "-c", real], deadline=600, env=self.fleet.env, cwd=ROOT
            )
            say(f"    took {time.monotonic() - began:.1f} s")
            token = re.search(r"\beaj_\w+", printed)
            if token:
                self.said.token = token[0]
        return printed

    def ready(self) -> list[str]:
        return sorted(name for name, state in self.nodes().items() if state == "ready")

    def number_of(self, container: str) -> int:
        """A replica's number, as Compose counts."""
        labels = self.fleet.inspect(container)["Config"]["Labels"]
        return int(labels["com.docker.compose.container-number"])

    def name_of(self, container: str) -> str:
        """What the aggregator calls the node in a container: the name in its certificate."""
        said = self.engine.docker("logs", container)
        return str(re.findall(r"registered with \S+ as (\S+)", said)[-1])
