"""The doctor and a fleet with TLS: certificates, authorities, tokens, files with secrets."""

from __future__ import annotations

import json

import pytest
from fleets import command
from trusted import TrustedFleet

CLIENT = "edge_attention.cli.main"


@pytest.fixture(scope="module")
def trusted(tmp_path_factory):
    with TrustedFleet(tmp_path_factory.mktemp("trusted")) as fleet:
        fleet.trusted_node("a", "--memory-limit", "256MB")
        yield fleet


def doctor(*arguments):
    """The findings by subject and check, and the exit code."""
    done = command(CLIENT, *arguments, "--json")
    assert done.returncode in (0, 1), done.stderr
    assert done.stderr == ""
    told = json.loads(done.stdout)
    found = {}
    for finding in told["findings"]:
        found.setdefault(finding["subject"], {})[finding["check"]] = finding
    return found, done.returncode


def failures(found):
    return {(c, s) for s, checks in found.items() for c, f in checks.items() if f["status"] == "failed"}


def fleet_arguments(trusted):
    return ("doctor", "--aggregator", trusted.address, "--idle", "0.1")


def test_a_healthy_fleet_with_tls(trusted):
    refused = sum(line["outcome"] == "refused" for line in trusted.audit())
    file = trusted.boot / "operator-token"
    identity, state = trusted.store("a") / "identity", trusted.state
    found, code = doctor(
        "--token-file", file, *fleet_arguments(trusted), "--node-identity", identity, "--state", state
    )
    assert not failures(found)
    assert code == 0
    of = found["aggregator"]
    for check in (
        "protocol",
        "certificate",
        "authority",
        "certificate name",
        "health",
        "access",
        "idle stream",
    ):
        assert of[check]["status"] == "ok", of[check]
    assert found["this client"]["key files"]["status"] == "ok"
    assert found["node on this box"]["certificate"]["status"] == "ok"
    assert found["node on this box"]["key files"]["status"] == "ok"
    assert found["aggregator on this box"]["key files"]["status"] == "ok"
    assert found["node a"]["bandwidth"]["data"]["bytes"] > 0
    assert trusted.token("operator") not in json.dumps(found), "secrets are not printed"
    assert sum(line["outcome"] == "refused" for line in trusted.audit()) == refused, "it raises no alarm"


def test_a_viewer_sees_all_but_may_not_probe(trusted):
    found, code = doctor("--token", trusted.token("viewer"), *fleet_arguments(trusted))
    assert code == 0
    assert found["fleet"]["round trip"]["status"] == "skipped", "once, not a warning a node"
    assert "role user" in found["fleet"]["round trip"]["measured"]
    assert "round trip" not in found["node a"]
    assert found["node a"]["store"]["status"] == "ok"


def test_without_a_token(trusted):
    found, code = doctor(*fleet_arguments(trusted))
    assert code == 1
    assert failures(found) == {("protocol", "aggregator")}
    assert "--token" in found["aggregator"]["protocol"]["fix"]
    assert found["aggregator"]["certificate"]["status"] == "ok", "it is looked at all the same"
    assert found["aggregator"]["authority"]["status"] == "skipped"


def test_a_token_of_another_aggregator(trusted):
    token = trusted.token("viewer")
    other = token[:-32] + "0" * 32
    found, code = doctor("--token", other, *fleet_arguments(trusted))
    assert code == 1
    assert failures(found) == {("authority", "aggregator")}


def test_a_token_that_was_revoked_and_one_of_the_wrong_kind(trusted):
    made = trusted.make_token("--role", "user")
    found, code = doctor("--token", made["token"], *fleet_arguments(trusted))
    assert code == 0
    trusted.aggregator("token", "revoke", made["id"])
    found, code = doctor("--token", made["token"], *fleet_arguments(trusted))
    assert code == 1
    assert failures(found) == {("access", "aggregator")}
    assert "revoked" in found["aggregator"]["access"]["measured"]
    found, code = doctor("--token", trusted.token("join"), *fleet_arguments(trusted))
    assert failures(found) == {("credentials", "this client")}


def test_plaintext_where_a_token_says_tls(fleet):
    own = fleet()
    token = "eat_" + "0" * 8 + "_" + "0" * 48 + "_" + "0" * 32
    found, code = doctor("--token", token, "doctor", "--aggregator", own.address)
    assert code == 1
    assert failures(found) == {("protocol", "aggregator")}
    assert "--tls" in found["aggregator"]["protocol"]["fix"]


def test_keys_that_others_may_read(trusted):
    key, state_key = trusted.store("a") / "identity" / "key.pem", trusted.state / "trust" / "authority.key"
    for path in (key, state_key):
        path.chmod(0o644)
    try:
        found, code = doctor(
            "--token", trusted.token("operator"), *fleet_arguments(trusted),
            "--node-identity", key.parent, "--state", trusted.state,
        )  # fmt: skip
    finally:
        for path in (key, state_key):
            path.chmod(0o600)
    assert code == 1
    assert failures(found) == {("key files", "node on this box"), ("key files", "aggregator on this box")}
    assert f"chmod 600 {key}" in found["node on this box"]["key files"]["fix"]


def test_an_identity_instead_of_a_token(trusted, tmp_path):
    join = trusted.make_token("--role", "user", "--join", "--name", "me")["token"]
    done = command(
        CLIENT,
        "--aggregator",
        trusted.address,
        "enrol",
        "--token",
        join,
        "--name",
        "me",
        "--identity",
        tmp_path / "me",
    )
    assert done.returncode == 0, done.stderr
    found, code = doctor("--identity", tmp_path / "me", *fleet_arguments(trusted))
    assert (failures(found), code) == (set(), 0)
    assert found["this client"]["certificate"]["status"] == "ok"
    assert found["this client"]["key files"]["status"] == "ok"
    missing, code = doctor("--identity", tmp_path / "nobody", *fleet_arguments(trusted))
    assert failures(missing) == {("credentials", "this client")}
