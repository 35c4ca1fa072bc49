"""A Docker engine of the test's own: data, sockets and processes live in one folder and end with the test.

It stands beside an engine that runs on the machine already and shares nothing with it: no image, volume,
network or setting of the operator's is touched. The firewall is left alone (no iptables rules, no
forwarding): containers reach each other over their bridge, the machine through docker-proxy, and images are
built on the host's network.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.compose.console import Failed, run, say, tail, wait_for

PROGRAMS = {
    "dockerd": "docker.io (Debian, Ubuntu) or docker-ce",
    "docker": "docker.io or docker-ce-cli",
    "debootstrap": "debootstrap",
}


def lacking() -> str | None:
    """Why no engine can be started here, with the remedy; None if one can."""
    missing = {name: package for name, package in PROGRAMS.items() if not shutil.which(name)}
    if missing:
        listed = "; ".join(f"{name}, of the package {package}" for name, package in missing.items())
        return f"this machine lacks {listed}"
    if not compose_command():
        return "this machine lacks Compose: install docker-compose-plugin, or Debian's docker-compose"
    if os.geteuid() != 0:
        return "starting an engine and debootstrap need root: run `sudo make test-compose`"
    return None


def compose_command() -> list[str] | None:
    """`docker compose` (v2) where there is one, else Debian's `docker-compose` (v1)."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version"], capture_output=True, timeout=120)
            if done.returncode == 0:
                return command
    return None


class Unavailable(Exception):
    """No engine runs on this machine; the text says why."""


def _end_with_parent() -> None:
    """In dockerd, before it starts: it is told to end should the test be killed (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Engine:
    """`with Engine() as engine`: a running dockerd, reached through `engine.env`. Raises Unavailable."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="edge-compose-"))
        self.log = self.folder / "dockerd.log"
        self.env = {
            "DOCKER_HOST": f"unix://{self.folder / 'docker.sock'}",
            "DOCKER_CONFIG": str(self.folder / "config"),  # no credentials and no context of the operator's
        }
        # Plugins the operator installed for himself (compose, buildx) are still found.
        plugins = Path(os.environ.get("DOCKER_CONFIG", Path.home() / ".docker")) / "cli-plugins"
        (self.folder / "config").mkdir()
        if plugins.is_dir():
            (self.folder / "config" / "cli-plugins").symlink_to(plugins)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Engine:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        command = [
            "dockerd",
            f"--host={self.env['DOCKER_HOST']}",
            f"--data-root={self.folder / 'data'}",
            f"--exec-root={self.folder / 'exec'}",
            f"--pidfile={self.folder / 'docker.pid'}",
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
            "--ip-masq=false",
            "--shutdown-timeout=20",
        ]
        with self.log.open("wb") as log:
            # A session of its own: Ctrl-C reaches the test, which then ends what it started in order.
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, preexec_fn=_end_with_parent
            )
        process = self._process

        def answers() -> str | None:
            if process.poll() is not None:
                said = tail(self.log.read_text(errors="replace"), 10)
                raise Unavailable(f"dockerd ended with {process.returncode}, after it said\n{said}")
            return self.docker("info", "--format", "{{.Driver}} {{.ServerVersion}}", deadline=10).strip()

        driver, version = wait_for("the engine to answer", answers, 600).split()[-2:]
        say(f"engine {version} runs in {self.folder} (storage: {driver}, process {process.pid})")

    def docker(self, *words: str | Path, deadline: float = 120, check: bool = True) -> str:
        return run(["docker", *words], deadline=deadline, env=self.env, check=check)

    def has_image(self, image: str) -> bool:
        return bool(self.docker("images", "--quiet", image).strip())

    def stop(self) -> None:
        """Ends every container, the engine, and removes its folder."""
        process = self._process
        if process and process.poll() is None:
            with contextlib.suppress(Failed, OSError):
                left = self.docker("ps", "--quiet", deadline=20).split()
                if left:
                    self.docker("kill", *left, deadline=30)
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                say(f"the engine did not end within 120 s; killing process {process.pid} and what it started")
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(60)
        for _ in range(3):
            self._unmount()
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self.folder.exists():
                return
            time.sleep(1)
        say(f"could not remove all of {self.folder}; it can go")

    def _unmount(self) -> None:
        """What a killed engine leaves mounted below its folder."""
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            point = line.split()[1].encode().decode("unicode_escape")
            if point.startswith(f"{self.folder}/"):
                subprocess.run(["umount", "--lazy", point], capture_output=True)
