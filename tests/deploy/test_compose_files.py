"""The Compose files, read as YAML: services are confined, secrets stay inside, names agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FLEET = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
EDGE = yaml.safe_load((ROOT / "deploy" / "edge" / "docker-compose.yml").read_text())
SECRETS = yaml.safe_load((ROOT / "deploy" / "compose.secrets.yml").read_text())
SERVICES = [*FLEET["services"].items(), *((f"box/{name}", body) for name, body in EDGE["services"].items())]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize(("name", "service"), SERVICES, ids=[name for name, _ in SERVICES])
def test_every_service_is_confined(name, service):
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["mem_limit"]
    assert service["logging"]["options"]["max-size"]
    assert not service.get("privileged")
    assert set(service.get("cap_add", [])) <= {"CHOWN"}


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_what_has_no_tls_is_published_on_loopback_only(name):
    for port in FLEET["services"][name]["ports"]:
        assert port.startswith("127.0.0.1:")


def test_who_is_handed_trust_sees_what_is_theirs_and_cannot_write_it():
    for name, service in FLEET["services"].items():
        mounts = [volume for volume in service.get("volumes", []) if volume.startswith("trust")]
        if name == "aggregator":
            assert mounts == [
                "trust:/run/edge-attention",
                "trust-node:/run/edge-attention/node",
                "trust-viewer:/run/edge-attention/viewer",
            ]
        elif name.startswith("edge-node"):
            assert mounts == ["trust-node:/run/edge-attention:ro"]
        elif name == "prometheus":
            assert mounts == ["trust-viewer:/run/edge-attention:ro"]
        else:
            assert not mounts, name


def test_who_need_not_talk_share_no_network():
    """Prometheus and Grafana speak plain HTTP, and Prometheus asks nobody who they are."""
    joined = {
        name: set(service.get("networks", ["default"]))
        for name, service in FLEET["services"].items()
        if service.get("network_mode") != "none"
    }
    assert set().union(*joined.values()) == set(FLEET["networks"])
    reached = {name: {other for other in joined if joined[name] & joined[other]} - {name} for name in joined}
    nodes = {"edge-node", "edge-node-gpu"}
    assert reached == {
        "aggregator": {*nodes, "prometheus"},
        "edge-node": {"aggregator", "edge-node-gpu"},
        "edge-node-gpu": {"aggregator", "edge-node"},
        "prometheus": {"aggregator", "grafana"},
        "grafana": {"prometheus"},
    }
    # An override that names networks would add to these.
    assert not any("networks" in service for service in SECRETS["services"].values())


def test_every_volume_named_is_declared():
    for compose in (FLEET, EDGE):
        for service in compose["services"].values():
            for volume in service.get("volumes", []):
                source = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", volume).split(":")[0]
                assert source.startswith(("/", ".")) or source in compose["volumes"], volume


def test_official_images_are_pinned():
    for name in ("prometheus", "grafana"):
        assert re.search(r":v?\d+\.\d+\.\d+$", FLEET["services"][name]["image"])


def test_the_version_is_that_of_the_package():
    assert f"EDGE_ATTENTION_VERSION={VERSION}" in (ROOT / ".env").read_text()
    for file in ("docker-compose.yml", "deploy/edge/docker-compose.yml", "docs/deploy.md"):
        text = (ROOT / file).read_text()
        found = set(re.findall(r"edge-attention/[\w-]+:(?:\$\{EDGE_ATTENTION_VERSION:-)?(\d[\w.]*)", text))
        assert found == {VERSION}, file
    for name in ("aggregator", "edge"):
        assert f"ARG VERSION={VERSION}\n" in (ROOT / "deploy" / f"{name}.Dockerfile").read_text()


def test_overrides_name_services_and_secrets_that_are_there():
    assert set(SECRETS["services"]) <= set(FLEET["services"])
    for service in SECRETS["services"].values():
        for secret in service.get("secrets", []):
            assert (secret if isinstance(secret, str) else secret["source"]) in SECRETS["secrets"]


def test_every_variable_of_env_is_used():
    text = (ROOT / "docker-compose.yml").read_text()
    for variable in re.findall(r"^([A-Z_]+)=", (ROOT / ".env").read_text(), re.MULTILINE):
        assert variable == "COMPOSE_PROFILES" or f"${{{variable}:-" in text, variable


def test_every_setting_of_the_files_is_documented():
    page = (ROOT / "docs" / "deploy.md").read_text()
    for file in ("docker-compose.yml", "deploy/edge/docker-compose.yml"):
        for variable in re.findall(r"\$\{([A-Z_]+)[:}]", (ROOT / file).read_text()):
            assert f"`{variable}`" in page or variable == "EDGE_ATTENTION_VERSION", variable
