"""The fleet under test: Compose projects on the test's engine, and what can be asked of their containers."""

from __future__ import annotations

import json
import os
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.compose.console import Failed, run, tail, wait_for
from tests.compose.engine import Engine, compose_command

ROOT = Path(__file__).resolve().parents[2]
AGGREGATOR, NODE = "edge-attention/aggregator", "edge-attention/edge-node"
HARDENED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges:true")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        return int(listener.getsockname()[1])


def own_address(project: Project) -> str:
    """An address of this machine that containers of any project reach: its end of the nodes' bridge."""
    form = "{{(index .IPAM.Config 0).Gateway}}"
    return project.engine.docker("network", "inspect", "--format", form, f"{project.name}_fleet").strip()


class Project:
    """One Compose project: a folder, its files, its variables."""

    def __init__(self, engine: Engine, name: str, folder: Path, variables: Mapping[str, str]) -> None:
        command = compose_command()
        assert command is not None
        self.engine, self.name, self.folder, self.compose = engine, name, folder, command
        self.env = {**engine.env, "COMPOSE_PROJECT_NAME": name, "COMPOSE_ANSI": "never", **variables}

    def __call__(self, *words: str, deadline: float = 180, check: bool = True) -> str:
        return run([*self.compose, *words], deadline=deadline, env=self.env, cwd=self.folder, check=check)

    def containers(self, service: str, *, stopped: bool = False) -> list[str]:
        """Ids of the service's containers, in the replicas' order."""
        chosen = [f"--filter=label=com.docker.compose.{key}={value}" for key, value in self._labels(service)]
        every = ["--all"] if stopped else []
        form = '{{.Label "com.docker.compose.container-number"}} {{.ID}}'
        lines = self.engine.docker("ps", *every, "--no-trunc", "--format", form, *chosen).splitlines()
        return [line.split()[1] for line in sorted(lines, key=lambda line: int(line.split()[0]))]

    def _labels(self, service: str) -> tuple[tuple[str, str], ...]:
        return ("project", self.name), ("service", service), ("oneoff", "False")

    def inspect(self, container: str) -> dict[str, Any]:
        return dict(json.loads(self.engine.docker("inspect", container))[0])

    def execute(self, service: str, *words: str, deadline: float = 60) -> str:
        return self.engine.docker("exec", self.containers(service)[0], *words, deadline=deadline)

    def health(self, service: str) -> list[str]:
        found = []
        for container in self.containers(service, stopped=True):
            state = self.inspect(container)["State"]
            health = state.get("Health", {}).get("Status")
            found.append(health if health and state["Status"] == "running" else state["Status"])
        return found

    def logs(self, lines: int = 60) -> str:
        return tail(self("logs", "--no-color", f"--tail={lines}", check=False), 400)


def healthy(project: Project, *services: str) -> None:
    def found() -> bool:
        states = {service: project.health(service) for service in services}
        if not all(held and set(held) == {"healthy"} for held in states.values()):
            raise Failed(f"they are {states}")
        return True

    wait_for("every container to be healthy", found, 600)


def make_variables(folder: Path) -> dict[str, str]:
    """What differs from a machine of the operator's: ports that are free, builds on the host's network."""
    override = folder / "host-network.yml"
    build = "    build:\n      network: host\n"
    override.write_text(f"services:\n  aggregator:\n{build}  edge-node:\n{build}")
    return {
        "COMPOSE_FILE": os.pathsep.join(["docker-compose.yml", str(override)]),
        "COMPOSE_PROFILES": "prometheus",
        "AGGREGATOR_PORT": str(free_port()),
        "HTTP_PORT": str(free_port()),
        "PROMETHEUS_PORT": str(free_port()),
        "GRAFANA_PORT": str(free_port()),
        "LEASE_SECONDS": "5",
        "NODES": "3",
    }


def client(
    project: Project,
    image: str,
    token_file: Path,
    folder: Path,
    *words: str,
    program: str = "client.py",
    deadline: float = 300,
) -> str:
    """Runs a program beside this file in a container of its own: hardened, on the nodes' network."""
    file = Path(__file__).with_name(program)
    return project.engine.docker(
        "run",
        "--rm",
        *HARDENED,
        "--tmpfs=/tmp",
        f"--network={project.name}_fleet",
        f"--volume={file}:/{program}:ro",
        f"--volume={folder}:/work:ro",
        f"--volume={token_file}:/run/token:ro",
        "--env=EDGE_ATTENTION_AGGREGATOR=aggregator:50051",
        "--env=EDGE_ATTENTION_TOKEN_FILE=/run/token",
        "--entrypoint=python3",
        image,
        f"/{program}",
        *words,
        deadline=deadline,
    )


def last_object(printed: str) -> dict[str, Any]:
    """The JSON object on the last line."""
    return dict(json.loads(printed.rstrip().splitlines()[-1]))


class Prometheus:
    """Questions to the Prometheus of the fleet."""

    def __init__(self, port: str) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"{self.url}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=60) as response:
            return json.load(response)["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        found = self._get("/api/v1/query", query=expression)["result"]
        return [(dict(series["metric"]), float(series["value"][1])) for series in found]

    def targets(self) -> dict[tuple[str, str], str]:
        """(job, instance) -> health."""
        found = self._get("/api/v1/targets", state="active")["activeTargets"]
        return {(t["labels"]["job"], t["labels"]["instance"]): t["health"] for t in found}

    def errors(self) -> str:
        found = self._get("/api/v1/targets", state="active")["activeTargets"]
        return "; ".join(f"{t['scrapeUrl']}: {t['lastError']}" for t in found if t["lastError"])

    def alerts(self) -> dict[tuple[str, str], str]:
        """(alert, node) -> state."""
        found = self._get("/api/v1/alerts")["alerts"]
        return {(a["labels"]["alertname"], a["labels"].get("node", "")): a["state"] for a in found}

    def rules(self) -> list[str]:
        groups = self._get("/api/v1/rules")["groups"]
        return [rule["name"] for group in groups for rule in group["rules"]]


def get_page(url: str, authority: Path, token: str | None = None) -> tuple[int, str]:
    """Status and text of an HTTPS page of the aggregator, whose certificate `authority` must have signed."""
    context = ssl.create_default_context(cafile=str(authority))
    request = urllib.request.Request(url)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def copy_into(engine: Engine, source: Path, container: str, target: str) -> None:
    engine.docker("cp", f"{source}/.", f"{container}:{target}")


def need(what: str, holds: object, seen: object = "") -> None:
    if not holds:
        raise Failed(f"{what}{f'; seen: {seen}' if seen != '' else ''}")
