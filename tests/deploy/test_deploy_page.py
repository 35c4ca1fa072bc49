"""docs/deploy.md as `make test-compose` runs it: what is put in place of its words, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compose.document import Substitution, commands

BLOCKS = ("build", "up", "token", "box", "see")
V1, V2 = ["docker-compose"], ["docker", "compose"]


def over(compose: list[str], **more: str) -> Substitution:
    return Substitution(compose, Path("/box"), address="172.18.0.1:50123", token="eaj_1_2_3", **more)


def test_ten_commands_and_no_comments():
    found = [command for block in BLOCKS for command in commands(block)]
    assert len(found) == 11
    assert not any("#" in command for command in found)


@pytest.mark.parametrize(
    ("written", "run"),
    [
        ("docker compose up -d", "docker-compose up -d"),
        ("docker compose exec aggregator x", "docker-compose exec -T aggregator x"),
        ("docker save a | ssh loft docker load", "docker save a | (cd /box && ENV && docker load)"),
        ("scp deploy/edge/docker-compose.yml loft:", "cp deploy/edge/docker-compose.yml /box/"),
        (
            "ssh loft 'echo A=fleet.example:50051 > .env && T=eaj_... docker compose up -d'",
            "(cd /box && ENV && echo A=172.18.0.1:50123 > .env && T=eaj_1_2_3 docker-compose up -d)",
        ),
    ],
)
def test_what_is_put_in_place(written, run):
    environment = "unset COMPOSE_FILE COMPOSE_PROFILES && export COMPOSE_PROJECT_NAME=loft"
    assert over(V1).apply(written) == run.replace("ENV", environment)


def test_with_compose_v2_the_commands_stay():
    for command in ("docker compose build", "docker compose exec aggregator edge-attention nodes"):
        assert over(V2).apply(command) == command


def test_what_is_not_run_has_a_reason():
    said = Substitution(V2, Path("/box"), skipped={"apt-get install": "it is here"})
    assert said.reason("sudo apt-get install -y docker.io") == "it is here"
    assert said.reason("docker compose build") is None
