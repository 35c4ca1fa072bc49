"""`make test-arm64`: an arm64 node answers an attend, on whatever processor this is.

    python3 -m tests.arm64 [--as image|process|wheels]

As far as this machine lets it, and it says why not further: the edge image built for arm64 and run; else the
node's process with Debian's Python and the wheels for arm64, emulated; else the wheels for arm64 resolved.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tests.arm64 import answer, emulation, packages
from tests.compose import base, engine
from tests.compose.console import Failed, complain, run, say, tail
from tests.compose.fleet import HARDENED, ROOT

NODE = "pi"
IMAGE = "edge-attention/edge-node:arm64"
FLAGS = ["--name", NODE, "--threads", "2", "--memory-limit", "256MB"]


def as_image(folder: Path) -> None:
    """The edge image, built for arm64 from deploy/edge.Dockerfile, runs and answers"""
    with emulation.Handler(), engine.Engine() as docker:
        file = packages.image_base(folder / "base")
        # Without --platform: the builder of old engines labels what it builds for its own processor, and
        # would then not find it again. What the image is for, the Python in it says.
        docker.docker("import", file, base.DEBIAN, deadline=300)
        say("  building the image: apt and pip run emulated, this takes minutes")
        words = ["--network=host", "--file", ROOT / "deploy/edge.Dockerfile", "--tag", IMAGE]
        docker.docker("build", *words, ROOT, deadline=2400)
        above = base.image_bytes(docker, IMAGE) - base.image_bytes(docker, base.DEBIAN)
        say(f"  {IMAGE}: {above / 1e6:.0f} MB above its base")
        shell = ["docker", "run", "--network=host", *HARDENED, "--tmpfs=/tmp"]
        python = [*shell, "--rm", "--entrypoint=/opt/edge-attention/bin/python", IMAGE]
        say(f"  in it: {answer.machine_of(python, env=docker.env)}")
        with answer.aggregator(folder) as host:
            words = ["--detach", "--name", NODE, "--env", f"EDGE_NODE_JOIN_TOKEN={host.join_token}"]
            run([*shell, *words, IMAGE, "--aggregator", host.address, *FLAGS], env=docker.env)
            try:
                answer.must_answer(host, NODE, 900)
                docker.docker("stop", "--time=60", NODE, deadline=90)
                code = docker.docker("inspect", "--format", "{{.State.ExitCode}}", NODE).strip()
                if code != "0":
                    raise Failed(f"after SIGTERM the node ended with {code}")
            except BaseException:
                say(f"the node said:\n{tail(docker.docker('logs', NODE, check=False))}")
                raise


def as_process(folder: Path) -> None:
    """The node's own process, with Debian's Python and the wheels for arm64, runs and answers"""
    emulator = emulation.qemu()
    root = packages.python_files(folder / "root")
    site = folder / "site"
    packages.unpack(packages.resolve_wheels(), site)
    python = [str(root / "usr/bin/python3")]
    if emulator and not emulation.native():
        emulation.write_cpuinfo(root)
        python = [str(emulator), "-L", str(root), *python]
    env = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    say(f"  emulated: {answer.machine_of(python, env=env)}")
    with answer.aggregator(folder) as host:
        start = "from edge_node.main import main; main()"
        words = [
            "--aggregator",
            host.address,
            "--join-token",
            host.join_token,
            "--store",
            str(folder / "store"),
        ]
        with answer.process([*python, "-c", start, *words, *FLAGS], folder, env):
            answer.must_answer(host, NODE, 900)


def as_wheels(folder: Path) -> None:
    """Every package of a node resolves to a wheel for arm64"""
    packages.resolve_wheels()


def _no_image() -> str | None:
    return packages.lacking() or emulation.Handler.lacking() or engine.lacking()


def _no_process() -> str | None:
    if emulation.qemu() is None and not emulation.native():
        return "this machine lacks qemu-aarch64-static, of the package qemu-user-static"
    return packages.lacking()


Way = tuple[Callable[[], str | None], Callable[[Path], None]]
WAYS: dict[str, Way] = {
    "image": (_no_image, as_image),
    "process": (_no_process, as_process),
    "wheels": (lambda: None, as_wheels),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.arm64", description=__doc__)
    parser.add_argument("--as", dest="way", choices=WAYS, help="this way and no other")
    asked = parser.parse_args().way
    signal.signal(signal.SIGTERM, _interrupt)
    for way in [asked] if asked else WAYS:
        lacking, test = WAYS[way]
        why = lacking()
        if why:
            say(f"not as {way}: {why}")
            continue
        say(f"{test.__doc__}; packages are kept in {packages.cache_folder()}")
        with tempfile.TemporaryDirectory(prefix="edge-arm64-") as folder:
            try:
                test(Path(folder))
            except Failed as error:
                complain(f"FAILED: {test.__doc__}\n{error}")
                print("0 passed, 1 failed")
                return 1
            except KeyboardInterrupt:
                complain("interrupted; what was started has been ended")
                return 130
        print("1 passed, 0 failed")
        return 0
    print("0 passed, 0 failed, 1 skipped")
    return 0


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
