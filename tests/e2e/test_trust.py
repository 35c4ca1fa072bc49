"""Trust between real processes over real TLS: who is let in, and who is refused with which words."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID
from fleets import SPEC, command, exact, queries, tokens, until
from trusted import TrustedFleet, run_node

from aggregator.trust.authority import Authority, folder_of
from edge_attention import Client, EdgeAttentionError, NotFound, PermissionDenied, Unavailable
from edge_attention.core.messages.link import PROTOCOL, DownloadRequest, Heartbeat, Register, UploadChunk
from edge_attention.core.messages.trust import Issued
from edge_attention.trust.certificates import der, is_ours, key_pem, new_key, pem
from edge_attention.trust.dial import Dial
from edge_attention.trust.enrol import enrol
from edge_attention.trust.identity import IdentityFolder
from edge_attention.trust.tokens import parse_token
from edge_attention.wire.link import CONNECT, DOWNLOAD, UPLOAD
from edge_node.health import LINK_SERVICE

KEYS, VALUES = tokens(700)
ASKED = queries(3)


@pytest.fixture(scope="module")
def trusted(tmp_path_factory):
    with TrustedFleet(tmp_path_factory.mktemp("trusted")) as fleet:
        fleet.trusted_node("a", wait=False)
        fleet.trusted_node("b", wait=False)
        fleet.wait_ready("a")
        fleet.wait_ready("b")
        yield fleet


def test_nodes_join_by_token_and_answer_over_tls(trusted):
    with trusted.client() as client:
        context = client.create_context("memory", **SPEC)
        context.append(KEYS[:300], VALUES[:300], node="a")
        context.append(KEYS[300:], VALUES[300:], node="b")
        exact(context.attend(ASKED), ASKED, KEYS, VALUES)
        context.drop()
    assert trusted.audited("enrolled", subject="node/a")["serial"]
    assert trusted.audited("registered", subject="node/b")["releases"] == []
    assert trusted.audited("context_dropped")["subject"] == "operator/bootstrap-operator"


def cli(fleet, *arguments):
    """Run `edge-attention` against the fleet."""
    return command("edge_attention.cli.main", "--aggregator", fleet.address, *arguments)


def identity(folder, authority, trusts, name="x", role="node", life=timedelta(days=1)):
    """An identity folder with a certificate that `authority` issued, which trusts servers of `trusts`."""
    key = new_key()
    certificate = authority.issue_peer(key.public_key(), role, name, life)
    issued = Issued(der(certificate), der(authority.certificate), name, role)
    IdentityFolder(folder).save(key, issued, (trusts,))
    return folder


def own_authority(fleet):
    return Authority.open(folder_of(fleet.folder / "state"))


def refused_node(fleet, name, *flags, says, code=None):
    """Start a node that is refused: it says so, and it ends with `code` (None: it keeps trying)."""
    child = fleet.start_node(name, "--threads", "1", *map(str, flags), wait=False)
    child.wait_for(says, 120)
    if code is not None:
        assert child.process.wait(120) == code
    else:
        assert child.running
        child.terminate()


# Issue 4, show 3: each refusal is clear on both sides and a line in the audit log.


def test_no_certificate(trusted):
    boot = trusted.boot / "authority.pem"
    done = cli(trusted, "--authority", boot, "nodes")
    assert done.returncode == 1
    assert "shows no certificate and no token" in done.stderr
    line = trusted.audited("refused", "shows no certificate and no token")
    assert line["method"] == "FleetService.ListNodes"
    assert "127.0.0.1" in line["peer"]
    refused_node(trusted, "nobody", "--authority", boot, says="shows no certificate and no token")
    assert "refused ipv4:127.0.0.1" in trusted.said("aggregator")


def test_a_certificate_of_another_authority(trusted, tmp_path):
    stranger = identity(tmp_path / "id", Authority.make(), own_authority(trusted).certificate, "stranger")
    refused_node(trusted, "stranger", "--identity", stranger, says="issued by another authority")
    assert "'stranger'" in trusted.audited("refused", "issued by another authority")["reason"]


def test_a_server_of_another_authority(trusted, tmp_path):
    """The node is the one that refuses: it says whom it found, and the aggregator that it was not trusted."""
    other = Authority.make()
    astray = identity(tmp_path / "id", other, other.certificate, "astray")
    refused_node(trusted, "astray", "--identity", astray, says="is not the aggregator this side trusts")
    trusted.audited("refused", "does not trust this aggregator's authority")


def test_an_expired_certificate(trusted, tmp_path):
    own = own_authority(trusted)
    old = identity(tmp_path / "id", own, own.certificate, "old", life=timedelta(seconds=-1))
    refused_node(trusted, "old", "--identity", old, says=r"certificate of node 'old' ended at .* enrol again")
    assert trusted.audited("refused", "certificate of node 'old' ended at")["method"].endswith("Connect")


def test_a_revoked_certificate_shuts_the_node_out_until_an_operator_lets_it_in(trusted):
    node = trusted.trusted_node("c")
    said = trusted.aggregator("certificate", "revoke", "c")
    assert "node c is revoked" in said
    assert "token create --role node --name c" in said
    # Its open stream ends, and it knows that trying again is no use.
    assert node.process.wait(120) == 1
    assert "certificate of node 'c' was revoked" in trusted.said("c")
    assert trusted.audited("revoked", subject="node/c")
    assert trusted.audited("refused", "was revoked", subject="node/c")["method"].endswith("Connect")
    with trusted.client() as client:
        (away,) = [node for node in client.nodes() if node.name == "c"]
        assert away.revoked_at == pytest.approx(time.time(), abs=60)
        assert [node.revoked_at for node in client.nodes() if node.name == "a"] == [None]
    # Neither its identity nor the token everybody has lets it in again.
    again = trusted.trusted_node("c", wait=False)
    assert again.process.wait(120) == 1
    fresh = trusted.folder / "c-fresh"
    refused_node(
        trusted,
        "c",
        "--join-token",
        trusted.token("join"),
        "--identity",
        fresh,
        says="'c' was revoked",
        code=2,
    )
    token = trusted.make_token("--name", "c")["token"]
    trusted.start_node("c", "--threads", "1", "--join-token", token, "--identity", str(fresh))
    with trusted.client() as client:
        assert [node.revoked_at for node in client.nodes() if node.name == "c"] == [None]
    assert trusted.terminate("c") == 0


def test_a_second_box_with_a_copy_of_the_store(trusted):
    """Its certificate is good, so trust lets it in; that its name is here already is told as loudly."""
    copy = trusted.folder / "copy-of-a"
    shutil.copytree(trusted.store("a"), copy)
    done = run_node("--aggregator", trusted.address, "--threads", "1", "--store", copy)
    assert done.returncode == 1
    assert "a node named 'a' is connected already" in done.stderr
    line = trusted.audited("refused", "a node named 'a' is connected already", subject="node/a")
    assert line["outcome"] == "refused"
    assert "127.0.0.1" in line["peer"]


def test_a_used_token(trusted):
    token = trusted.make_token()
    trusted.trusted_node("d", token=token["token"])
    flags = ("--join-token", token["token"], "--store", trusted.store("e"))
    refused_node(trusted, "e", *flags, says=rf"join token {token['id']} has been used once", code=2)
    assert "'e'" in trusted.audited("refused", f"join token {token['id']} has been used")["method"]
    # Whose it was comes back without it.
    assert trusted.terminate("d") == 0
    trusted.start_node("d", "--threads", "1", "--store", str(trusted.store("d")))
    trusted.terminate("d")


def test_a_node_that_claims_another_name(trusted):
    own = trusted.store("a") / "identity"
    for name in ("b", "z"):  # one that is here, and one that is not
        refused_node(
            trusted, "z", "--identity", own, "--name", name, says=f"node '{name}' came with .* of 'a'", code=1
        )
        trusted.audited("refused", f"registration of node '{name}' came with", subject="node/a")
    with trusted.client() as client:
        assert {node.name: node.state.value for node in client.nodes()}["b"] == "ready"


def test_a_name_belongs_to_who_has_it(trusted):
    flags = ("--join-token", trusted.token("join"), "--identity", trusted.folder / "thief")
    done = run_node("--aggregator", trusted.address, "--name", "b", "--threads", "1", *flags)
    assert done.returncode == 2
    assert "the name 'b' belongs to another node" in done.stderr
    trusted.audited("refused", "the name 'b' belongs to another node")


def test_a_viewer_drops_nothing(trusted):
    with trusted.client() as client:
        client.create_context("kept", **SPEC)
        done = cli(trusted, "--token-file", trusted.boot / "viewer-token", "contexts", "drop", "kept")
        assert done.returncode == 1
        assert "DropContext needs the role operator" in done.stderr
        assert "has the role viewer" in done.stderr
        line = trusted.audited("refused", "DropContext needs the role operator")
        assert line["subject"] == "viewer/bootstrap-viewer"
        assert [c.spec.name for c in client.contexts()] == ["kept"]
        client.context("kept").drop()
    done = cli(trusted, "--token", trusted.token("viewer"), "nodes", "--json")
    assert done.returncode == 0, done.stderr


def test_a_node_is_no_client_and_a_client_no_node(trusted):
    done = cli(trusted, "--identity", trusted.store("a") / "identity", "nodes")
    assert "needs the role viewer, and 'a' has the role node" in done.stderr
    trusted.audited("refused", "ListNodes needs the role viewer", subject="node/a")


def test_plaintext_to_a_tls_port(trusted):
    done = cli(trusted, "nodes")
    assert done.returncode == 1
    assert "wants TLS, and this side spoke plaintext: a client needs --token" in done.stderr
    trusted.audited("refused", "it did not speak TLS")
    assert "refused a connection: a TLS handshake failed: it did not speak TLS" in trusted.said("aggregator")
    refused_node(trusted, "plain", says=r"wants TLS.* a node --join-token")
    with pytest.raises(Unavailable, match="wants TLS"), Client(trusted.address) as client:
        client.nodes()


def test_tls_to_a_plaintext_port(trusted, fleet):
    plain = fleet()
    done = cli(plain, "--token", trusted.token("viewer"), "nodes")
    assert "does not speak TLS" in done.stderr
    done = cli(plain, "--authority", trusted.boot / "authority.pem", "nodes")
    assert "does not speak TLS" in done.stderr


def test_beyond_loopback_only_with_tls(tmp_path):
    state = tmp_path / "state"
    done = command("aggregator.main", "--listen", "0.0.0.0:0", "--state", state)
    assert done.returncode == 1
    assert "refusing to listen on '0.0.0.0'" in done.stderr
    assert "--tls --state DIR" in done.stderr
    (line,) = [json.loads(text) for text in (state / "audit.jsonl").read_text().splitlines()]
    assert (line["event"], line["subject"]) == ("refused", "aggregator")
    assert "0.0.0.0" in line["reason"]
    flags = ["--listen", "0.0.0.0:0", "--tls", "--state", str(tmp_path / "tls")]
    with subprocess.Popen(
        [sys.executable, "-m", "aggregator.main", *flags], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().startswith("listening on 0.0.0.0:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0


def test_a_token_of_another_aggregator(trusted, tmp_path):
    pin = Authority.make().fingerprint[:32]
    parts = trusted.token("viewer").split("_")
    done = cli(trusted, "--token", "_".join([*parts[:3], pin]), "nodes")
    assert "shows the authority" in done.stderr
    assert "another aggregator" in done.stderr
    forged = "_".join([parts[0], parts[1], "0" * 48, parts[3]])
    done = cli(trusted, "--token", forged, "nodes")
    assert f"token {parts[1]} is not known here" in done.stderr
    trusted.audited("refused", f"token {parts[1]} is not known here")


def test_an_access_token_that_is_revoked_ends_calls_and_one_that_expires_is_refused(trusted):
    made = trusted.make_token("--role", "viewer", "--name", "watcher")
    with Client(trusted.address, token=made["token"]) as client:
        client.nodes()
        trusted.aggregator("token", "revoke", made["id"])
        trusted.audited("token_revoked", subject="viewer/watcher")
        until(lambda: refusal(client.nodes), "the refusal")
        assert f"access token {made['id']} was revoked" in refusal(client.nodes)
    short = trusted.make_token("--role", "viewer", "--expires", "1s")["token"]
    time.sleep(1.1)
    with Client(trusted.address, token=short) as client:
        assert "expired at" in refusal(client.nodes)


def refusal(call):
    try:
        call()
    except EdgeAttentionError as error:
        return error.message
    return ""


def test_a_client_enrols_and_shows_its_certificate(trusted, tmp_path):
    token = trusted.make_token("--role", "user", "--join", "--name", "alice")["token"]
    done = cli(trusted, "enrol", "--token", token, "--identity", tmp_path / "alice")
    assert done.returncode == 0, done.stderr
    assert "enrolled as user alice" in done.stdout
    assert (tmp_path / "alice" / "key.pem").stat().st_mode & 0o777 == 0o600
    done = cli(trusted, "--identity", tmp_path / "alice", "contexts")
    assert done.returncode == 0, done.stderr
    with Client(trusted.address, identity=tmp_path / "alice") as client:
        client.create_context("alices", **SPEC)
        with pytest.raises(PermissionDenied, match="needs the role operator, and 'alice' has the role user"):
            client.context("alices").drop()
    with trusted.client() as client:
        client.context("alices").drop()
    assert trusted.audited("context_created")["subject"] == "user/alice"


def test_health_is_open_and_tells_the_truth(trusted):
    host = trusted.address
    done = health(host, "--authority", trusted.boot / "authority.pem")
    assert (done.returncode, done.stderr) == (0, "")
    assert "wants TLS" in health(host).stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    trusted.trusted_node("h", "--health-port", str(port))
    until(lambda: not health(f"127.0.0.1:{port}", "--service", LINK_SERVICE).returncode, "the node's health")
    trusted.terminate("h")
    assert health(f"127.0.0.1:{port}").returncode == 1


def health(*arguments):
    return command("edge_node.health", *arguments)


def test_the_aggregator_comes_back_with_the_same_authority(tmp_path):
    with TrustedFleet(tmp_path) as fleet:
        fleet.trusted_node("a")
        before = [fleet.token(role) for role in ("join", "viewer", "operator")]
        (fleet.boot / "viewer-token").unlink()
        fleet.restart_aggregator("--tls", "--bootstrap", str(fleet.boot), "--lease", "5")
        until(lambda: states(fleet).get("a") == "ready", "the node's return")
        after = [fleet.token(role) for role in ("join", "viewer", "operator")]
        assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]
        with Client(fleet.address, token=before[1]) as client:
            assert "was revoked" in refusal(client.nodes)


def states(fleet):
    with fleet.client() as client:
        return {node.name: node.state.value for node in client.nodes()}


def test_a_session_is_its_nodes_own(trusted, tmp_path):
    """Two nodes by hand: whoever has heard another's session cannot use it with a certificate of its own."""
    token = parse_token(trusted.token("join"))
    own = {name: enrol(trusted.address, token, IdentityFolder(tmp_path / name), name) for name in ("p", "q")}

    async def beats(stream):
        for number in itertools.count(1):
            await stream.write(Heartbeat(number, 0, 0))
            await asyncio.sleep(1)

    async def scenario():
        callers = {name: Dial(trusted.address, identity=who).open_caller() for name, who in own.items()}
        stream = callers["p"].duplex(CONNECT)
        await stream.write(Register(PROTOCOL, "0", "p", "i", "", "CPU", 1, 1 << 20, (), (), ()))
        session = (await anext(aiter(stream))).session
        beating = asyncio.create_task(beats(stream))
        digest = "0" * 64
        for name, error in (("p", NotFound), ("q", PermissionDenied)):
            with pytest.raises(error):
                async for _ in callers[name].receive(DOWNLOAD, DownloadRequest(session, digest)):
                    pass

        async def chunk():
            yield UploadChunk(session, digest, 0, 10, b"")

        assert (await callers["p"].send(UPLOAD, chunk())).received == 0
        with pytest.raises(PermissionDenied, match="of node 'p' came with the certificate of 'q'"):
            await callers["q"].send(UPLOAD, chunk())
        beating.cancel()
        for caller in callers.values():
            await caller.close()

    asyncio.run(scenario())
    assert trusted.audited("refused", "a session of node 'p'", subject="node/q")["method"].endswith("Upload")


def any_authority():
    """An authority as a company has one: nothing in it says Edge Attention."""
    key, now = new_key(), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "corp")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(now - timedelta(days=1))
    builder = builder.not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
    )
    made = Authority(builder.sign(key, hashes.SHA256()), key)
    assert not is_ours(made.certificate)
    return made


def test_the_operators_own_certificate_and_a_node_that_moves_there(trusted, tmp_path):
    """Its authority is not ours: names are checked. A token of the new aggregator moves a node to it."""
    corporate = any_authority()
    key, root = new_key(), tmp_path / "root.pem"
    address = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    usage = ExtendedKeyUsageOID.SERVER_AUTH
    leaf = corporate._issue(key.public_key(), "agg", address, usage, timedelta(days=1))
    (tmp_path / "leaf.pem").write_bytes(pem(leaf))
    (tmp_path / "leaf.key").write_bytes(key_pem(key))
    root.write_bytes(pem(corporate.certificate))
    files = ("--tls-certificate", tmp_path / "leaf.pem", "--tls-key", tmp_path / "leaf.key")
    trusted.trusted_node("mover")
    assert trusted.terminate("mover") == 0
    with TrustedFleet(tmp_path, *map(str, files), "--tls-authority", str(root)) as fleet:
        assert fleet.make_token()["token"].endswith(corporate.fingerprint[:32])
        store = ("--store", str(trusted.store("mover")))
        child = fleet.start_node("mover", "--threads", "1", "--join-token", fleet.token("join"), *store)
        assert "enrolling anew" in "\n".join(child.lines)
        assert states(fleet) == {"mover": "ready"}
        elsewhere = fleet.address.replace("127.0.0.1", "localhost")
        done = command(
            "edge_attention.cli.main", "--aggregator", elsewhere, "--token", fleet.token("viewer"), "nodes"
        )
        assert "is not for that name: dial a name that it has" in done.stderr
        assert fleet.terminate("mover") == 0
        fleet.start_node("mover", "--threads", "1", *store)
