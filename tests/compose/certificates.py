"""An operator's own authority and server certificate, as files for deploy/compose.secrets.yml."""

from __future__ import annotations

import os
from pathlib import Path

from tests.compose.console import run

GROUP = 10001


def make_certificates(folder: Path, *names: str) -> None:
    """authority.pem, server.pem and server.key in `folder`; the certificate is for `names`. By openssl."""
    folder.mkdir()
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    authority = ["-out", f"{folder}/authority.pem", "-keyout", f"{folder}/authority.key"]
    run(["openssl", "req", "-x509", *key, *authority, "-subj", "/CN=An operator", "-days", "2"])
    request = ["-out", f"{folder}/request", "-keyout", f"{folder}/server.key"]
    run(["openssl", "req", *key, *request, "-subj", f"/CN={names[0]}"])
    extensions = folder / "extensions"
    extensions.write_text(
        f"subjectAltName={','.join(f'DNS:{name}' for name in names)}\nextendedKeyUsage=serverAuth\n"
    )
    signer = ["-CA", f"{folder}/authority.pem", "-CAkey", f"{folder}/authority.key", "-CAcreateserial"]
    made = ["-in", f"{folder}/request", "-extfile", str(extensions), "-out", f"{folder}/server.pem"]
    run(["openssl", "x509", "-req", *signer, *made, "-days", "1"])
    for file in ("authority.pem", "server.pem", "server.key"):
        write_secret(folder / file, (folder / file).read_text())


def write_secret(file: Path, text: str) -> None:
    """Readable for the containers' group, and for nobody else."""
    file.write_text(text)
    os.chown(file, -1, GROUP)
    file.chmod(0o640)
