"""deploy/carry_over.sh without an engine: volumes are folders, and what runs in a container runs here.

With real engines it is a part of `make test-compose`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "carry_over.sh"
DOCKER = r"""#!/bin/sh
set -eu
case "$1 $2" in
  "compose version" | "stop --time") ;;
  "compose ps") cat "$FAKE/containers" ;;
  "inspect --format") case "$3" in *Mounts*) cat "$FAKE/$4.volume" ;; *) cat "$FAKE/$4.number" ;; esac ;;
  "rm "*) grep -v "$2" "$FAKE/containers" > "$FAKE/left" || true; mv "$FAKE/left" "$FAKE/containers" ;;
  "volume ls") ls "$FAKE/volumes" ;;
  "compose run")
    from=$FAKE/volumes/${7%:/before:ro}
    script=$(printf %s "${12}" | sed "s#/before#$from#g")
    PATH=$FAKE/container:$PATH exec sh -euc "$script" carry "${14}" "${15}" "$FAKE/nodes"
    ;;
  *) echo "docker $*" >&2 && exit 64 ;;
esac
"""
A, B = "a" * 64, "b" * 64


@pytest.fixture
def fake(tmp_path):
    for folder in ("bin", "container", "volumes", "nodes"):
        (tmp_path / folder).mkdir()
    program(tmp_path / "bin" / "docker", DOCKER)
    program(tmp_path / "container" / "sync", "#!/bin/sh\n")
    (tmp_path / "containers").write_text("")
    return tmp_path


def program(path, text):
    path.write_text(text)
    path.chmod(0o755)


def replica(fake, number, volume, *folders):
    """A container with a volume in which these folders are nodes; "": one of the release before."""
    with (fake / "containers").open("a") as file:
        file.write(f"c{number}\n")
    (fake / f"c{number}.volume").write_text(volume)
    (fake / f"c{number}.number").write_text(str(number))
    for folder in folders:
        identity = fake / "volumes" / volume / folder / "identity"
        identity.mkdir(parents=True)
        (identity / "name").write_text(f"{number}{folder}")


def call(fake, *words, fails=False):
    path = f"{fake / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", SCRIPT, *words],
        env={**os.environ, "FAKE": str(fake), "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode != 0) is fails, done
    return done.stdout + done.stderr


def nodes(fake):
    """By folder of the volume `nodes` whose identity is in it."""
    assert not (fake / "nodes" / ".partial").exists()
    return {one.name: (one / "identity" / "name").read_text() for one in (fake / "nodes").glob("edge-node-*")}


def test_each_replica_under_its_number_and_once(fake):
    replica(fake, 1, A, "")
    replica(fake, 2, B, "")
    said = call(fake)
    assert f"edge-node-1 has what volume {A} holds" in said
    assert nodes(fake) == {"edge-node-1": "1", "edge-node-2": "2"}
    assert "nothing to carry over" in call(fake)
    assert f"edge-node-2 has what volume {B} holds" in call(fake, "--left")
    assert len(nodes(fake)) == 2


@pytest.mark.parametrize("at", ["cp", "sync", "mv"])
def test_one_that_was_interrupted_is_called_again(fake, at):
    """A disk that is full, and an end between a copy's name and whatever comes next."""
    replica(fake, 1, A, "")
    real = shutil.which(at)
    program(fake / "container" / at, f'#!/bin/sh\n{real} "$@"\necho no more >&2\nexit 1\n')
    said = call(fake, fails=True)
    assert "no more" in said
    assert f"volume {A} is not carried over whole; it is as it was" in said
    assert (fake / "containers").read_text() == "c1\n"
    program(fake / "container" / at, f'#!/bin/sh\nexec {real} "$@"\n')
    assert f"edge-node-1 has what volume {A} holds" in call(fake)
    assert nodes(fake) == {"edge-node-1": "1"}


def test_nodes_of_both_releases_in_a_volume_are_all_carried(fake):
    """As Compose v1 leaves them; a number that is taken gives way to the next."""
    replica(fake, 1, A, "", "edge-node-1")
    replica(fake, 2, B, "", "edge-node-2")
    call(fake)
    found = nodes(fake)
    assert sorted(found) == [f"edge-node-{n}" for n in (1, 2, 3, 4)]
    assert sorted(found.values()) == ["1", "1edge-node-1", "2", "2edge-node-2"]
    assert not list((fake / "nodes").glob("edge-node-*/edge-node-*"))


def test_what_is_left_are_volumes_without_a_name(fake):
    replica(fake, 1, A, "", "edge-node-1")
    replica(fake, 2, "other_nodes", "edge-node-5")
    replica(fake, 3, "others", "")
    (fake / "containers").write_text("")
    call(fake, "--left")
    assert nodes(fake) == {"edge-node-1": "1edge-node-1", "edge-node-2": "1"}


def test_an_engine_that_does_not_answer_is_not_taken_for_nothing_to_do(fake):
    (fake / "containers").unlink()
    assert "nothing to carry over" not in call(fake, fails=True)
