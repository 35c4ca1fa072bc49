"""The operator's files as people have them: keys of every form, text around, containers of other kinds."""

from __future__ import annotations

import contextlib
import random
import time

import pki
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12
from operators_house import (
    LEAF,
    MIDDLE,
    MIDDLE_2,
    OTHER,
    ROOT,
    Files,
    connects,
    served,
)

from aggregator.main import main
from aggregator.trust.operators_certificate import OperatorsCertificate, OperatorsFiles
from aggregator.trust.operators_files import Passphrase, read_chain, read_key
from edge_attention.core.errors import EdgeAttentionError


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.mark.parametrize("kind", ["P-256", "P-384", "RSA 2048"])
@pytest.mark.parametrize("passphrase", [None, b"open sesame"])
@pytest.mark.parametrize("form", [pki.PKCS8, pki.TRADITIONAL], ids=["PKCS8", "traditional"])
@pytest.mark.parametrize(
    "encoding", [serialization.Encoding.PEM, serialization.Encoding.DER], ids=["PEM", "DER"]
)
def test_keys_of_every_form(files, kind, passphrase, form, encoding):
    leaf = pki.issue("aggregator", MIDDLE, kind=kind)
    how = serialization.NoEncryption()
    if passphrase is not None:
        how = serialization.BestAvailableEncryption(passphrase)
    if encoding is serialization.Encoding.DER and passphrase is not None:
        form = pki.PKCS8  # there is no other
    data = leaf.key.private_bytes(encoding, form, how)
    given = Passphrase(passphrase.decode() if passphrase else None)
    own = files.open([leaf, MIDDLE], data, [ROOT], passphrase=given)
    assert served(own, lambda address: connects(address, own.authorities)) is None
    assert b"PRIVATE" not in b"".join(path.read_bytes() for path in files.trust.iterdir())
    if passphrase is None:
        return
    assert "is encrypted: give its passphrase in a file" in files.refused([leaf, MIDDLE], data, [ROOT])
    wrong = Passphrase("wrong")
    assert "does not open with" in files.refused([leaf, MIDDLE], data, [ROOT], passphrase=wrong)


def test_a_passphrase_from_a_file(files):
    path = files.folder / "passphrase"
    path.write_text("open sesame\n")
    key = LEAF.key_pem(passphrase=b"open sesame")
    given = Passphrase(file=path)
    own = files.open([LEAF, MIDDLE], key, [ROOT], passphrase=given)
    path.write_text("wrong\n")
    said = files.refused([LEAF, MIDDLE], key, [ROOT], passphrase=given)
    assert "does not open with the passphrase" in said
    assert "wrong" not in said, "it is not repeated"
    for nothing in ("", "\n"):
        path.write_text(nothing)
        said = files.refused([LEAF, MIDDLE], key, [ROOT], passphrase=given)
        assert f"the passphrase file {path} is empty" in said
    path.unlink()
    assert "cannot be read" in files.refused([LEAF, MIDDLE], key, [ROOT], passphrase=given)
    renewed = pki.issue("aggregator", MIDDLE_2)
    path.write_text("another\r\n")
    files.write([renewed, MIDDLE_2], renewed.key_pem(passphrase=b"another"), [ROOT])
    own._files = OperatorsFiles(files.folder / "chain.pem", files.folder / "key.pem", None, given)
    assert own.keep(), "a passphrase that is renewed with the key is read again"


def test_a_passphrase_of_any_bytes_from_the_environment(files):
    given = Passphrase(b"\xff\xfe".decode("utf-8", "surrogateescape"))  # as os.environ has them
    key = LEAF.key_pem(passphrase=b"\xff\xfe")
    assert files.open([LEAF, MIDDLE], key, [ROOT], passphrase=given)


def test_a_file_that_is_being_written_is_no_smaller_bundle(files):
    """The second root is half there: with the first alone the tokens of both would be made anew."""
    bundle = pki.pem(ROOT, OTHER)
    said = files.refused([LEAF, MIDDLE], None, bundle[: len(ROOT.pem()) + 200])
    assert "authority.pem: certificate 2 of 2 is damaged or cut off: copy the file again" in said


def test_certificates_that_do_not_end_are_looked_for_in_a_time_like_the_file_s_length(files):
    many = b"-----BEGIN CERTIFICATE-----\n" * 50_000, b"-----BEGIN PRIVATE KEY-----\n" * 50_000
    began = time.process_time()
    assert "certificate 3 of 50002" in files.refused(pki.pem(LEAF, MIDDLE) + many[0], LEAF.key_pem(), [ROOT])
    assert "no private key" in files.refused([LEAF, MIDDLE], many[1], [ROOT])
    assert time.process_time() - began < 60, "minutes, if each looked to the file's end"


def text_around(data):
    return (
        b"\xef\xbb\xbfBag Attributes\r\n  friendlyName: x\r\n"
        + data.replace(b"\n", b"\r\n")
        + b"\r\n# end\r\n"
    )


def test_text_around_and_other_ends_of_lines(files):
    own = files.open(text_around(pki.pem(LEAF, MIDDLE)), text_around(LEAF.key_pem()), text_around(ROOT.pem()))
    assert served(own, lambda address: connects(address, own.authorities)) is None
    der = LEAF.certificate.public_bytes(serialization.Encoding.DER)
    assert files.open(der, LEAF.key_pem(), [MIDDLE, ROOT]).certificate == LEAF.certificate
    both = LEAF.key_pem() + pki.pem(LEAF, MIDDLE)
    assert files.open(both, both, [ROOT]).certificate == LEAF.certificate
    curve = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    assert files.open([LEAF, MIDDLE], curve + LEAF.key_pem(pki.TRADITIONAL), [ROOT])


def test_files_that_are_something_else_are_said_to_be_so(files):
    container = pkcs12.serialize_key_and_certificates(
        b"x", LEAF.key, LEAF.certificate, None, serialization.BestAvailableEncryption(b"x")
    )
    chain, key = pki.pem(LEAF, MIDDLE), LEAF.key_pem()
    cases = [
        (key, chain, "are --tls-certificate and --tls-key swapped?"),
        (chain, chain, "are --tls-certificate and --tls-key swapped?"),
        (key, key, "are --tls-certificate and --tls-key swapped?"),
        (container, key, "is PKCS#12 (.p12, .pfx); convert it: openssl pkcs12"),
        (chain, container, "is PKCS#12 (.p12, .pfx); convert it: openssl pkcs12"),
        (b"nonsense", key, "holds no certificate in PEM"),
        (chain, b"nonsense", "holds no private key in PEM or DER"),
        (b"", key, "holds no certificate in PEM"),
        (chain, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "is damaged"),
        (chain[:300] + chain[340:], key, "certificate 1 of 2 is damaged"),
        (chain[:-40], key, "certificate 2 of 2 is damaged or cut off"),
        (chain[:300] + chain, key, "certificate 1 of 3 is damaged or cut off"),
        (b"-----BEGIN PKCS7-----\nAAAA\n-----END PKCS7-----\n", key, "it is PKCS#7; convert it"),
        (pki.pem(MIDDLE), key, "does not fit"),
        (chain, OTHER.key_pem(), "does not fit"),
    ]
    for chain_data, key_data, says in cases:
        assert says in files.refused(chain_data, key_data, [ROOT]), says
    assert "--tls-authority swapped" in files.refused(ROOT.pem(), key, [LEAF, MIDDLE])
    openssh = LEAF.key.private_bytes(
        pki.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    assert "is a key of OpenSSH" in files.refused(chain, openssh, [ROOT])
    gone = OperatorsFiles(files.folder / "none.pem", files.folder / "key.pem")
    files.write([LEAF, MIDDLE])
    with pytest.raises(EdgeAttentionError, match=r"none\.pem cannot be read: No such file"):
        OperatorsCertificate(files.trust, gone)


def test_any_bytes_are_one_error_of_ours(files):
    good = pki.pem(LEAF, MIDDLE)
    path = files.folder / "any"
    for seed in range(300):
        random_of = random.Random(seed)
        data = bytearray(random_of.choice([good, LEAF.key_pem(), LEAF.key_pem(passphrase=b"x")]))
        for _ in range(random_of.randrange(1, 8)):
            data[random_of.randrange(len(data))] = random_of.randrange(256)
        path.write_bytes(data)
        for read in (read_chain, lambda path: read_key(path, Passphrase("x"))):
            with contextlib.suppress(EdgeAttentionError):
                read(path)


def test_a_passphrase_is_not_in_what_is_printed_of_the_settings(files):
    given = files.write([LEAF, MIDDLE], passphrase=Passphrase("open sesame"))
    assert "open sesame" not in repr(given)
    assert given.passphrase.read() == b"open sesame"


def run(state, *flags):
    """What `edge-aggregator` says as it refuses to start; the code it ends with."""
    done = CliRunner().invoke(
        main, ["--state", str(state), "--tls", "--listen", "127.0.0.1:0", *map(str, flags)]
    )
    return done.output, done.exit_code


def test_options_that_do_not_fit_together(files):
    given = files.write([LEAF, MIDDLE], authority=[ROOT])
    own = ("--tls-certificate", given.certificate, "--tls-key", given.key)
    words = files.folder / "words"
    words.write_text("x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_AGGREGATOR_TLS_KEY_PASSPHRASE", "x")
        said, code = run(files.folder, *own, "--tls-key-passphrase-file", words)
        assert code == 2
        assert "are two passphrases: give one" in said
        said, code = run(files.folder)
        assert code == 2
        assert "a passphrase is of the operator's own --tls-key" in said
    said, code = run(files.folder, *own, "--tls-key-passphrase", "x")
    assert code == 2
    assert "other users of this machine can read a command line" in said
