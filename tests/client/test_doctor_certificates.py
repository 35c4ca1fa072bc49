"""What the doctor says of certificates, tokens and files with secrets, and how it looks at them."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from edge_attention.core.errors import EdgeAttentionError
from edge_attention.doctor import measure_trust as m
from edge_attention.doctor import trust_findings as t
from edge_attention.doctor.trust_findings import Certificate, Secret, Shown
from edge_attention.trust.certificates import common_name, key_pem, new_key, pem, pin
from edge_attention.trust.names import DOMAIN, SERVER_NAME

DAY = 86_400.0
WEEK = Certificate(("hub.example", "127.0.0.1"), 0.0, 7 * DAY, "pin")
SHOWN = Shown(WEEK, ("pin", "root"), "root", True, "hub.example")


@pytest.mark.parametrize(
    ("now", "status"),
    [
        (0.0, "ok"),
        (5 * DAY, "ok"),
        (6 * DAY, "warning"),
        (7 * DAY, "failed"),
        (9 * DAY, "failed"),
        (-1, "failed"),
    ],
)
def test_days_left(now, status):
    finding = t.days("aggregator", WEEK, now, "renew it")
    assert finding.status.value == status
    assert finding.data["left_seconds"] == 7 * DAY - now
    assert "clock" in t.days("x", WEEK, -1, "renew it").fix


def test_authorities():
    assert t.authority(SHOWN).status.value == "ok"
    assert t.authority(replace(SHOWN, signed=False)).status.value == "failed"
    assert t.authority(replace(SHOWN, wanted="", signed=False)).status.value == "skipped"


@pytest.mark.parametrize(
    ("wanted", "names", "status"),
    [
        ("hub.example", ("hub.example",), "ok"),
        ("HUB.example.", ("hub.EXAMPLE",), "ok"),
        ("a.example", ("*.example",), "ok"),
        ("a.b.example", ("*.example",), "failed"),
        (".example", ("*.example",), "failed"),
        ("example", ("*.example",), "failed"),
        ("::1", ("0:0:0:0:0:0:0:1",), "ok"),
        ("127.0.0.1", ("127.0.0.2", "hub"), "failed"),
        ("hub", (), "failed"),
        ("", ("hub",), "skipped"),
    ],
)
def test_names(wanted, names, status):
    finding = t.name(replace(SHOWN, name=wanted, certificate=replace(WEEK, names=names)))
    assert finding.status.value == status
    assert (f"--tls-name {wanted}" in finding.fix) is (status == "failed")


@pytest.mark.parametrize(
    ("files", "status"),
    [
        ([], "ok"),
        ([Secret("key", 0o600)], "ok"),
        ([Secret("key", 0o400)], "ok"),
        ([Secret("key", 0o640)], "failed"),
        ([Secret("token", 0o640, shared=True)], "ok"),
        ([Secret("token", 0o644, shared=True)], "failed"),
        ([Secret("token", 0o660, shared=True)], "failed"),
        ([Secret("key", 0)], "failed"),
        ([Secret("key", 0o600, own=False)], "warning"),
        ([Secret("a", 0o600), Secret("b", 0o604)], "failed"),
    ],
)
def test_files_with_secrets(files, status):
    assert t.secrets("x", files).status.value == status


def test_a_file_is_seen_as_it_is(tmp_path):
    path = tmp_path / "key.pem"
    assert m.secret(path).mode == 0
    path.touch()
    path.chmod(0o640)
    assert m.secret(path) == Secret(str(path), 0o640)
    path.chmod(0)
    assert t.secrets("x", [m.secret(path)]).status.value == "ok", "it is there, and nobody's to read"


def test_an_aggregators_state(tmp_path):
    assert t.secrets("x", m.state_secrets(tmp_path)).status.value == "failed", "there is no authority"
    (tmp_path / "trust").mkdir()
    for name, mode in (
        ("authority.key", 0o600),
        ("authority.pem", 0o644),
        ("server.key", 0o644),
        ("trust.db", 0o600),
    ):
        (tmp_path / "trust" / name).touch()
        (tmp_path / "trust" / name).chmod(mode)
    finding = t.secrets("x", m.state_secrets(tmp_path))
    assert finding.status.value == "failed"
    assert "server.key has mode 0644" in finding.measured
    assert "authority.pem" not in finding.measured


def issue(names, issuer=None, uri=None):
    """(key, certificate), signed by `issuer` or itself."""
    key = new_key()
    by, signing = (issuer[1].subject, issuer[0]) if issuer else (common_name(names[0]), key)
    sans: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    sans.append(x509.IPAddress(ipaddress.ip_address("192.0.2.1")))
    if uri:
        sans.append(x509.UniformResourceIdentifier(uri))
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(common_name(names[0]))
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=6))
        .add_extension(x509.SubjectAlternativeName(sans), False)
        .sign(signing, hashes.SHA256())
    )
    return key, made


ROOT, OTHER = issue(["root"]), issue(["root"])
MIDDLE = issue(["middle"], ROOT)
LEAF = issue(["hub.example", SERVER_NAME], MIDDLE)
OURS = issue(["ours"], uri=DOMAIN)
SERVED = issue([SERVER_NAME], OURS)


@contextlib.contextmanager
def showing(folder, key, *chain):
    """The address of a server that shows this chain, and what broken handshakes it has met."""
    file, broken = folder / "chain.pem", []
    file.write_bytes(key_pem(key) + pem(*chain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    try:
                        with context.wrap_socket(connection, server_side=True) as tls:
                            tls.recv(1)
                    except OSError as error:
                        broken.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", broken
        server.shutdown(socket.SHUT_RDWR)
        thread.join(60)


def test_what_a_server_shows(tmp_path):
    with showing(tmp_path, LEAF[0], LEAF[1], MIDDLE[1], ROOT[1]) as (address, broken):
        nobody = m.shown(address, 60)
        right = m.shown(address, 60, (ROOT[1],))
        wrong = m.shown(address, 60, (OTHER[1],))
        pinned = m.shown(address, 60, None, pin(ROOT[1]))
        elsewhere = m.shown(address, 60, None, pin(OTHER[1]))
    assert broken == [], "nothing was broken off: a server takes that for an attack"
    assert nobody.pins[-1] == pin(ROOT[1])
    assert (nobody.wanted, nobody.signed, nobody.name) == ("", False, "")
    assert (right.wanted, right.signed, right.name) == (pin(ROOT[1]), True, "127.0.0.1")
    assert t.authority(right).status.value == "ok"
    assert t.name(right).status.value == "failed", "it is for hub.example"
    assert (pinned.signed, pinned.wanted) == (True, pin(ROOT[1]))
    for shown in (wrong, elsewhere):
        assert (shown.wanted, shown.signed) == (pin(OTHER[1]), False)
        assert t.authority(shown).status.value == "failed"
    assert set(right.certificate.names) == {"hub.example", SERVER_NAME, "192.0.2.1"}
    assert t.days("x", right.certificate, datetime.now(UTC).timestamp(), "r").status.value == "ok"


def test_an_aggregators_own_authority_has_one_name_for_every_address(tmp_path):
    with showing(tmp_path, SERVED[0], SERVED[1], OURS[1]) as (address, _):
        shown = m.shown(address, 60, (OURS[1],))
    assert shown.name == SERVER_NAME
    assert t.name(shown).status.value == "ok"


def test_a_server_that_shows_nothing():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(EdgeAttentionError):
        m.shown(f"127.0.0.1:{port}", 1)
