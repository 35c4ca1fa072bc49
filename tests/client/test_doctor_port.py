"""What is found at a port, with servers of every kind; what the health service says, as bytes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import datetime
import socket
import ssl
import threading
import time

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2

from edge_attention.doctor.connection_findings import Speaks
from edge_attention.doctor.measure_port import look, readiness, within
from edge_attention.wire import health


@contextlib.contextmanager
def serving(handle):
    """A port where `handle(connection)` is run for each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(connection,), daemon=True).start()

        def one(connection):
            with connection, contextlib.suppress(OSError):
                handle(connection)

        threading.Thread(target=run, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A key and a certificate in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hub")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    file.write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()) + made.public_bytes(pem))
    return file


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    found = look("127.0.0.1", port, 60)
    assert (found.addresses, found.connected, found.refused) == (("127.0.0.1",), "", True)
    assert "refused" in found.problem


def test_a_name_that_is_none():
    found = look("no-such-host.invalid", 1, 60)
    assert found.addresses == ()
    assert found.problem


@pytest.mark.parametrize("tls", [False, True])
def test_a_grpc_server(tls, certificate):
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    data = certificate.read_bytes()
    credentials = grpc.ssl_server_credentials([(data, data[data.index(b"-----BEGIN CERT") :])])
    add = (lambda a: server.add_secure_port(a, credentials)) if tls else server.add_insecure_port
    port = add("127.0.0.1:0")
    server.start()
    try:
        found = look("127.0.0.1", port, 60)
    finally:
        server.stop(None)
    assert (found.speaks, found.http2) == (Speaks.TLS if tls else Speaks.PLAINTEXT, True), found.problem
    assert found.connect_seconds > 0


def test_tls_without_http2(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def handle(connection):
        with context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(1)

    with serving(handle) as port:
        found = look("127.0.0.1", port, 60)
    assert (found.speaks, found.http2) == (Speaks.TLS, False)


def test_an_old_web_server():
    def handle(connection):
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with serving(handle) as port:
        found = look("127.0.0.1", port, 60)
    assert found.speaks is Speaks.OTHER
    assert "HTTP/1.1 400" in found.problem


def test_a_server_that_accepts_and_says_nothing_costs_its_deadline_and_no_more():
    ended = threading.Event()
    with serving(lambda connection: ended.wait(300)) as port:
        began = time.monotonic()
        found = look("127.0.0.1", port, 0.3)
        took = time.monotonic() - began
        ended.set()
    assert found.speaks is Speaks.NOTHING
    assert took < 150
    assert "no answer in time" in found.problem


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("status", [200, 503])
def test_an_http_port_says_whether_it_is_ready(tls, status, certificate):
    asked = []

    def handle(connection):
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            connection = context.wrap_socket(connection, server_side=True)
        with connection:
            asked.append(connection.recv(1000))
            connection.sendall(b"HTTP/1.1 %d Whatever\r\nContent-Length: 0\r\n\r\n" % status)

    with serving(handle) as port:
        found = readiness("127.0.0.1", port, 60)
    assert (found.port, found.status) == (port, status)
    assert asked[-1].startswith(b"GET /readyz ")


def test_an_http_port_that_is_away():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    found = readiness("127.0.0.1", port, 60)
    assert found.status == 0
    assert "refused" in found.problem


def test_a_call_without_a_deadline_gets_one():
    assert within(60, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(60, lambda: 1 / 0)
    wait = threading.Event()
    with pytest.raises(TimeoutError):
        within(0.05, lambda: wait.wait(300))
    wait.set()


@pytest.mark.parametrize("service", ["", "edge_attention.v1.FleetService"])
def test_the_health_service_as_it_is_on_the_wire(service):
    codec = health.CHECK.request
    assert codec.encode(service) == health_pb2.HealthCheckRequest(service=service).SerializeToString()
    assert codec.decode(codec.encode(service)) == service


@pytest.mark.parametrize("status", list(health.Serving))
def test_its_answers(status):
    data = health_pb2.HealthCheckResponse(status=status.value).SerializeToString()
    assert health.CHECK.response.decode(data) is status
    assert health.CHECK.response.encode(status) == data
    assert health_pb2.HealthCheckResponse.ServingStatus.Name(status.value) == status.name


@pytest.mark.parametrize("data", [b"\x08\x09", b"x", b"\x08\x01\x08\x02", b"\x10\x01"])
def test_answers_that_are_none(data):
    assert health.CHECK.response.decode(data) is health.Serving.UNKNOWN
