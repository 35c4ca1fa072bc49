"""`python -m deploy.grafana.build` writes the dashboards; with --check it says whether they are as built."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana import attention, fleet, inference, node, training
from deploy.grafana.layout import build

FOLDER = Path(__file__).parent / "dashboards"
BOARDS = (fleet.BOARD, attention.BOARD, inference.BOARD, training.BOARD, node.BOARD)


def written() -> dict[str, str]:
    """The dashboards' text by file name."""
    encoder = JSONEncoder(sort_keys=True, indent=2)
    return {f"{board.slug}.json": encoder.encode(build(board)) + "\n" for board in BOARDS}


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; end with 1 if a file is not as built.")
def main(check: bool) -> None:
    """Write the dashboards of deploy/grafana/dashboards/ anew."""
    made = written()
    there = {file.name for file in FOLDER.glob("*.json")}
    stale = [name for name, text in made.items() if name not in there or (FOLDER / name).read_text() != text]
    stale += sorted(there - set(made))
    if check:
        if stale:
            print(
                f"deploy/grafana/dashboards: stale: {', '.join(stale)}; run `make dashboards`",
                file=sys.stderr,
            )
            sys.exit(1)
        return
    for name in there - set(made):
        (FOLDER / name).unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text)
    print(f"deploy/grafana/dashboards: {', '.join(made)}")


if __name__ == "__main__":
    main()
