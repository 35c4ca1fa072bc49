"""`make test-compose`: the images and Compose files on a real engine, from nothing, without a registry.

    python3 -m tests.compose [--only-images] [--keep]

Ends with 0 if every step did what it must, or this machine cannot run an engine and the reason is printed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from types import FrameType

from tests.compose import steps
from tests.compose.base import cache_folder
from tests.compose.console import Failed, complain, say, tail
from tests.compose.engine import Engine, lacking
from tests.compose.world import World


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.compose", description=__doc__)
    parser.add_argument("--only-images", action="store_true", help="build and look at the images, no more")
    parser.add_argument("--keep", action="store_true", help="after a failure, leave all running until Enter")
    options = parser.parse_args()
    why = lacking()
    if why:
        print(f"test-compose was not run: {why}")
        print("0 passed, 0 failed, 1 skipped")
        return 0
    signal.signal(signal.SIGTERM, _interrupt)
    todo = steps.STEPS[:4] if options.only_images else steps.STEPS
    passed = failed = 0
    say(f"bases are kept in {cache_folder()}")
    with Engine() as engine:
        world = World(engine)
        try:
            for number, step in enumerate(todo, start=1):
                say(f"{number}/{len(todo)} {step.__doc__}")
                began = time.monotonic()
                step(world)
                passed += 1
                say(f"  ok ({time.monotonic() - began:.0f} s)")
        except KeyboardInterrupt:
            complain("interrupted; ending what was started")
            return 130
        except BaseException as error:
            failed = 1
            complain(f"FAILED: {step.__doc__}\n{error if isinstance(error, Failed) else repr(error)}")
            _explain(world, engine)
            if options.keep and sys.stdin.isatty():
                print(f"DOCKER_HOST={engine.env['DOCKER_HOST']} reaches the engine; Enter ends it")
                sys.stdin.readline()
            if not isinstance(error, Failed):
                raise
        finally:
            say("ending what was started")
            steps.clean(world)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def _explain(world: World, engine: Engine) -> None:
    """What a person would look at first."""
    for project in (world.fleet, world.box):
        if (project.folder / "docker-compose.yml").exists():
            complain(f"--- {project.name}\n{project('ps', check=False)}\n{project.logs()}")
    complain(f"--- engine\n{tail(engine.log.read_text(errors='replace'), 15)}")


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
