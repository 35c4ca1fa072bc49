"""`make test-compose`: the images and Compose files on a real engine, from nothing, without a registry.

    python3 -m tests.compose [--only-images]

Ends with 0 if every step did what it must, or this machine cannot run an engine and the reason is printed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType

from tests.compose import steps
from tests.compose.base import cache_folder
from tests.compose.console import Failed, complain, say, tail
from tests.compose.engine import Engine, Unavailable, lacking
from tests.compose.world import World


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.compose", description=__doc__)
    parser.add_argument("--only-images", action="store_true", help="build and look at the images, no more")
    options = parser.parse_args()
    why = lacking()
    if why:
        return _not_run(why)
    signal.signal(signal.SIGTERM, _interrupt)
    say(f"bases are kept in {cache_folder()}")
    try:
        with Engine() as engine:
            return _run(World(engine), steps.STEPS[:4] if options.only_images else steps.STEPS)
    except Unavailable as error:
        return _not_run(str(error))


def _not_run(why: str) -> int:
    print(f"test-compose was not run: {why}")
    print("0 passed, 0 failed, 1 skipped")
    return 0


def _run(world: World, todo: list[Callable[[World], None]]) -> int:
    passed, step = 0, todo[0]
    try:
        for number, step in enumerate(todo, start=1):
            say(f"{number}/{len(todo)} {step.__doc__}")
            began = time.monotonic()
            step(world)
            passed += 1
            say(f"  ok ({time.monotonic() - began:.0f} s)")
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except Exception as error:
        said = str(error) if isinstance(error, Failed) else traceback.format_exc()
        complain(f"FAILED: {step.__doc__}\n{said}")
        _explain(world)
        print(f"{passed} passed, 1 failed")
        return 1
    finally:
        # Once is enough: a second Ctrl-C must not leave anything behind.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        say("ending what was started")
        steps.clean(world)
    print(f"{passed} passed, 0 failed")
    return 0


def _explain(world: World) -> None:
    """What a person would look at first."""
    for project in (world.fleet, world.box):
        if (project.folder / "docker-compose.yml").exists():
            complain(f"--- {project.name}\n{project('ps', check=False)}\n{project.logs()}")
    complain(f"--- engine\n{tail(world.engine.log.read_text(errors='replace'), 15)}")


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
