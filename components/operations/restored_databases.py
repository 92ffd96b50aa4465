"""The databases of a backup, back beside the data and the models of today, which may be newer: what a damaged database asks for.

Nothing of today is overwritten but the two databases, and those are put aside. Files of models that the old database names and this store lacks, or
holds damaged, come from the backup; models that it does not know are named and stay. No receipt of a later release is left, so the next
run releases again what data/ holds.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components import files, storage
from components.errors import Damaged, UserError
from components.layout import Layout
from components.operations import databases, half_restored, migrations, restoration
from components.operations.processes import SERVERS

ASIDE = ".before-restore"


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What was done: paths relative to the checkout."""

    index: dict[str, Any]
    brought: list[str]  # the databases
    aside: list[str]  # what was in their place
    artifacts: list[str]  # files of models and runs that came from the backup
    told: list[str]  # what does not agree, and what was done about it, in words


def restore(layout: Layout, source: Path) -> Restored:
    """Bring the databases in the backup `source` back into a checkout that is in use.

    Raises UserError (no backup there, no databases in it, a restore was killed here), Busy (servers or a run) and Damaged (the backup);
    then the databases are as they were.
    """
    source = source.absolute()
    with files.lock(layout.run_lock, what="lmworks run"), files.lock(layout.stage_lock, what="a stage"), \
            files.lock(layout.startup_lock, what="the start of the servers", wait_s=5):
        restoration.check_servers_down(layout)
        half_restored.refuse(layout)
        index = restoration.read_index(source)
        wanted = [name for name in (path.relative_to(layout.root).as_posix() for path in (layout.mlflow_database, layout.prefect_database)) if name in index["files"]]
        if not wanted:
            raise UserError(f"{source} holds no databases: the servers of that checkout were elsewhere, and so are their backups")
        with _scratch(layout) as staging, storage.explained(staging):
            artifacts = _missing(layout, index)
            storage.check_room(staging, 2 * sum(int(index["files"][name]["bytes"]) for name in (*wanted, *artifacts)), "the restore of the databases")
            for name in (*wanted, *artifacts):
                restoration.copy_one(source, name, index["files"][name], staging)
            told = restoration.reconcile(Layout(root=staging).mlflow_database)
            files.fsync_tree(staging)
            for name in artifacts:
                _place(staging / name, layout.root / name)
            aside = [kept for name in wanted for kept in _replace_database(layout, staging, name)]
            for service in (one for one in SERVERS if migrations.database(layout, one).relative_to(layout.root).as_posix() in wanted):
                migrations.done(layout, service)  # the copy of a migration of the old one is none of the new one
            layout.receipt.unlink(missing_ok=True)
            artifacts += _mend(layout, source, index, staging)
        stands = databases.standing(layout) if layout.mlflow_database.exists() else None
    return Restored(index=index, brought=wanted, aside=aside, artifacts=artifacts, told=told + (stands.lines() if stands else []))


@contextlib.contextmanager
def _scratch(layout: Layout) -> Iterator[Path]:
    """Without a journal what is in it is no half-done restore; a killed one's goes with the next."""
    staging = half_restored.staging(layout)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _missing(layout: Layout, index: dict[str, Any]) -> list[str]:
    """Artifacts of the backup that this checkout's store lacks."""
    store = layout.artifacts.relative_to(layout.root).as_posix() + "/"
    return [name for name in index["files"] if name.startswith(store) and not (layout.root / name).exists()]


def _place(staged: Path, final: Path) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    staged.replace(final)
    files.fsync_dir(final.parent)


def _replace_database(layout: Layout, staging: Path, name: str) -> list[str]:
    """One database in place; what was there, with its log, under a name of its own. A kill leaves the old one, the new one, or both names."""
    final = layout.root / name
    number = next(n for n in range(1, 10**6) if not final.with_name(f"{final.name}{ASIDE}-{n}").exists())
    kept = []
    for path in (final, *(final.with_name(final.name + end) for end in databases.BESIDE)):
        if path.exists():
            aside = final.with_name(path.name.replace(final.name, f"{final.name}{ASIDE}-{number}", 1))
            shutil.copyfile(path, aside)
            kept.append(aside.relative_to(layout.root).as_posix())
    for end in databases.BESIDE:  # the log of the old database must never be applied to the new one
        final.with_name(final.name + end).unlink(missing_ok=True)
    _place(staging / name, final)
    return kept


def _mend(layout: Layout, source: Path, index: dict[str, Any], staging: Path) -> list[str]:
    """Files of versions that the database names and that are damaged here, from the backup where that has other bytes. Returns their names."""
    mended = []
    for version in databases.standing(layout).unsound if layout.mlflow_database.exists() else {}:
        folder = f"{layout.artifacts.relative_to(layout.root).as_posix()}/{version.folder}/"
        for name in (name for name in index["files"] if name.startswith(folder)):
            here = layout.root / name
            if not here.exists() or files.sha256_file(here) != index["files"][name]["sha256"]:
                with contextlib.suppress(Damaged):  # then it stays named as what cannot be served
                    restoration.copy_one(source, name, index["files"][name], staging)
                    _place(staging / name, here)
                    mended.append(name)
    return mended
