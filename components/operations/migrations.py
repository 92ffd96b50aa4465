"""May a database be handed to its server? Asked before each start of MLflow and Prefect.

A file that is no database, was cut short or emptied, or was written by another version is named and left alone: both servers would
fill an emptied one as if nothing had been in it, and MLflow calls a newer one "out-of-date". Before a migration the database is copied; one that
was killed begins again from that copy (SQLite does not undo a half-done migration), and the copy stays. What stood in its place is put aside.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from components import files
from components.errors import Damaged, UserError
from components.layout import Layout
from components.operations import databases, environment
from components.operations.processes import MLFLOW, Service, log_path

MIGRATIONS = {"mlflow": "store/db_migrations/versions", "prefect": "server/database/_migrations/versions/sqlite"}  # inside the packages
REVISION = re.compile(r"^revision\b[^=\n]*=\s*[\"'](\w+)[\"']", re.M)
MAX_PATH_BYTES = 504  # SQLite's 512, less what it adds for its journal
EARLIER = re.compile(r"^down_revision\b[^=\n]*=\s*(.+)$", re.M)


def database(layout: Layout, service: Service) -> Path:
    return layout.mlflow_database if service is MLFLOW else layout.prefect_database


def copy_of(layout: Layout, service: Service) -> Path:
    """The database as it was before a migration that has not ended; empty where there was none."""
    return layout.state / "migration" / f"{service.name}.db"


def ready(layout: Layout, service: Service, say: Callable[[str], None]) -> None:
    """Make the database ready for a start. Raises Damaged (it is none, cut short, gone) and UserError (of another version): then none may be.

    Where a migration is to come, the copy is made, or what an earlier, killed one left is put aside for it, which `say` tells.
    """
    path, kept = database(layout, service), copy_of(layout, service)
    if (length := len(os.fsencode(path.absolute()))) > MAX_PATH_BYTES:
        raise UserError(f"{layout.root} is too long for {service.name}'s database: {length} bytes, of which SQLite opens {MAX_PATH_BYTES} at most. "
                        "Move the checkout to a folder with a shorter path, then run again")
    if service is MLFLOW and "%" in environment.python(layout):
        raise UserError(f"{layout.root} has a % in its path, with which MLflow cannot set up its database (it reads it as a place to fill in). "
                        "Move the checkout to a folder without one, then run again")
    known, newest = revisions(service)
    if known and _holds(kept) and not _migrated(path, newest):
        _put_back(kept, path, say)
    _check_bytes(layout, service, path)
    if not known:
        return  # a package that keeps its migrations elsewhere: its server judges by itself
    found = stamps(path)
    if found == newest:
        done(layout, service)  # a start that was killed when its migration had ended
        return
    _check_schema(service, path, found, known)
    if found and kept.exists() and not _holds(kept) and not _used(path):  # a first migration that was killed: nobody had a server on it yet
        say(f"{path} was not whole yet when its first start was killed: it begins anew. What there was of it is kept: {_set_aside(path)}")
        found = None
    _keep(path, kept, used=found is not None)
    if service is MLFLOW and found:
        _upgrade_mlflow(layout, path, kept)


def _check_schema(service: Service, path: Path, found: set[str] | None, known: set[str]) -> None:
    """Raises UserError (stamps of another version) and Damaged (rows, but no stamp)."""
    if foreign := sorted(found - known) if found and known else []:
        raise UserError(f"{path} was written by another version of {service.name}, probably a newer one: this one ({_version(service)}) does not know its "
                        f"schema {', '.join(foreign)}. Install that version (make setup of the lmworks that wrote it), or {_remedy(path)}")
    if found is not None and not found:
        raise Damaged(f"{path} holds rows, but no schema stamp of {service.name} (table alembic_version). To mend it, {_remedy(path)}")


def wrong_with(layout: Layout, service: Service) -> str | None:
    """What would be said at the next start of the server, without doing anything; None where it may start."""
    path = database(layout, service)
    try:
        _check_bytes(layout, service, path)
        _check_schema(service, path, stamps(path), revisions(service)[0])
    except UserError as error:
        return str(error)
    return None


def done(layout: Layout, service: Service) -> None:
    """The server answers, so its migration has ended: the copy, if anything is in it, is put beside the database."""
    kept = copy_of(layout, service)
    if _holds(kept):
        kept.replace(_free_name(database(layout, service), _version(service)))
    else:
        kept.unlink(missing_ok=True)


def note(layout: Layout, service: Service) -> str:
    """Where the database of before is, for the error of a server that does not start."""
    kept = copy_of(layout, service)
    return f" Its database as it was before is kept: {kept}." if _holds(kept) else ""


# --- what is there -------------------------------------------------------------------------------

def _check_bytes(layout: Layout, service: Service, path: Path) -> None:
    empty = not _holds(path)
    if empty and not _holds(copy_of(layout, service)) and (evidence := _evidence(layout, service, path)):
        state = "is empty" if path.exists() else "is gone"
        raise Damaged(f"{path} {state}, but {evidence}, so it held something. Nothing was made in its place. To mend it, {_remedy(path)}; "
                      f"or begin anew: move {evidence.split()[0]} away")
    if not empty and (problems := databases.structure(path)):
        raise Damaged(f"{path} is damaged: {problems[0]}. Nothing was changed. To mend it, {_remedy(path)}")


def _evidence(layout: Layout, service: Service, path: Path) -> str | None:
    """What says that a database of ours was in use, as `PATH is there`."""
    if service is MLFLOW:
        used = layout.artifacts.is_dir() and any(layout.artifacts.iterdir())
        return f"{layout.artifacts.relative_to(layout.root)} holds files" if used else None
    # runs may have been another server's; ours never had a database, or has it not yet: its first start has not ended
    if copy_of(layout, service).exists() or not (path.exists() or log_path(layout, service.name).exists()):
        return None
    return next((f"{known.relative_to(layout.root)} tells of runs" for known in (layout.last_run, layout.scheduled) if known.exists()), None)


def _remedy(path: Path) -> str:
    return f"bring the databases back from a backup (lmworks restore PATH --databases; {path.name} as it is now is put aside)"


def _version(service: Service) -> str:
    try:
        return importlib.metadata.version(service.name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def stamps(path: Path) -> set[str] | None:
    """The schema stamps in a database; None where there is nothing in it that anybody would miss."""
    if not _holds(path):
        return None
    with databases.opened(path) as connection:
        stamped = databases.has_table(connection, "alembic_version")
        found = {str(row[0]) for row in connection.execute("SELECT version_num FROM alembic_version")} if stamped else set()
    return found if found or _used(path) else None


def _holds(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _used(path: Path) -> bool:
    return any(databases.rows(path, table) for tables in databases.CONTENT.values() for table in tables)


def revisions(service: Service) -> tuple[set[str], set[str]]:
    """(every schema that the installed package knows, the newest of them), read from its files: no import of it."""
    spec = importlib.util.find_spec(service.name)
    known: set[str] = set()
    earlier: set[str] = set()
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in (Path(folder) / MIGRATIONS[service.name]).glob("*.py"):
            text = path.read_text(encoding="utf-8")
            if (revision := REVISION.search(text)) is not None:
                known.add(revision[1])
                before = EARLIER.search(text)
                earlier |= set(re.findall(r"[\"'](\w+)[\"']", before[1])) if before else set()
    return known, known - earlier


# --- migrating -----------------------------------------------------------------------------------

def _migrated(path: Path, newest: set[str]) -> bool:
    return _holds(path) and not databases.structure(path) and stamps(path) == newest


def _keep(path: Path, kept: Path, *, used: bool) -> None:
    """The copy, whole or not there; what a killed set-up left of a database that nobody used goes."""
    partial = kept.with_name(f".{kept.name}.partial")
    partial.unlink(missing_ok=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    if used:
        databases.snapshot(path, partial)
    else:
        partial.touch()
        for old in (path, *(path.with_name(path.name + end) for end in databases.BESIDE)):
            old.unlink(missing_ok=True)
    partial.replace(kept)
    files.fsync_dir(kept.parent)


def _put_back(kept: Path, path: Path, say: Callable[[str], None]) -> None:
    """The copy in the place of what a killed migration made of the database, which is put aside: its server may have outlived who started it,
    then it is the newer one. The copy stays until a migration ends."""
    if _holds(path):
        say(f"the migration of {path} did not end: it begins again from the copy of before it. What stood there is kept: {_set_aside(path)}")
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(kept, partial)
    for end in databases.BESIDE:
        path.with_name(path.name + end).unlink(missing_ok=True)
    partial.replace(path)
    files.fsync_dir(path.parent)


def _set_aside(path: Path) -> Path:
    """The database under a name of its own; its log goes first, so that a kill between the two leaves them to the next one."""
    aside = _free_name(path, "put-back")
    for end in (*databases.BESIDE, ""):
        if (old := path.with_name(path.name + end)).exists():
            old.rename(aside.with_name(aside.name + end))
    return aside


def _free_name(path: Path, of: str) -> Path:
    """Beside the database, where `lmworks clean` looks for old ones."""
    names = (path.with_name(f"{path.name}.before-{of}{f'-{n}' if n > 1 else ''}") for n in itertools.count(1))
    return next(name for name in names if not name.exists())


def _upgrade_mlflow(layout: Layout, path: Path, kept: Path) -> None:
    """MLflow's server refuses an older database; its own command migrates it. Raises UserError."""
    done = subprocess.run([environment.python(layout), "-m", "mlflow", "db", "upgrade", f"sqlite:///{path.relative_to(layout.root)}"], cwd=layout.root,
                          env=environment.child(layout), capture_output=True, text=True)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(f"{path} could not be migrated to mlflow {_version(MLFLOW)}: {words[-1] if words else 'no word'}. As it was before it is kept: {kept}. "
                        "Mend that, then run again: it begins again from that copy")
