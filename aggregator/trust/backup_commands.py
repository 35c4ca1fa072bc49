"""`edge-aggregator backup` and `edge-aggregator restore`: of the state folder, served or not."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_attention.failing import json_option

if TYPE_CHECKING:
    from aggregator.store.backup import BackupCounts

_folder = click.Path(file_okay=False, path_type=Path)


@click.command(epilog="Example: edge-aggregator --state /var/lib/edge-attention backup /mnt/backups/monday")
@click.argument("folder", type=_folder)
@click.option(
    "--state", type=_folder, help="The aggregator's state folder.  [default: edge-aggregator's own --state]"
)
@json_option
def backup(folder: Path, state: Path | None, as_json: bool) -> None:
    """Back up the state folder into the new FOLDER, while the aggregator runs or not.

    It has contexts, runs, trust and deployments as they were acknowledged at one moment, and keys: keep it as
    safe as the state folder. The tokens of contexts are not in it; they stay on nodes.
    """
    from aggregator.store.backup import backup as make
    from aggregator.trust.audit import Audit

    found = _state(state)
    made = make(found, folder)
    with contextlib.closing(Audit(found / "audit.jsonl")) as audit:
        audit.write("backup_made", folder=str(folder), files=made.files, bytes=made.size)
    _say(made, f"backed up to {folder}", as_json)


@click.command(epilog="Example: edge-aggregator restore /mnt/backups/monday --state /var/lib/edge-attention")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--state", type=_folder, help="The new state folder.  [default: edge-aggregator's own --state]")
@json_option
def restore(folder: Path, state: Path | None, as_json: bool) -> None:
    """Make a state folder of the backup in FOLDER. Every file is checked: one that is not whole is refused.

    Run it as the user the aggregator runs as. Nodes are told to forget what the backup does not know of.
    """
    from aggregator.store.backup import restore as make
    from aggregator.trust.audit import Audit

    found = _state(state)
    made = make(folder, found)
    with contextlib.closing(Audit(found / "audit.jsonl")) as audit:
        audit.write("backup_restored", folder=str(folder), files=made.files, bytes=made.size)
    _say(made, f"restored to {found}", as_json)


def _state(given: Path | None) -> Path:
    state = given or click.get_current_context().find_object(Path)
    if state is None:
        raise click.UsageError("give the aggregator's state folder: --state DIR, or EDGE_AGGREGATOR_STATE")
    return state


def _say(made: BackupCounts, what: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(made)))
        return
    click.echo(
        f"{what}: {made.contexts:,} contexts, {made.runs:,} runs with {made.versions:,} versions, "
        f"{made.deployments:,} deployments; {made.files:,} files, {made.size:,} bytes"
    )
