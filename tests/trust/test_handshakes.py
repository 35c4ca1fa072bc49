"""What `chain.judge` says is what gRPC does: each case is a handshake of gRPC's server with gRPC's client."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pki
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from edge_attention.trust.chain import CertificateFault, judge


def takes(chain, key, trusted, name="localhost"):
    """Whether gRPC's client, which trusts `trusted`, takes a server of gRPC's that shows `chain`."""
    server = grpc.server(ThreadPoolExecutor(1))
    try:
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, pki.pem(*chain))]))
    except RuntimeError:
        return False
    server.start()
    options = (
        ("grpc.ssl_target_name_override", name),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    )
    credentials = grpc.ssl_channel_credentials(pki.pem(*trusted))
    try:
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
            channel.unary_unary("/a/b", None, None)(b"", timeout=180)
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        server.stop(None)
    raise AssertionError("nobody serves that")


def judged(chain, trusted, name="localhost"):
    certificates = [one.certificate for one in chain]
    anchors = [one.certificate for one in trusted]
    trouble = judge(certificates[0], certificates[1:], anchors, name, time.time())
    return None if trouble is None else trouble.fault


def agreed(chain, trusted, fault=None, name="localhost", key=None):
    assert judged(chain, trusted, name) is fault
    assert takes(chain, key or chain[0].key_pem(), trusted, name) is (fault is None)


ROOT, OTHER = pki.authority("Root"), pki.authority("Other root")
RSA_ROOT = pki.authority("RSA root", kind="RSA 2048")
MIDDLE = pki.authority("Middle", ROOT)
LEAF = pki.issue("aggregator", MIDDLE)


@pytest.mark.parametrize(
    ("kind", "server", "root"),
    [
        ("P-224", False, True),
        ("P-256", True, True),
        ("P-384", True, True),
        ("P-521", False, True),
        ("secp256k1", False, False),
        ("brainpoolP256r1", False, False),
        ("Ed25519", False, True),
        ("Ed448", False, False),
        ("RSA 2048", True, True),
        ("RSA 4096", True, True),
        ("DSA", False, False),
    ],
)
def test_kinds_of_keys(kind, server, root):
    unsupported = CertificateFault.UNSUPPORTED_KEY
    agreed([pki.issue("aggregator", ROOT, kind=kind)], [ROOT], None if server else unsupported)
    authority = pki.authority("Root", kind=kind)
    agreed([pki.issue("aggregator", authority)], [authority], None if root else unsupported)


def test_a_short_rsa_key_is_refused_here_since_openssl_serves_the_http_port():
    leaf = pki.issue("aggregator", ROOT, kind="RSA 1024")
    assert judged([leaf], [ROOT]) is CertificateFault.UNSUPPORTED_KEY
    assert takes([leaf], leaf.key_pem(), [ROOT]), "gRPC alone would take it"


@pytest.mark.parametrize("digest", [hashes.SHA224(), hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
@pytest.mark.parametrize("by", [ROOT, RSA_ROOT], ids=["ECDSA", "RSA"])
def test_signatures(by, digest):
    agreed([pki.issue("aggregator", by, digest=digest)], [by])


@pytest.mark.parametrize("by", [ROOT, RSA_ROOT], ids=["ECDSA", "RSA"])
def test_a_signature_of_a_kind_that_tls_does_not_know(by):
    leaf = pki.issue("aggregator", by, digest=hashes.SHA3_256())
    agreed([leaf], [by], CertificateFault.UNSUPPORTED_SIGNATURE)


def test_pss_signatures_are_taken_and_pss_keys_are_not(tmp_path):
    agreed([pki.issue("aggregator", RSA_ROOT, pss=True)], [RSA_ROOT])
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make such a key")
    leaf, key = by_openssl(tmp_path, "sha256", "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048")
    agreed([leaf], [RSA_ROOT], CertificateFault.UNSUPPORTED_KEY, key=key)


def by_openssl(folder, digest, *kind):
    """What RSA_ROOT signs, of a kind that `cryptography` does not make; its key as a file has it."""
    files = {
        "ca.pem": RSA_ROOT.pem(),
        "ca.key": RSA_ROOT.key_pem(),
        "names": b"subjectAltName=DNS:localhost\n",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    for words in (
        f"genpkey {' '.join(kind)} -out leaf.key",
        "req -new -key leaf.key -out leaf.csr -subj /CN=aggregator",
        f"x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -set_serial 7 -out leaf.pem -days 9 -{digest} "
        "-extfile names",
    ):
        done = subprocess.run(["openssl", *words.split()], cwd=folder, capture_output=True, env=os.environ)
        assert done.returncode == 0, done.stderr
    certificate = x509.load_pem_x509_certificate((folder / "leaf.pem").read_bytes())
    data = (folder / "leaf.key").read_bytes()
    return pki.Issued(certificate, serialization.load_pem_private_key(data, None)), data


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make such a signature")
def test_sha1_is_refused_here_since_openssl_serves_the_http_port(tmp_path):
    leaf, key = by_openssl(tmp_path, "sha1", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    assert judged([leaf], [RSA_ROOT]) is CertificateFault.UNSUPPORTED_SIGNATURE
    assert takes([leaf], key, [RSA_ROOT]), "gRPC alone would take it"


SECOND = pki.authority("Second", MIDDLE)


@pytest.mark.parametrize(
    ("chain", "trusted", "fault"),
    [
        ([LEAF, MIDDLE], [ROOT], None),
        ([LEAF, MIDDLE, ROOT], [ROOT], None),
        ([LEAF], [MIDDLE], None),  # an intermediate that is trusted is a root
        ([LEAF], [LEAF], None),
        ([LEAF, MIDDLE], [OTHER, ROOT], None),
        ([pki.issue("x", SECOND), MIDDLE, SECOND], [ROOT], None),  # in any order
        ([LEAF, MIDDLE, OTHER, ROOT], [ROOT], None),
        ([LEAF], [ROOT], CertificateFault.INCOMPLETE),
        ([pki.issue("x", SECOND), SECOND], [ROOT], CertificateFault.WRONG_AUTHORITY),
        ([LEAF, MIDDLE], [OTHER], CertificateFault.WRONG_AUTHORITY),
        ([LEAF, MIDDLE, ROOT], [OTHER], CertificateFault.WRONG_AUTHORITY),
        ([LEAF, MIDDLE], [pki.authority("Root")], CertificateFault.WRONG_AUTHORITY),  # of the same name
        ([pki.issue("self")], [ROOT], CertificateFault.WRONG_AUTHORITY),
    ],
)
def test_chains(chain, trusted, fault):
    agreed(chain, trusted, fault)


OLD, NEW = (-30, -1), (1, 30)


@pytest.mark.parametrize(
    ("days", "fault"),
    [(OLD, CertificateFault.EXPIRED), (NEW, CertificateFault.NOT_YET_VALID)],
    ids=["expired", "not yet valid"],
)
def test_dates_of_each_certificate_count(days, fault):
    agreed([pki.issue("aggregator", ROOT, days=days)], [ROOT], fault)
    middle = pki.authority("Middle", ROOT, days=days)
    agreed([pki.issue("aggregator", middle), middle], [ROOT], fault)
    root = pki.authority("Root", days=days)
    agreed([pki.issue("aggregator", root)], [root], fault)


def test_of_two_authorities_of_one_name_the_first_shown_counts():
    ended = pki.authority("Middle", ROOT, key=MIDDLE.key, days=OLD)
    agreed([LEAF, ended, MIDDLE], [ROOT], CertificateFault.EXPIRED)
    agreed([LEAF, MIDDLE, ended], [ROOT])


def below(count, **options):
    """A chain with `count` intermediates under one that is made with `options`, which ROOT has signed."""
    chain = [pki.authority("Top", ROOT, **options)]
    for number in range(count):
        chain.insert(0, pki.authority(f"Below {number}", chain[0]))
    return [pki.issue("aggregator", chain[0]), *chain]


@pytest.mark.parametrize(
    ("chain", "fault"),
    [
        (below(1), None),
        (below(0, path_length=0), None),
        (below(1, path_length=1), None),
        (below(1, path_length=0), CertificateFault.WRONG_USE),
        (below(0, extended=(pki.SERVER, pki.CLIENT)), None),
        (below(0, extended=(pki.CLIENT,)), CertificateFault.WRONG_USE),
        (below(0, key_usage=pki.usage()), CertificateFault.WRONG_USE),
        (below(0, constraints=False), CertificateFault.WRONG_USE),
        ([pki.issue("x", MIDDLE, extended=(pki.SERVER,)), MIDDLE], None),
        ([pki.issue("x", MIDDLE, extended=(pki.CLIENT,)), MIDDLE], CertificateFault.WRONG_USE),
        ([pki.issue("x", MIDDLE, extended=(pki.ANY,)), MIDDLE], CertificateFault.WRONG_USE),
        ([pki.issue("x", MIDDLE, key_usage=pki.usage()), MIDDLE], None),
        ([pki.issue("x", MIDDLE, key_usage=pki.usage(signs=False)), MIDDLE], CertificateFault.WRONG_USE),
        (
            [pki.issue("x", MIDDLE, kind="RSA 2048", key_usage=pki.usage(signs=False)), MIDDLE],
            CertificateFault.WRONG_USE,
        ),
        ([pki.issue("x", i := pki.issue("no authority", ROOT)), i], CertificateFault.WRONG_USE),
    ],
)
def test_what_a_certificate_is_for(chain, fault):
    agreed(chain, [ROOT], fault)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"path_length": 0}, None),  # what a root says of those below it nobody asks
        ({"constraints": False}, None),
        ({"key_usage": pki.usage()}, CertificateFault.WRONG_USE),
        ({"extended": (pki.CLIENT,)}, None),
    ],
    ids=str,
)
def test_what_a_root_is_for(options, fault):
    root = pki.authority("Root", **options)
    middle = pki.authority("Middle", root)
    agreed([pki.issue("x", middle), middle], [root], fault)
    agreed([pki.issue("x", root)], [root], fault)


@pytest.mark.parametrize(
    ("names", "wanted", "fault"),
    [
        (("agg.example",), "agg.example", None),
        (("agg.example",), "AGG.example", None),
        (("agg.example",), "other.example", CertificateFault.WRONG_NAME),
        (("*.example.com",), "a.example.com", None),
        (("*.example.com",), "a.b.example.com", CertificateFault.WRONG_NAME),
        (("*.example.com",), "example.com", CertificateFault.WRONG_NAME),
        (("10.1.2.3",), "10.1.2.3", None),
        (("10.1.2.3",), "10.1.2.4", CertificateFault.WRONG_NAME),
        (("::1",), "::1", None),
        ((), "localhost", None),  # its common name, since it has no other
        ((), "elsewhere.example", CertificateFault.WRONG_NAME),
    ],
)
def test_names(names, wanted, fault):
    agreed([pki.issue("localhost", ROOT, names=names)], [ROOT], fault, wanted)
