"""A Debian box whose first process is systemd: a folder made by debootstrap, booted by systemd-nspawn."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.compose import base
from tests.compose.console import Failed, run, say, tail, wait_for
from tests.compose.fleet import ROOT

PACKAGES = "systemd,systemd-sysv,dbus,libnss-systemd,sudo,python3,python3-venv,ca-certificates,iproute2"
WHEELS = "root/wheels"


def lacking() -> str | None:
    """Why no box can be booted here, with the remedy; None if one can."""
    for program, package in (("systemd-nspawn", "systemd-container"), ("debootstrap", "debootstrap")):
        if not shutil.which(program):
            return f"this machine lacks {program}, of the package {package}"
    if os.geteuid() != 0:
        return "debootstrap and systemd-nspawn need root: run `sudo make test-systemd`"
    if not os.access("/sys/fs/cgroup", os.W_OK):
        return "the control groups of this machine (/sys/fs/cgroup) are read-only, so no box can boot"
    return None


def cache_folder() -> Path:
    folder = base.cache_folder().parent / "systemd"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Box:
    """`with Box(folder) as box:` a booted Debian without a network beyond its loopback."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "box"
        self.log = folder / "boot.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> Box:
        file = cache_folder() / f"{base.SUITE}-{base.architecture()}.tar"
        if file.exists():
            self.root.mkdir()
            run(["tar", "-C", self.root, "-xf", file], deadline=180)
        else:
            say(f"  building Debian with systemd by debootstrap (once; kept as {file})")
            mirror, _ = base.mirrors()
            run(
                ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", base.SUITE, self.root, mirror],
                deadline=1200,
            )
            for package in self.root.glob("var/cache/apt/archives/*.deb"):
                package.unlink()
            part = file.with_suffix(".tmp")
            run(["tar", "--numeric-owner", "-C", self.root, "-cf", part, "."], deadline=180)
            part.rename(file)
        try:
            self._bring_wheels()
            self._boot()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _bring_wheels(self) -> None:
        """The box has no network: its pip finds what it installs in a folder."""
        folder = self.root / WHEELS
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, ROOT], deadline=300)
        (own,) = folder.glob("edge_attention-*.whl")
        python = ["--only-binary=:all:", "--implementation=cp", "--python-version=3.11"]
        machine = os.uname().machine
        python += [
            f"--platform={name}_{machine}" for name in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")
        ]
        python += [f"--platform=manylinux_2_27_{machine}", "--abi=cp311", "--abi=abi3", "--abi=none"]
        run([*pip, "download", *python, "--dest", folder, f"{own}[aggregator]"], deadline=600)
        (self.root / "etc/pip.conf").write_text(f"[global]\nno-index = true\nfind-links = /{WHEELS}\n")

    def _boot(self) -> None:
        command = ["systemd-nspawn", "--quiet", f"--directory={self.root}", "--boot", "--private-network"]
        # nspawn's own list of calls is older than these; what a unit makes of them is to be seen.
        command += ["--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--register=no", "--keep-unit", "--console=pipe"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

        def up() -> bool:
            assert self._process
            if self._process.poll() is not None:
                raise SystemExit(f"the box did not boot:\n{tail(self.log.read_text(errors='replace'))}")
            found = run(["pgrep", "--parent", str(self._process.pid), "systemd"], check=False).split()
            self._init = int(found[0]) if found else 0
            return bool(found) and self("systemctl is-system-running", check=False).strip() in (
                "running",
                "degraded",
            )

        wait_for("the box to boot", up, 600)

    def __call__(self, command: str, *, deadline: float = 120, check: bool = True) -> str:
        """Runs a line of shell in the box, as root; what it printed."""
        enter = [
            "nsenter",
            f"--target={self._init}",
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            "--net",
            "--cgroup",
        ]
        shell = [
            "env",
            "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/root",
            "bash",
            "-euo",
            "pipefail",
            "-c",
        ]
        return run([*enter, *shell, command], deadline=deadline, check=check)

    def stop(self) -> None:
        process = self._process
        if process and process.poll() is None:
            process.send_signal(signal.SIGTERM)  # nspawn halts the box, and then ends
            try:
                process.wait(180)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(60)
        if self._init and Path(f"/proc/{self._init}").exists():
            raise Failed(f"process {self._init}, the box's first, has not ended")
