"""Backups of a state folder, made while it is used or not, and put back only where they are whole.

    <backup>/backup.json   what is in it: each file's size and SHA-256. Written last: without it there is none
    <backup>/state/        the state folder as of one moment

The moment is that of the snapshot of `state.db`. Files are named by its rows or by their folders, are never
changed where they lie, and may be removed at any time: so all are linked aside first, then the snapshot is
made, then what has come meanwhile is linked, and only then is anything copied. What was acknowledged before
the backup began is in it; what was acknowledged after its snapshot is not.

What lies on nodes is not in it: a context's tokens stay where they are.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from aggregator.store.folder import TEMPORARY, lock, require_space, sync, unwritable, write_durably
from aggregator.store.page_sums import PageSums
from aggregator.store.reserve import RESERVE
from edge_attention.core.errors import (
    DataLoss,
    EdgeAttentionError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)

__all__ = ["MANIFEST", "BackupCounts", "backup", "restore"]

MANIFEST = "backup.json"
FORMAT = 1
TRIES = 20
"""Snapshots that are tried: of a run that commits very often versions may go before they are linked."""
TURN_SECONDS = 10.0
"""How long others may write to the registry of trust before a backup gives up."""
YOUNG_SECONDS = 60.0
"""A folder of work that is younger may be about to be locked by who has made it."""
_ASIDE, _WITHIN, _PARTIAL = ".backup-", ".under-way-", ".partial"
"""What folders of work are called: links in the state folder; what fills a folder that is there; all."""
_PIECE = 1024 * 1024
_LEFT_OUT = ("lock", "spool", "plans", RESERVE)  # of one process
_GROWING = ("record.jsonl", "audit.jsonl")  # written at their ends: copied, not linked
_DATABASES = {Path("state.db"): False, Path("trust/trust.db"): True}
"""Each database, and whether other processes write to it, too."""


@dataclass(frozen=True)
class BackupCounts:
    """What a backup has. `created`: seconds since 1970."""

    created: float
    contexts: int
    runs: int
    versions: int
    deployments: int
    files: int
    size: int


def backup(state: Path, folder: Path) -> BackupCounts:
    """Back the state folder up into `folder`, which is made. Durable when this returns. Blocks.

    Raises:
        InvalidArgument: there is something at `folder`, or it lies in the state folder.
        FailedPrecondition: `state` is no state folder.
        DataLoss: a database is damaged.
        DiskFull: there is no room for it; nothing is left of it.
        Unavailable: the folder changed too quickly, or its registry was in use for long.
    """
    state, folder = state.absolute(), folder.absolute()
    if not (state / "state.db").is_file():
        raise FailedPrecondition(f"{state} is no aggregator's state folder: there is no state.db")
    if folder.is_relative_to(state):
        raise InvalidArgument(f"{folder} lies in the state folder; back up to a place outside of it")
    _require_new(folder, "a backup")
    try:
        with _working(state, _ASIDE) as aside, _working(*_beside(folder)) as partial:
            with _held(state) as live:
                named = _snapshot(state, aside, live)
            files = _copied(aside, partial / "state", named)
            counts = _counts(partial / "state", files)
            manifest = {"format": FORMAT, "counts": asdict(counts), "files": files}
            write_durably(partial / MANIFEST, json.dumps(manifest, indent=1).encode())
            (partial / MANIFEST).chmod(0o600)
            sync(partial)
            _require_new(folder, "a backup")
            _put(partial, folder, MANIFEST)
    except OSError as error:
        raise unwritable(Path(error.filename or folder), error) from error
    return counts


def restore(folder: Path, state: Path) -> BackupCounts:
    """Put a backup back as the state folder `state`, which is made. Durable when this returns. Blocks.

    Every file is checked by its digest as it is copied: there is a whole state folder then, or none. One that
    is there and empty is filled, `state.db` last.

    Raises:
        NotFound: there is no backup at `folder`, or one that was not finished.
        DataLoss: it is not whole, or damaged.
        InvalidArgument: there is something at `state` already.
        FailedPrecondition: a newer release has made it.
        DiskFull: there is no room for it; nothing is left of it.
    """
    state, folder = state.absolute(), folder.absolute()
    files, counts = _manifest(folder)
    _require_new(state, "a state folder")
    try:
        with _working(*_beside(state)) as partial:
            require_space(partial, sum(size for _, size in files.values()))
            for name, (digest, size) in files.items():
                source, target = folder / "state" / name, partial / name
                _make(target.parent)
                try:
                    found = _copy(source, target)
                except FileNotFoundError:
                    raise DataLoss(
                        f"backup {folder} is not whole: {name} is missing; take another one"
                    ) from None
                if found != (digest, size):
                    raise DataLoss(f"backup {folder} is damaged: {name} has other bytes; take another one")
            _require_sound(partial, folder)
            for made in {partial, *(path for path in partial.rglob("*") if path.is_dir())}:
                sync(made)
            _require_new(state, "a state folder")
            _put(partial, state, "state.db")
    except OSError as error:
        raise unwritable(Path(error.filename or state), error) from error
    return counts


# Backing up


def _require_new(folder: Path, what: str) -> None:
    if folder.exists() and not (
        folder.is_dir() and all(path.name.startswith(_WITHIN) for path in folder.iterdir())
    ):
        raise InvalidArgument(f"there is something at {folder} already; give a new folder for {what}")


@contextlib.contextmanager
def _working(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `parent`, which goes with the block; and what processes that were killed have left of
    that `prefix` goes, too. Which are alive is known by locks: two machines, or containers, may share a disk.
    """
    _make(parent)
    for left in parent.glob(f"{glob.escape(prefix)}????????{_PARTIAL}"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > YOUNG_SECONDS:
                with _locked(left):
                    shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(_PARTIAL, prefix, parent))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, made, ignore_errors=True)
        with contextlib.suppress(OSError):  # a file system without locks: then nobody removes what is left
            stack.enter_context(_locked(made))
        yield made


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """A block in which nobody else has the folder. Raises OSError where somebody has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _beside(folder: Path) -> tuple[Path, str]:
    """Where the folder's content is made, and as what. A folder that is there may be a mount, in whose place
    nothing can be put: then within it."""
    return (folder, _WITHIN) if folder.is_dir() else (folder.parent, f".{folder.name}-")


def _put(made: Path, folder: Path, last: str) -> None:
    """Have in `folder` what is in `made`, all of it or nothing; durably. File `last` comes last."""
    if not folder.is_dir():
        os.rename(made, folder)
        sync(folder.parent)
        return
    moved: list[Path] = []
    try:
        for path in sorted(made.iterdir(), key=lambda path: path.name == last):
            os.rename(path, folder / path.name)
            moved.append(folder / path.name)
        with contextlib.suppress(OSError):  # a file system without modes, or another's folder
            folder.chmod(0o700)
        sync(folder)
    except BaseException:
        for path in moved:
            os.rename(path, made / path.name)
        raise


@contextlib.contextmanager
def _held(state: Path) -> Iterator[bool]:
    """A block in which no aggregator begins to use the folder; gives whether one uses it."""
    try:
        descriptor = lock(state)
    except FailedPrecondition:
        yield True
        return
    try:
        yield False
    finally:
        os.close(descriptor)


def _snapshot(state: Path, aside: Path, live: bool) -> frozenset[str]:
    """Have all of the folder in `aside`, as of one moment; the files that rows name."""
    for _ in range(TRIES):
        _link_all(state, aside)
        for path, shared in _DATABASES.items():
            if (state / path).is_file():
                _copy_database(state / path, aside / path, live and not shared, shared)
        _link_all(state, aside)  # what has come until the snapshot
        named = _named(aside / "state.db")
        if all((aside / name).is_file() for name in named):
            return named
    raise Unavailable(f"versions of runs go faster than {state} can be backed up; try again")


def _link_all(state: Path, aside: Path) -> None:
    """Have every file that is there now in `aside`, too, where it stays."""
    for top in sorted(os.listdir(state)):
        if top in _LEFT_OUT or top.startswith((_ASIDE, _WITHIN)):
            continue
        source = state / top
        if source.is_dir():
            _link_folder(source, aside / top)
        else:
            _link(source, aside / top)
    kept = aside / "deployments"
    for folder in kept.iterdir() if kept.is_dir() else ():
        there = state / "deployments" / folder.name
        # One that goes, or does not serve yet, is none; of shapes that go nothing is half there.
        if folder.is_dir() and not (there / "deployment.json").is_file():
            shutil.rmtree(folder)
            continue
        for part in (*folder.glob("shapes/*"), folder / "decoder"):
            if part.is_dir() and not (there / part.relative_to(folder)).is_dir():
                shutil.rmtree(part)


def _link_folder(source: Path, target: Path) -> None:
    target.mkdir(mode=0o700, exist_ok=True)
    try:
        entries = sorted(os.listdir(source))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in entries:
        path = source / name
        if path.is_symlink():
            continue
        if path.is_dir():
            _link_folder(path, target / name)
        else:
            _link(path, target / name)


def _link(source: Path, target: Path) -> None:
    """Have a file there, too; nothing if it has gone meanwhile."""
    name = source.name
    if name.endswith((TEMPORARY, "-wal", "-shm", "-journal", ".sums", ".db")):
        return
    try:
        if name.startswith(_GROWING):
            shutil.copyfile(source, target)
            return
        if target.exists():
            if os.path.samefile(source, target):
                return
            target.unlink()  # it was written anew
        try:
            os.link(source, target)
        except FileNotFoundError:
            raise
        except OSError:  # a file system without links
            shutil.copyfile(source, target)
    except FileNotFoundError:
        return


def _copy_database(path: Path, target: Path, reading: bool, shared: bool) -> None:
    """Copy a database as of now. `reading`: another process has it, whose log is its own to write back."""
    target.unlink(missing_ok=True)
    target.parent.mkdir(mode=0o700, exist_ok=True)
    sums = PageSums(path, shared=shared)
    try:
        with contextlib.closing(sqlite3.connect(target)) as made:
            if reading:
                with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
                    database.backup(made)
            else:
                with sums.turn(alone=True, seconds=TURN_SECONDS) as mine:
                    if not mine:
                        raise Unavailable(
                            f"{path} is in use: another process writes to it for long; try again"
                        )
                    sums.require_whole()
                    database = sqlite3.connect(path)
                    database.execute("PRAGMA wal_autocheckpoint=0")
                    try:
                        database.backup(made)
                    finally:
                        sums.close(database)
    except sqlite3.Error as error:
        raise DataLoss(f"{path} cannot be copied: {error}") from error


def _read(database: Path) -> contextlib.closing[sqlite3.Connection]:
    """A database that nobody else has open, to read."""
    return contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro&immutable=1", uri=True))


def _named(database: Path) -> frozenset[str]:
    with _read(database) as opened:
        rows = opened.execute("SELECT file, optimizer_file FROM versions").fetchall()
    return frozenset(name for row in rows for name in row if name is not None)


def _copied(aside: Path, target: Path, named: frozenset[str]) -> dict[str, tuple[str, int]]:
    """Copy all that belongs to the snapshot; name -> (SHA-256, bytes)."""
    with _read(aside / "state.db") as opened:
        runs = {id for (id,) in opened.execute("SELECT id FROM runs")}
    names = []
    for path in sorted(aside.rglob("*")):
        name = path.relative_to(aside)
        if not path.is_file():
            continue
        if name.parts[0] == "runs":
            version = len(name.parts) == 3 and name.suffix == ".safetensors"
            if name.parts[1] not in runs or (version and str(name) not in named):
                continue  # of after the snapshot, or no longer named by it
        names.append(name)
    _make(target)
    require_space(target, sum((aside / name).stat().st_size for name in names))
    files = {}
    folders = {target}
    for name in names:
        to = target / name
        _make(to.parent)
        folders |= {target / part for part in name.parents}
        files[str(name)] = _copy(aside / name, to)
    for folder in folders:
        sync(folder)
    return files


def _make(folder: Path) -> None:
    """Make the folder and those it lies in: nobody else may look into them, whatever the umask."""
    for made in reversed([folder, *folder.parents]):
        if not made.exists():
            made.mkdir(mode=0o700, exist_ok=True)


def _unnoticed(path: str, flags: int) -> int:
    """Open without a word of it in the file's times: by them is known which blobs are used."""
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:  # not our file
        return os.open(path, flags)


def _copy(source: Path, target: Path) -> tuple[str, int]:
    """Copy a file durably; its SHA-256 and bytes."""
    found, size = hashlib.sha256(), 0
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with (
        open(source, "rb", buffering=0, opener=_unnoticed) as read,
        open(descriptor, "wb", buffering=0) as written,
    ):
        while piece := read.read(_PIECE):
            found.update(piece)
            size += len(piece)
            view = memoryview(piece)
            while view:
                view = view[written.write(view) :]
        os.fsync(written.fileno())
    return found.hexdigest(), size


def _counts(state: Path, files: Mapping[str, tuple[str, int]]) -> BackupCounts:
    with _read(state / "state.db") as opened:
        contexts, runs, versions = (
            opened.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
            for table in ("contexts", "runs", "versions")
        )
    served = sum(name.startswith("deployments/") and name.endswith("/deployment.json") for name in files)
    size = sum(size for _, size in files.values())
    return BackupCounts(time.time(), contexts, runs, versions, served, len(files), size)


# Restoring


def _manifest(folder: Path) -> tuple[dict[str, tuple[str, int]], BackupCounts]:
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_bytes())
        if found["format"] > FORMAT:
            raise FailedPrecondition(f"backup {folder} was made by a newer release; restore it with that one")
        files = {str(name): (str(digest), int(size)) for name, (digest, size) in found["files"].items()}
        counts = BackupCounts(**found["counts"])
    except OSError:
        raise NotFound(
            f"there is no {MANIFEST} in {folder}: it is no backup, or one that was not finished; take another"
        ) from None
    except EdgeAttentionError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataLoss(f"{path} cannot be read: the backup is damaged; take another one") from None
    for name in files:
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
            raise DataLoss(f"backup {folder} is damaged: it names a file {name[:80]!r}")
    if "state.db" not in files:
        raise DataLoss(f"backup {folder} is damaged: it has no state.db; take another one")
    return files, counts


def _require_sound(state: Path, folder: Path) -> None:
    """Refuse a folder whose rows name files that it has not, or whose database SQLite finds damaged."""
    database = state / "state.db"
    try:
        with _read(database) as opened:
            (told,) = opened.execute("PRAGMA quick_check").fetchone()
        missing = [name for name in sorted(_named(database)) if not (state / name).is_file()]
    except sqlite3.Error as error:
        told, missing = str(error), []
    if told != "ok" or missing:
        why = f"it lacks {missing[0]}" if missing else told
        raise DataLoss(f"backup {folder} is damaged: {why}; take another one")
