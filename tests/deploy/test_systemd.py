"""The units of deploy/systemd: systemd takes them, they are closed, and the daemons know what they say."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from daemon_settings import DEPLOY, parsed, prefix, variables

UNITS = DEPLOY / "systemd"
PROGRAMS = ("edge-node", "edge-aggregator")
BIN = "/opt/edge-attention/bin"
NEWER = {"RestartSteps": 254, "RestartMaxDelaySec": 254}
"""Settings that an older systemd passes over with a warning, and the version that knows them."""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze is not here; it comes with the Debian package systemd",
)


def settings(program: str) -> list[tuple[str, str, str]]:
    """(section, key, value) of every line of a unit."""
    found, section = [], ""
    for line in (UNITS / f"{program}.service").read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, f"{program}.service: {line!r} is not KEY=VALUE"
            found.append((section, key, value))
    return found


def values(program: str, key: str) -> list[str]:
    return [value for _, found, value in settings(program) if found == key]


def one(program: str, key: str) -> str:
    (value,) = values(program, key)
    return value


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(s|min)?", text).groups()
    return float(number) * (60 if unit == "min" else 1)


def environment(program: str, folder: Path) -> dict[str, str]:
    """Variables of the unit, with systemd's specifiers for state and credentials replaced."""
    found = {}
    for line in values(program, "Environment"):
        for word in shlex.split(line):
            name, _, value = word.partition("=")
            found[name] = value.replace("%S", str(folder / "state")).replace(
                "%d", str(folder / "credentials")
            )
    return found


def example(program: str, *, all_lines: bool = False) -> dict[str, str]:
    """Variables of an environment file; those that are commented out too, if asked."""
    found = {}
    for line in (UNITS / f"{program}.env").read_text().splitlines():
        match = re.fullmatch(r"(#?)([A-Z_]+)=(.*)", line)
        if match and (all_lines or not match[1]):
            found[match[2]] = match[3]
    return found


@pytest.fixture
def credentials(tmp_path):
    """What LoadCredential= would have put there."""
    (tmp_path / "credentials").mkdir()
    for program in PROGRAMS:
        for name in values(program, "LoadCredential"):
            (tmp_path / "credentials" / name).write_text("eaj_x_y_z")
    return tmp_path


def systemd_version() -> int:
    said = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True).stdout
    return int(said.split()[1])


def installed(program: str, folder: Path) -> Path:
    """The unit as on a box, with a program that exists here, and without what this systemd is too old for."""
    text = (UNITS / f"{program}.service").read_text()
    assert text.count(BIN) == 1
    for key, version in NEWER.items():
        assert f"\n{key}=" in text
        if systemd_version() < version:
            text = re.sub(rf"^{key}=.*\n", "", text, flags=re.MULTILINE)
    unit = folder / f"{program}.service"
    unit.write_text(text.replace(f"{BIN}/{program}", shutil.which("true")))
    return unit


@needs_systemd
@pytest.mark.parametrize("program", PROGRAMS)
def test_systemd_takes_the_unit(program, tmp_path):
    unit = installed(program, tmp_path)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert unit.name not in done.stderr


@needs_systemd
def test_verify_does_find_what_is_wrong(tmp_path):
    unit = installed("edge-node", tmp_path)
    unit.write_text(
        unit.read_text().replace("ProtectSystem=strict", "ProtectSystem=very\nProtectSytem=strict")
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "ProtectSytem" in done.stderr
    assert "very" in done.stderr


@needs_systemd
@pytest.mark.parametrize("program", PROGRAMS)
def test_systemd_calls_its_exposure_ok(program, tmp_path):
    """2.0 is where systemd's scale ends `OK`; what is left is the network and the host's root folder."""
    if systemd_version() < 250:
        pytest.skip(f"systemd {systemd_version()} cannot rate a unit file offline; 250 and newer can")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20"]
    unit = installed(program, tmp_path)
    done = subprocess.run([*command, str(unit)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    bare = tmp_path / "bare.service"
    bare.write_text(f"[Service]\nExecStart={shutil.which('true')}\n")
    assert subprocess.run([*command, str(bare)], capture_output=True).returncode != 0


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_the_issue_asks_of_a_unit(program):
    for key, wanted in {
        "DynamicUser": "yes",
        "ProtectSystem": "strict",
        "NoNewPrivileges": "yes",
        "StateDirectory": program,
        "KillSignal": "SIGTERM",
        "Restart": "on-failure",
        "CapabilityBoundingSet": "",
        "WantedBy": "multi-user.target",
    }.items():
        assert one(program, key) == wanted, key
    assert "@system-service" in values(program, "SystemCallFilter")
    assert one(program, "MemoryMax").endswith("%")
    assert seconds(one(program, "RestartSec")) < seconds(one(program, "RestartMaxDelaySec"))
    assert one(program, "EnvironmentFile").lstrip("-") == f"/etc/edge-attention/{program}.env"
    assert one(program, "ExecStart").split()[0] == f"{BIN}/{program}"


def test_a_node_is_given_the_time_its_drain_takes():
    """systemd kills after TimeoutStopSec: not before the node has given up on an aggregator that is away."""
    from edge_node import session

    assert seconds(one("edge-node", "TimeoutStopSec")) > session.DRAIN_SECONDS


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_daemon_takes_what_the_unit_gives_it(program, credentials, monkeypatch):
    flags = shlex.split(one(program, "ExecStart"))[1:]
    given = environment(program, credentials) | example(program)
    parameters = parsed(program, flags, given, monkeypatch)
    if program == "edge-node":
        assert parameters["store"] == credentials / "state" / program
        assert parameters["aggregator"] == ("aggregator.example", 50051)
        assert str(parameters["join_token_file"]) == str(credentials / "credentials" / "edge-node.join-token")
    else:
        assert parameters["state"] == credentials / "state" / program
        assert parameters["listen"] == ("0.0.0.0", 50051)
        assert parameters["tls"] is True


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_line_of_the_example_is_an_option_with_a_value_it_takes(program, credentials, monkeypatch):
    lines = example(program, all_lines=True)
    assert set(lines) <= set(variables(program))
    parsed(program, [], environment(program, credentials) | lines, monkeypatch)


def test_a_misspelt_variable_is_noticed(monkeypatch):
    with pytest.raises(AssertionError, match="EDGE_NODE_AGREGATOR"):
        parsed("edge-node", [], {"EDGE_NODE_AGREGATOR": "a:1"}, monkeypatch)
    assert prefix("edge-node") == "EDGE_NODE_"


@pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can write what another user owns: run the tests as root"
)
def test_what_root_writes_into_the_audit_log_stays_the_daemons(tmp_path):
    """`sudo edge-aggregator token create` beside a unit: the log may not have been there before."""
    from aggregator.trust.audit import Audit

    os.chown(tmp_path, 10001, 10001)
    audit = Audit(tmp_path / "audit.jsonl")
    audit.write("token_created", subject="x")
    audit.close()
    made = (tmp_path / "audit.jsonl").stat()
    assert (made.st_uid, made.st_gid) == (10001, 10001)
