"""What a node needs, for arm64: wheels from the package index, Debian by debootstrap. They are kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from tests.arm64 import emulation
from tests.compose import base
from tests.compose.console import Failed, run, say
from tests.compose.fleet import ROOT

PYTHON = "3.11"
"""Debian bookworm's, and Raspberry Pi OS' of the same year."""
PLATFORMS = (
    "manylinux_2_28_aarch64",
    "manylinux_2_27_aarch64",
    "manylinux_2_17_aarch64",
    "manylinux2014_aarch64",
)
"""What a glibc of 2.28 or newer runs. pip takes this list as it stands and derives none."""


def cache_folder() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "edge-attention" / "arm64"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def requirements() -> list[str]:
    listed: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return listed


def resolve_wheels() -> list[Path]:
    """Wheels for arm64 of everything a node needs, compiled ones included: nothing is built on a box."""
    folder = cache_folder() / "wheels"
    words = [
        "--only-binary=:all:",
        "--implementation=cp",
        f"--python-version={PYTHON}",
        "--dest",
        str(folder),
    ]
    words += [f"--platform={name}" for name in PLATFORMS]
    words += [f"--abi={name}" for name in (f"cp{PYTHON.replace('.', '')}", "abi3", "none")]
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run([*pip, "download", *words, *requirements()], deadline=600)
    wheels = sorted(folder.glob("*.whl"))
    compiled = [wheel for wheel in wheels if wheel.stem.endswith("aarch64")]
    if len(compiled) < 4:
        raise Failed(
            f"of {len(wheels)} wheels only {len(compiled)} are for arm64: {[w.name for w in wheels]}"
        )
    for wheel in compiled:
        say(f"  {wheel.name} ({wheel.stat().st_size / 1e6:.1f} MB)")
    size = sum(wheel.stat().st_size for wheel in wheels)
    say(f"  and {len(wheels) - len(compiled)} that run anywhere; {size / 1e6:.0f} MB in all")
    return wheels


def unpack(wheels: list[Path], folder: Path) -> None:
    """The wheels, and ours, as pip would lay them out."""
    own = folder.parent / "own"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run([*pip, "wheel", "--no-deps", "--wheel-dir", own, ROOT], deadline=300)
    for wheel in [*wheels, *own.glob("*.whl")]:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)


def lacking() -> str | None:
    """Why Debian for arm64 cannot be had here, with the remedy; None if it can."""
    if not shutil.which("debootstrap"):
        return "this machine lacks debootstrap, of the package debootstrap"
    if os.geteuid() != 0:
        return "debootstrap needs root: run `sudo make test-arm64`"
    return None


def python_files(folder: Path) -> Path:
    """Files of Debian's packages for arm64, Python among them, not set up: enough to run it from outside."""
    file = cache_folder() / f"{base.SUITE}-python.tar"
    if not file.exists():
        say(f"  fetching Debian's Python for arm64 (once; kept as {file})")
        _debootstrap(folder, "--foreign", "--include=python3")
        if (folder / "proc").is_symlink():  # to /proc, until packages are set up
            (folder / "proc").unlink()
            (folder / "proc").mkdir()
        for package in (folder / "var/cache/apt/archives").glob("*.deb"):
            with subprocess.Popen(
                ["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE
            ) as unpacked:
                tar = ["tar", "-C", folder, "--keep-directory-symlink", "-xf", "-"]
                subprocess.run(tar, stdin=unpacked.stdout, check=True, timeout=60)
        _pack(folder, file)
    else:
        folder.mkdir(parents=True)
        run(["tar", "-C", folder, "-xf", file])
    return folder


def image_base(folder: Path) -> Path:
    """A tar file of DEBIAN for arm64. Needs a kernel that runs arm64 programs, for the packages' scripts."""
    file = cache_folder() / f"{base.SUITE}-slim.tar"
    if not file.exists():
        say(f"  building {base.DEBIAN} for arm64 by debootstrap, which takes minutes (once; kept as {file})")
        _debootstrap(folder, "--include=ca-certificates")
        _settle(folder)
        _pack(folder, file)
    return file


def _debootstrap(folder: Path, *options: str) -> None:
    mirror, _ = base.mirrors()
    key = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    keyring = [f"--keyring={key}"] if key.exists() else []
    command = ["debootstrap", "--arch=arm64", "--variant=minbase", *options, *keyring]
    run([*command, base.SUITE, folder, mirror], deadline=1800)


def _settle(folder: Path) -> None:
    """What makes it an image's base: this machine's way to its package registries, as for tests/compose."""
    mirror, security = base.mirrors()
    (folder / "etc/dpkg/dpkg.cfg.d/docker").write_text(base.SLIM)
    suites = (f"{mirror} {base.SUITE}", f"{mirror} {base.SUITE}-updates", f"{security} {base.SUITE}-security")
    (folder / "etc/apt/sources.list").write_text("".join(f"deb {suite} main\n" for suite in suites))
    base.apt_settings(folder / "etc/apt/apt.conf.d/90machine")
    base.certificates(folder)
    base.pip_settings(folder / "etc/pip.conf")
    if not emulation.native():
        emulation.write_cpuinfo(folder)


def _pack(folder: Path, file: Path) -> None:
    for pattern in ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*_*"):
        for path in folder.glob(pattern):
            path.unlink()
    part = file.with_suffix(".tmp")
    subprocess.run(["tar", "--numeric-owner", "-C", folder, "-cf", part, "."], check=True)
    part.rename(file)
