"""The aggregator's own side of trust: its certificate, its files, its log of handshakes, its audit log."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import grpc
import grpc.aio
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from aggregator.main import main
from aggregator.trust import authority as authorities
from aggregator.trust.audit import Audit
from aggregator.trust.authority import Authority, folder_of
from aggregator.trust.bootstrap import write_bootstrap
from aggregator.trust.grpc_log import handshake, prepare
from aggregator.trust.operators_certificate import OperatorsCertificate, OperatorsFiles
from aggregator.trust.registry import Registry
from aggregator.trust.server_certificate import OwnCertificate
from edge_attention.core.errors import (
    FailedPrecondition,
    InvalidArgument,
    Unauthenticated,
    Unreachable,
)
from edge_attention.trust.bootstrap import fetch_authorities, shown_chain
from edge_attention.trust.certificates import der, ends, key_pem, new_key, pem, pin, serial
from edge_attention.trust.explain import why_unreachable
from edge_attention.trust.names import SERVER_NAME

WEEK = timedelta(days=7)
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.getcwd()}


async def serve(certificate):
    """A gRPC server that shows `certificate`; (server, address)."""
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", certificate.grpc_credentials())
    await server.start()
    return server, f"127.0.0.1:{port}"


def served(certificate, inside):
    """What `inside(address)`, called in a thread, returns while the certificate is served."""

    async def scenario():
        server, address = await serve(certificate)
        try:
            return await asyncio.to_thread(inside, address)
        finally:
            await server.stop(None)

    return asyncio.run(scenario())


def test_the_authority_is_found_by_its_pin_and_no_other(tmp_path):
    authority = Authority.open(tmp_path)
    own = OwnCertificate(tmp_path, authority, ["localhost"], WEEK)

    def inside(address):
        assert fetch_authorities(address, pin(authority.certificate)) == (authority.certificate,)
        with pytest.raises(Unauthenticated, match="another aggregator"):
            fetch_authorities(address, "0" * 32)
        name = SERVER_NAME
        assert why_unreachable(address, (authority.certificate,), name) is None
        assert "wants TLS" in why_unreachable(address, None, None)
        other = (Authority.make().certificate,)
        assert "is not the aggregator this side trusts" in why_unreachable(address, other, name)
        assert "is not for that name" in why_unreachable(
            address, (authority.certificate,), "elsewhere.example"
        )

    served(own, inside)


def test_nobody_there_and_no_tls_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(Unreachable, match="is it running"):
            shown_chain(nobody, 2)
        assert why_unreachable(nobody, None, None) is None
    with socket.socket() as plain:
        plain.bind(("127.0.0.1", 0))
        plain.listen()

        def answer():
            for _ in range(2):
                connection, _ = plain.accept()
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 no\r\n\r\n")
                connection.close()

        threading.Thread(target=answer, daemon=True).start()
        address = f"127.0.0.1:{plain.getsockname()[1]}"
        with pytest.raises(Unreachable, match="does not speak TLS"):
            shown_chain(address, 5)
        assert "does not speak TLS" in why_unreachable(address, (Authority.make().certificate,), None)


def test_the_certificate_rotates_while_it_is_served(tmp_path):
    authority = Authority.open(tmp_path)
    clock = [time.time()]
    own = OwnCertificate(tmp_path, authority, ["localhost"], WEEK, lambda: clock[0])
    context = own.ssl_context()

    def inside(address):
        seen = [serial(shown_chain(address)[0])]
        for _ in range(12):
            assert not own.keep()
            clock[0] = ends(own.certificate) - 1
            assert own.keep()
            seen.append(serial(shown_chain(address)[0]))
            assert seen[-1] == serial(own.certificate)
            clock[0] = time.time()
        return seen

    assert len(set(served(own, inside))) == 13
    assert own.ssl_context() is context, "HTTPS follows on the same context"
    assert own.key_file.stat().st_mode & 0o777 == 0o600


def test_a_certificate_made_while_the_clock_was_ahead_is_made_anew(tmp_path, monkeypatch):
    authority = Authority.open(tmp_path)

    class Ahead(datetime):
        @classmethod
        def now(cls, zone=None):
            return datetime.now(zone) + timedelta(days=40)

    with monkeypatch.context() as patch:
        patch.setattr(authorities, "datetime", Ahead)
        own = OwnCertificate(tmp_path, authority, ["localhost"], WEEK)
    assert own.certificate.not_valid_before_utc > datetime.now(UTC)
    assert own.keep()
    assert own.certificate.not_valid_before_utc < datetime.now(UTC)
    assert not own.keep()


def test_a_restart_shows_the_certificate_that_is_there_while_it_is_what_would_be_made(tmp_path):
    authority = Authority.open(tmp_path)

    def started(authority=authority, names=("localhost",), life=WEEK, later=0.0):
        return serial(
            OwnCertificate(tmp_path, authority, names, life, lambda: time.time() + later).certificate
        )

    first = started()
    assert started() == first
    assert started(later=4 * 86400) == first
    seen = [first]
    for change in ({"names": ("localhost", "10.1.2.3")}, {"life": WEEK / 2}, {"authority": Authority.make()}):
        seen.append(started(**change))
        assert started(**change) == seen[-1]
    seen.append(started())
    seen.append(started(later=6 * 86400))
    (tmp_path / "server.key").chmod(0o644)
    seen.append(started())
    seen.append(started(later=-3600))
    (tmp_path / "server.key").write_bytes(key_pem(new_key()))
    seen.append(started())
    (tmp_path / "server.pem").write_text("half a file")
    seen.append(started())
    (tmp_path / "server.pem").unlink()
    seen.append(started())
    assert len(set(seen)) == len(seen)


def test_https_follows_too(tmp_path):
    authority = Authority.open(tmp_path)
    clock = [time.time()]
    own = OwnCertificate(tmp_path, authority, ["localhost", "10.1.2.3"], WEEK, lambda: clock[0])
    context = own.ssl_context()

    def shown():
        client = ssl.create_default_context(cadata=der(authority.certificate))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ends_of = []
            server = threading.Thread(
                target=lambda: ends_of.append(context.wrap_socket(theirs, server_side=True)), daemon=True
            )
            server.start()
            with client.wrap_socket(ours, server_hostname="10.1.2.3") as tls:
                found = tls.getpeercert(binary_form=True)
                server.join(180)
            for end in ends_of:
                end.close()
        return found

    first = shown()
    clock[0] = ends(own.certificate) - 1
    own.keep()
    assert shown() != first
    assert shown() == der(own.certificate)


def operators(tmp_path, key=None):
    """An operator's own CA and certificate, of kinds that are not ours."""
    ca_key, key = ec.generate_private_key(ec.SECP384R1()), key or ec.generate_private_key(ec.SECP256R1())
    now, day = datetime.now(UTC), timedelta(days=1)

    def name(text):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    def build(subject, public, *, ca):
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("corp"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName("agg.corp.example")]), critical=False
            )
        return builder.sign(ca_key, hashes.SHA384())

    ca, leaf = build("corp", ca_key.public_key(), ca=True), build("agg", key.public_key(), ca=False)
    files = {"ca.pem": pem(ca), "agg.pem": pem(leaf), "agg.key": key_pem(key)}
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
    return ca


def test_the_operators_own_certificate_is_shown_with_its_authority_and_read_again(tmp_path):
    ca = operators(tmp_path)
    folder = tmp_path / "trust"
    folder.mkdir()
    files = [tmp_path / name for name in ("agg.pem", "agg.key", "ca.pem")]
    own = OperatorsCertificate(folder, OperatorsFiles(*files))

    def inside(address):
        assert fetch_authorities(address, pin(ca)) == (ca,)
        credentials = grpc.ssl_channel_credentials(pem(ca))
        options = (("grpc.ssl_target_name_override", "agg.corp.example"),)
        with grpc.secure_channel(address, credentials, options) as channel:
            grpc.channel_ready_future(channel).result(180)
        before = shown_chain(address)[0]
        assert not own.keep()
        new = operators(tmp_path)
        assert own.keep()
        assert shown_chain(address)[0] != before
        assert fetch_authorities(address, pin(new)) == (new,)

    served(own, inside)


def test_files_that_do_not_fit_are_one_sentence(tmp_path):
    operators(tmp_path)
    folder = tmp_path / "trust"
    folder.mkdir()
    (tmp_path / "other.key").write_bytes(key_pem(new_key()))
    with pytest.raises(InvalidArgument, match=r"other\.key does not fit .*agg\.pem"):
        OperatorsCertificate(folder, OperatorsFiles(tmp_path / "agg.pem", tmp_path / "other.key"))
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        OperatorsCertificate(folder, OperatorsFiles(tmp_path / "none.pem", tmp_path / "agg.key"))
    (tmp_path / "bad.pem").write_text("nonsense")
    with pytest.raises(InvalidArgument, match="no certificate in PEM"):
        OperatorsCertificate(folder, OperatorsFiles(tmp_path / "bad.pem", tmp_path / "agg.key"))


def test_the_authority_is_made_once_whoever_comes_first(tmp_path):
    code = (
        "import sys; from pathlib import Path; from aggregator.trust.authority import Authority; "
        "print(Authority.open(Path(sys.argv[1])).fingerprint)"
    )
    folder = tmp_path / "trust"
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE) for _ in range(3)
    ]
    assert len({process.communicate(timeout=180)[0] for process in started}) == 1
    assert (folder / "authority.key").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "authority.key").write_bytes(key_pem(new_key()))
    with pytest.raises(FailedPrecondition, match="is not the key of"):
        Authority.open(folder)
    (folder / "authority.key").unlink()
    with pytest.raises(FailedPrecondition, match="restore the folder"):
        Authority.open(folder)


# --bootstrap


def test_bootstrap_writes_what_is_missing_or_no_longer_good(tmp_path):
    registry = Registry(tmp_path)
    authority = Authority.make().certificate
    folder = tmp_path / "boot"
    names = ("join-token", "viewer-token", "operator-token")

    def write(now=1000.0, authority=authority):
        made = write_bootstrap(folder, registry, (authority,), now)
        return made, [(folder / name).read_text() for name in names]

    made, first = write()
    assert len(made) == 3
    assert write() == ([], first)
    assert folder.stat().st_mode & 0o777 == 0o750
    files = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir() if path.is_file()}
    assert files == dict.fromkeys(["authority.pem", *names], 0o640)
    for whose, token in (("node", "join-token"), ("viewer", "viewer-token")):
        assert sorted(path.name for path in (folder / whose).iterdir()) == ["authority.pem", token]
        assert (folder / whose / token).read_text() == (folder / token).read_text()
    (folder / "viewer-token").unlink()
    (folder / "join-token").write_text("damaged")
    made, second = write()
    assert len(made) == 2
    assert [a == b for a, b in zip(first, second, strict=True)] == [False, False, True]
    # What was replaced is not left behind, valid.
    assert sorted(row.state(1000.0) for row in registry.tokens()) == ["revoked"] * 2 + ["valid"] * 3
    registry.revoke_token(registry.tokens()[2].id, 1000.0)
    assert len(write()[0]) == 1
    assert len(write(authority=Authority.make().certificate)[0]) == 3, "another authority: other pins"
    registry.close()


def test_what_is_for_a_group_is_so_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        registry = Registry(tmp_path)
        folder = tmp_path / "boot"
        write_bootstrap(folder, registry, (Authority.make().certificate,), 1000.0)
        registry.close()
        Audit(tmp_path / "audit.jsonl").write("enrolled")
    finally:
        os.umask(before)
    for path in (folder, folder / "node", folder / "viewer"):
        assert path.stat().st_mode & 0o777 == 0o750
    for path in (folder / "join-token", folder / "node" / "join-token", tmp_path / "audit.jsonl"):
        assert path.stat().st_mode & 0o777 == 0o640


def test_a_daemon_makes_files_for_its_user_only(tmp_path):
    code = "from edge_attention.options import set_up; set_up('info'); open('made', 'w')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, timeout=60)
    assert done.returncode == 0
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o600


# gRPC's log

LINE = (
    "I1125 15:31:21.944642 4694 ssl_transport_security.cc:2563] Handshake failed with error SSL_ERROR_SSL: "
)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("error:100000f7:SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER: Invalid", "did not speak TLS"),
        ("error:1000009c:SSL routines:OPENSSL_internal:HTTP_REQUEST: Invalid", "plain HTTP"),
        ("error:10000070:SSL routines:OPENSSL_internal:BAD_PACKET_LENGTH", "does not trust"),
        ("error:10000418:SSL routines:OPENSSL_internal:TLSV1_ALERT_UNKNOWN_CA", "wrong authority"),
        ("error:10000415:SSL routines:OPENSSL_internal:SSLV3_ALERT_CERTIFICATE_EXPIRED", "expired"),
        ("error:10000412:SSL routines:OPENSSL_internal:SSLV3_ALERT_BAD_CERTIFICATE", "wrong name"),
        ("error:10000413:SSL routines:OPENSSL_internal:SSLV3_ALERT_UNSUPPORTED_CERTIFICATE", "wrong use"),
        ("error:100000fd:SSL routines:OPENSSL_internal:NO_COMMON_SIGNATURE_ALGORITHMS", "unsupported key"),
        ("error:1:SOMETHING_NEW", "SOMETHING_NEW"),
    ],
)
def test_handshakes_are_told_in_words(error, says):
    assert says in handshake(LINE + error).reason


def test_other_lines_are_no_handshakes():
    assert handshake("I1125 15:31:21.944642 4694 tcp.cc:1] all is well") is None
    assert handshake("2026-11-25 INFO Handshake failed with error, said a program") is None


def test_grpc_is_told_to_log_them_unless_it_says_more_already():
    for before, after, quiet in (({}, "INFO", True), ({"GRPC_VERBOSITY": "error"}, "INFO", True),
                                 ({"GRPC_VERBOSITY": "debug"}, "debug", False)):  # fmt: skip
        assert prepare(before) is quiet
        assert before["GRPC_VERBOSITY"] == after


def test_other_lines_reach_the_real_stderr():
    code = (
        "import os, sys, time; from aggregator.trust.grpc_log import GrpcLog; g = GrpcLog(True); "
        "g.tell(lambda reason, line: print('told', reason.reason, flush=True)); "
        "print('python', file=sys.stderr); os.write(2, b'native\\n'); "
        f"os.write(2, b'{LINE}WRONG_VERSION_NUMBER\\n'); "
        "os.write(2, b'I1125 15:31:21.944642 4694 noise.cc:1] noise\\n'); "
        "os.write(2, b'E1125 15:31:21.944642 4694 bad.cc:1] bad\\n'); time.sleep(0.5)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stderr.splitlines() == ["python", "native", "E1125 15:31:21.944642 4694 bad.cc:1] bad"]
    assert "told a TLS handshake failed: it did not speak TLS" in done.stdout


# The command line


@pytest.fixture
def run(tmp_path):
    Authority.open(folder_of(tmp_path))

    def run(*arguments, ok=True, env=None):
        done = CliRunner().invoke(main, ["--state", str(tmp_path), *arguments], env=env)
        assert (done.exit_code == 0) is ok, done.output
        return done.output

    return run


def test_a_mistyped_folder_makes_nothing(tmp_path):
    wrong = tmp_path / "none"
    for command in (["token", "create"], ["token", "list"], ["certificate", "list"]):
        done = CliRunner().invoke(main, ["--state", str(wrong), *command])
        assert done.exit_code == 1
        assert "is not the state folder of an aggregator with TLS" in done.output
        assert not wrong.exists()


def test_tokens_are_made_listed_and_revoked(run):
    made = json.loads(run("token", "create", "--name", "clinic-1", "--json"))
    assert made["token"].startswith(f"eaj_{made['id']}_")
    assert (made["role"], made["uses"], made["state"]) == ("node", 1, "valid")
    access = json.loads(run("token", "create", "--role", "viewer", "--expires", "never", "--json"))
    assert access["token"].startswith("eat_")
    assert access["expires"] is None
    join = json.loads(run("token", "create", "--role", "user", "--join", "--uses", "3", "--json"))
    assert join["token"].startswith("eaj_")
    text = run("token", "list")
    assert [line.split()[0] for line in text.splitlines()] == ["token", made["id"], access["id"], join["id"]]
    assert made["token"].split("_")[2] not in text + run("token", "list", "--json")
    run("token", "revoke", made["id"])
    states = {row["id"]: row["state"] for row in json.loads(run("token", "list", "--json"))}
    assert states[made["id"]] == "revoked"
    assert "there is no token" in run("token", "revoke", "nope", ok=False)
    assert "no certificates" in run("certificate", "list")
    assert "no certificate was issued for 'x'" in run("certificate", "revoke", "x", ok=False)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--uses", "2", "--unlimited"], "exclude each other"),
        (["--role", "viewer", "--uses", "2"], "--join"),
        (["--expires", "tomorrow"], "is not a span"),
        (["--expires", "0h"], "is not a span"),
        (["--name", "a/b"], "is not a name"),
        (["--role", "admin"], "is not one of"),
    ],
)
def test_tokens_that_cannot_be(run, flags, says):
    assert says in run("token", "create", *flags, ok=False)


def test_options_are_environment_variables(run, tmp_path):
    env = {"EDGE_AGGREGATOR_TOKEN_CREATE_ROLE": "operator", "EDGE_AGGREGATOR_STATE": str(tmp_path)}
    done = CliRunner().invoke(main, ["token", "create", "--json"], env=env)
    assert json.loads(done.output)["role"] == "operator"
    done = CliRunner().invoke(main, ["token", "list"])
    assert "EDGE_AGGREGATOR_STATE" in done.output


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--tls"], "--tls needs --state"),
        (["--bootstrap", "x"], "without --tls"),
        (
            ["--tls-name", "x", "--certificate-seconds", "5"],
            "--tls-name, --certificate-seconds without --tls",
        ),
        (["--tls", "--state", "x", "--tls-certificate", __file__], "go together"),
        (["--tls", "--state", "x", "--tls-authority", __file__], "give that too"),
        (
            [
                "--tls",
                "--state",
                "x",
                "--tls-certificate",
                __file__,
                "--tls-key",
                __file__,
                "--tls-name",
                "a",
            ],
            "has its own names",
        ),
        (["--tls", "--state", "x", "--tls-name", "a b"], "neither a DNS name"),
    ],
)
def test_options_that_do_not_fit_together(flags, says, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "aggregator.main", *flags],
        capture_output=True, text=True, cwd=tmp_path, timeout=60, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 2
    assert says in done.stderr


def test_whichever_byte_of_the_authority_changes_it_is_named_with_what_to_do(tmp_path):
    made = Authority.open(tmp_path)
    for file in ("authority.pem", "authority.key"):
        path = tmp_path / file
        whole = path.read_bytes()
        refused = 0
        for at in range(0, len(whole), 7):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            try:
                found = Authority.open(tmp_path)
            except (InvalidArgument, FailedPrecondition) as error:
                said = error.message
            else:  # it is of what is between the parts that count
                assert found.certificate == made.certificate
                continue
            refused += 1
            assert str(path) in said
            assert "restore" in said
        assert refused > len(whole) // 7 // 2
        path.write_bytes(whole)
    assert Authority.open(tmp_path).certificate == made.certificate
