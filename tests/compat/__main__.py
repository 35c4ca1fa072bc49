"""`make test-upgrade`: this code and another commit's, one after the other on one state, and side by side.

    python -m tests.compat [REF]

REF is the release before; by default the last tag, or the commit whose state is committed under tests/compat.

What an upgrade does: the other code writes a state and a node's store, this one reads them, goes on with them
and is killed over them. And while a fleet is upgraded: a node of the other code under this aggregator, and a
node of this code under the other aggregator.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
COMMIT = Path(__file__).with_name("WRITTEN_BY")


def git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def before() -> str:
    """The last tag, or the commit that wrote what is committed here."""
    try:
        return git("describe", "--tags", "--abbrev=0", "--match", "v*", "HEAD^")
    except subprocess.CalledProcessError:
        return COMMIT.read_text().split()[0]


def main() -> int:
    ref = sys.argv[1] if len(sys.argv) > 1 else before()
    try:
        git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    except subprocess.CalledProcessError:
        sys.exit(
            f"there is no commit {ref!r} in {ROOT}; give a tag or a commit: make test-upgrade REF=v0.1.0"
        )
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        other.mkdir()
        archive = subprocess.run(
            ["git", "-C", str(ROOT), "archive", ref], check=True, capture_output=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", str(other)], input=archive, check=True)
        # This file's questions, asked with that code.
        shutil.copytree(ROOT / "tests" / "compat", other / "tests" / "compat", dirs_exist_ok=True)

        def ask(code: Path, what: str, where: str, **more: str) -> None:
            print(f"{what} with {'this code' if code == ROOT else ref}", flush=True)
            environment = {**os.environ, "PYTHONPATH": str(code), **more}
            subprocess.run(
                [sys.executable, "-m", "tests.compat.state", what, str(Path(folder) / where)],
                check=True, cwd=code, env=environment,
            )  # fmt: skip

        ask(other, "write", "written")
        ask(ROOT, "read", "written")
        ask(ROOT, "works", "newer-aggregator", NODE_PATH=str(other))
        ask(other, "works", "newer-node", NODE_PATH=str(ROOT))
    print(f"{ref} and this code: states open, and nodes and aggregators work together")
    return 0


if __name__ == "__main__":
    sys.exit(main())
