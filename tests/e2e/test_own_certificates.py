"""An operator's own certificates, with real daemons: renewed, ended, of another name, of another authority.

Each is said on both sides, by the peer that is refused and in the aggregator's log. What is refused at the
start, and files of every form: tests/aggregator/test_operators_certificate.py and test_operators_files.py.
"""

from __future__ import annotations

import asyncio
import json
import os

import pki
import pytest
from fleets import command, until
from operators_house import LEAF, MIDDLE, MIDDLE_2, OLD, OTHER, ROOT
from trusted import TrustedFleet

from edge_attention import AsyncClient, Client, Unavailable
from edge_attention.trust.bootstrap import shown_chain

CLI = "edge_attention.cli.main"


class OwnFiles:
    """The operator's files, which are renewed in place. `flags` name them to the aggregator."""

    def __init__(self, folder):
        self.chain, self.key, self.authority = (
            folder / name for name in ("chain.pem", "key.pem", "root.pem")
        )
        self.flags = ("--tls-certificate", str(self.chain), "--tls-key", str(self.key))

    def write(self, *chain, key=None, authority=()):
        for path, data in ((self.key, key or chain[0].key_pem()), (self.chain, pki.pem(*chain))):
            path.write_bytes(data)
            path.chmod(0o600)
        if authority:
            self.authority.write_bytes(pki.pem(*authority))
        return (*self.flags, "--tls-authority", str(self.authority)) if authority else self.flags


@pytest.fixture
def own(tmp_path):
    return OwnFiles(tmp_path)


def started(folder, flags, **options):
    """Run the aggregator to its end: it is to refuse."""
    state = folder / "state"
    return command("aggregator.main", "--listen", "127.0.0.1:0", "--state", state, "--tls", *flags, **options)


def restart(fleet, flags):
    """End it as one is ended for a renewal, and start it with the same."""
    fleet.terminate("aggregator")
    fleet.start_aggregator(*fleet.flags, *flags)


def shows(fleet, issued):
    until(lambda: shown_chain(fleet.address)[0] == issued.certificate, "the renewal")


def test_a_renewal_by_another_intermediate_locks_nobody_out(own, tmp_path):
    """Case 04: as certbot renews, while the daemons run, and over a restart."""
    refused = started(tmp_path, own.write(LEAF, MIDDLE))
    assert refused.returncode == 1
    assert "ends in 'Middle', which is not a root" in refused.stderr
    assert "Give the root, 'CN=Root', with --tls-authority FILE" in refused.stderr
    flags = own.write(LEAF, MIDDLE, authority=[ROOT])
    with TrustedFleet(tmp_path, *flags) as fleet:
        fleet.trusted_node("a")
        token = fleet.make_token("--role", "user")["token"]
        renewed = pki.issue("aggregator", MIDDLE_2)
        own.write(renewed, MIDDLE_2)
        shows(fleet, renewed)
        with Client(fleet.address, token=token) as client:
            assert [node.name for node in client.nodes()] == ["a"]
        fleet.kill("a")
        fleet.trusted_node("a")
        fleet.trusted_node("b")
        restart(fleet, own.flags)  # without the root: what peers trust is kept
        with Client(fleet.address, token=token) as client:
            until(lambda: {n.name for n in client.nodes() if n.state.value == "ready"} == {"a", "b"}, "both")
        assert pki_pins(fleet) == {token[-32:]}


def pki_pins(fleet):
    """The pins of tokens made by the command line and by --bootstrap."""
    made = fleet.make_token("--role", "viewer")["token"]
    return {text[-32:] for text in (made, *(fleet.token(role) for role in ("join", "viewer", "operator")))}


@pytest.mark.parametrize(
    ("chain", "authority", "says"),
    [
        ([LEAF, MIDDLE], [OTHER], "wrong authority"),
        ([LEAF], [ROOT], "incomplete chain: the certificate of 'Middle' is missing"),
        ([pki.issue("aggregator", MIDDLE, days=OLD), MIDDLE], [ROOT], "expired: 'aggregator' was good until"),
    ],
    ids=["wrong", "missing", "expired"],
)
def test_a_chain_that_does_not_verify_is_refused_at_the_start(own, tmp_path, chain, authority, says):
    """Case 05."""
    done = started(tmp_path, own.write(*chain, authority=authority))
    assert done.returncode == 1
    assert says in done.stderr
    assert "set the clock" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_encrypted_key_opens_by_file_or_environment_and_never_asks(own, tmp_path):
    flags = own.write(LEAF, MIDDLE, key=LEAF.key_pem(passphrase=b"open sesame"), authority=[ROOT])
    done = started(tmp_path, flags)
    assert done.returncode == 1
    assert "is encrypted: give its passphrase in a file, --tls-key-passphrase-file FILE" in done.stderr
    variable = "EDGE_AGGREGATOR_TLS_KEY_PASSPHRASE"
    done = started(tmp_path, flags, env={**os.environ, variable: "wrong"})
    assert done.returncode == 1
    assert "does not open with the passphrase given" in done.stderr
    done = started(tmp_path, (*flags, "--tls-key-passphrase", "open sesame"))
    assert done.returncode == 2
    assert f"set {variable}" in done.stderr
    file = tmp_path / "passphrase"
    file.write_text("open sesame\n")
    with TrustedFleet(tmp_path, *flags, "--tls-key-passphrase-file", str(file)) as fleet:
        fleet.trusted_node("a")
        kept = b"".join(path.read_bytes() for path in (tmp_path / "state" / "trust").iterdir())
        assert b"open sesame" not in kept
        assert LEAF.key_pem().splitlines()[1] not in kept, "the key is not written anywhere"


def test_a_root_is_replaced_by_way_of_a_bundle_of_both(own, tmp_path):
    flags = own.write(LEAF, MIDDLE, authority=[ROOT])
    with TrustedFleet(tmp_path, *flags) as fleet:
        fleet.trusted_node("old")
        first = fleet.make_token("--role", "user")["token"]
        own.authority.write_bytes(pki.pem(ROOT, OTHER))
        until(lambda: len(shown_chain(fleet.address)) == 4, "both roots shown")
        until(lambda: fleet.token("join")[-32:] != first[-32:], "tokens of --bootstrap for both")
        token = fleet.make_token("--role", "user")["token"]
        assert pki_pins(fleet) == {token[-32:]}
        fleet.trusted_node("new")
        for text in (first, token):
            with Client(fleet.address, token=text) as client:
                assert {node.name for node in client.nodes()} == {"old", "new"}
        by_other = pki.issue("aggregator", OTHER)
        own.write(by_other)
        shows(fleet, by_other)
        with Client(fleet.address, token=token) as client:
            assert client.nodes()
        with Client(fleet.address, token=token, authority=own.authority) as client:
            assert client.nodes()
        with (
            Client(fleet.address, token=first) as client,
            pytest.raises(Unavailable, match="wrong authority"),
        ):
            client.nodes()
        for name in ("old", "new"):
            fleet.kill(name)
        fleet.trusted_node("new")
        fleet.trusted_node("old", "--authority", str(own.authority))
        restart(fleet, flags)
        with Client(fleet.address, token=token) as client:
            until(
                lambda: {n.name for n in client.nodes() if n.state.value == "ready"} == {"old", "new"}, "both"
            )


async def asked(address, **options):
    async with AsyncClient(address, **options) as client:
        await client.nodes()


def told(fleet, address, says, log, **options):
    """Clients, sync and async, and the command line are told so at `address`, and the aggregator's log.
    What the doctor finds there."""
    with Client(address, **options) as client, pytest.raises(Unavailable, match=says):
        client.nodes()
    with pytest.raises(Unavailable, match=says):
        asyncio.run(asked(address, **options))
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    done = command(CLI, "--aggregator", address, *flags, "nodes")
    assert done.returncode == 1
    assert says in done.stderr
    line = fleet.audited("refused", log)
    assert line["subject"] == ""
    assert log in fleet.said("aggregator")
    return json.loads(command(CLI, *flags, "doctor", "--aggregator", address, "--json").stdout)["findings"]


def test_wrong_authority_and_wrong_name_on_both_sides(own, tmp_path):
    named = pki.issue("aggregator", MIDDLE, names=("localhost",))
    with TrustedFleet(tmp_path, *own.write(named, MIDDLE, authority=[ROOT])) as fleet:
        other = tmp_path / "other.pem"
        other.write_bytes(OTHER.pem())
        by_name = fleet.address.replace("127.0.0.1", "localhost")
        says = "wrong authority: the chain ends in 'Root'"
        findings = told(fleet, by_name, says, "wrong authority: it does not trust", authority=str(other))
        (found,) = [one for one in findings if one["check"] == "authority"]
        assert found["status"] == "failed"
        assert "wrong authority: the chain ends in 'Root'" in found["measured"]
        said = fleet.said("aggregator")
        assert "it is for localhost, of the authority" in said
        token = fleet.token("viewer")
        says = "wrong name: the certificate of 127.0.0.1"
        findings = told(fleet, fleet.address, says, "wrong name", token=token)
        (found,) = [one for one in findings if one["check"] == "certificate name"]
        assert found["status"] == "failed"
        node = fleet.trusted_node("a", wait=False)
        node.wait_for("wrong name: .*the certificate is for localhost, not for 127.0.0.1", 120)


def test_a_certificate_that_ends_is_said_on_both_sides_and_renewed_without_a_restart(own, tmp_path):
    short = pki.issue("aggregator", MIDDLE, days=(-1, 8 / 86400))
    with TrustedFleet(tmp_path, *own.write(short, MIDDLE, authority=[ROOT])) as fleet:
        token = fleet.token("viewer")
        fleet.child("aggregator").wait_for("expired: the server's certificate ended at .* renew it", 120)
        says = "expired: 'aggregator' was good until"
        findings = told(fleet, fleet.address, says, "expired: by its clock", token=token)
        (found,) = [one for one in findings if one["check"] == "certificate"]
        assert found["status"] == "failed"
        assert "expired: it ended at" in fleet.said("aggregator")
        node = fleet.trusted_node("a", wait=False)
        node.wait_for("expired: .* have its operator renew it", 120)
        own.write(pki.issue("aggregator", MIDDLE, days=OLD), MIDDLE)
        fleet.child("aggregator").wait_for(
            "the new certificate is refused, .* expired: 'aggregator' was", 120
        )
        own.write(LEAF, MIDDLE)
        shows(fleet, LEAF)
        fleet.wait_ready("a")
        with Client(fleet.address, token=token) as client:
            assert [one.name for one in client.nodes()] == ["a"]
