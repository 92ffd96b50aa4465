"""A backup brought back into an empty checkout: everything in its place, or nothing.

All files are copied to .lmworks/restore/ and hashed on the way; only when every one is right do they move into place, by renames
that are written down first. A kill among the renames is undone by the next `lmworks restore`; until then nothing else works in the checkout
(half_restored.py). The databases alone, beside newer data and models: restored_databases.py.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from components import chain, files, storage
from components.errors import Busy, Damaged, UserError
from components.layout import Layout
from components.operations import backup, databases, half_restored, healing, running
from components.operations.databases import BESIDE, CONTENT
from components.operations.half_restored import JOURNAL
from components.reporting import Progress


def restore(layout: Layout, source: Path) -> dict[str, Any]:
    """Bring the backup in the folder `source` back. Returns {"index", "replaced": settings files that were others, "standing": Standing | None,
    "reconciled": what was put in order in the registry, in words}.

    Raises UserError (no backup there, the checkout is not empty, servers run), Busy (a run goes on) and Damaged (a file of the
    backup is not what was written); then the checkout is as it was.
    """
    source = source.absolute()
    with files.lock(layout.run_lock, what="lmworks run"), files.lock(layout.stage_lock, what="a stage"), \
            files.lock(layout.startup_lock, what="the start of the servers", wait_s=5):
        staging = half_restored.staging(layout)
        check_servers_down(layout)
        undo(layout, staging)
        index = read_index(source)
        refuse_if_taken(layout)
        try:
            _copy(source, index, staging)
            reconciled = reconcile(Layout(root=staging).mlflow_database)
            replaced = _place(layout, staging, source)
        except OSError as error:
            why = storage.said(error, staging) or f"{error.strerror or error}: {error.filename or staging}. Mend that, then run again"
            undo(layout, staging)
            raise UserError(f"cannot restore: {why}. Nothing was changed") from error
        except BaseException:
            undo(layout, staging)
            raise
        stands = databases.standing(layout) if layout.mlflow_database.exists() else None
    return {"index": index, "replaced": replaced, "standing": stands, "reconciled": reconciled}


def reconcile(database: Path) -> list[str]:
    """Take away, in a database that no server has, the aliases of versions that it does not have. Returns them in words."""
    loose = databases.dangling(database) if database.exists() else []
    if loose:
        databases.drop_dangling(database)
    return [f"{line}: the alias was taken away" for line in loose]


# --- what is asked first -------------------------------------------------------------------------

def check_servers_down(layout: Layout) -> None:
    """Raises Busy where a server or the worker of this checkout runs: it would go on writing to files that are replaced."""
    if alive := running.alive(layout):
        raise Busy(f"{' and '.join(alive)} of this checkout {'run' if len(alive) > 1 else 'runs'}; a restore needs them down. Run: lmworks down")


def read_index(source: Path) -> dict[str, Any]:
    """The backup's own list of its files. Raises UserError and Damaged."""
    path = source / backup.INDEX
    if not path.is_file():
        raise UserError(f"{source} is no backup of lmworks: it has no {backup.INDEX}. Name a folder that `lmworks backup` wrote")
    index = files.read_json(path)
    if not isinstance(index, dict) or not isinstance(index.get("files"), dict) or index.get("sha256") != backup.digest(index) \
            or path.read_bytes() != files.canonical_json(index).encode():  # the one way it is written
        raise Damaged(f"{path} is damaged: it is not what `lmworks backup` wrote. Use another copy of this backup")
    if index.get("format") != backup.FORMAT:
        raise UserError(f"{path} has format {index.get('format')!r}; this lmworks reads {backup.FORMAT}. Restore with the version that wrote it")
    listed = set(index["files"])
    found = {file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file() or file.is_symlink()} - {backup.INDEX}
    for name in sorted(listed):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise Damaged(f"{path} names {name}, which lies outside the backup. Nothing was restored")
    if links := sorted(name for name in found if (source / name).is_symlink()):
        raise Damaged(f"{source / links[0]} is a link; a backup holds none, and what it names is not part of it. Nothing was restored")
    if missing := sorted(listed - found):
        raise Damaged(f"{source / missing[0]} is missing ({len(missing)} of {len(listed)} files). Use another copy of this backup")
    if extra := sorted(found - listed):
        raise Damaged(f"{source / extra[0]} is not in {backup.INDEX}: somebody added it. Remove it, then run again")
    return index


def taken(layout: Layout) -> list[str]:
    """What is in this checkout already and would be lost or mixed, as paths. Databases that nobody used yet do not count."""
    found = []
    for server, path in (("mlflow", layout.mlflow_database), ("prefect", layout.prefect_database)):
        if path.exists() and any(databases.rows(path, table) for table in CONTENT[server]):
            found.append(path)
    found += [folder for folder in (layout.artifacts, layout.spool) if folder.is_dir() and any(folder.iterdir())]
    data = layout.root / "data"
    found += [path for path in sorted(data.iterdir()) if path not in (layout.packages, layout.partial) and path.name != "remote"] if data.is_dir() else []
    found += [layout.receipt] if layout.receipt.exists() else []
    return [path.relative_to(layout.root).as_posix() for path in found]


def refuse_if_taken(layout: Layout) -> None:
    there = taken(layout)
    if there:
        raise UserError(f"this checkout is not empty: {', '.join(there)}. A restore mixes nothing and overwrites nothing. Restore into a fresh clone "
                        "(git clone, make setup, lmworks restore PATH), or move these away first. The databases alone, beside this data and these "
                        "models: lmworks restore PATH --databases")


# --- copying and placing -------------------------------------------------------------------------

def _copy(source: Path, index: dict[str, Any], staging: Path) -> None:
    """All files into `staging`, each hashed. Raises Damaged, naming the file and both hashes, and UserError (no space)."""
    listed = index["files"]
    total = sum(int(entry["bytes"]) for entry in listed.values())
    staging.mkdir(parents=True)
    storage.check_room(staging, 2 * total, "the restore")  # the outputs are built beside the cache
    done = 0
    with Progress("restore", total // 10**6 + 1) as progress:  # the last one: the end
        for count, (name, entry) in enumerate(listed.items(), 1):
            done += copy_one(source, name, entry, staging)
            progress.update(done // 10**6, f"MB, {count:,} of {len(listed):,} files")
        progress.update(total // 10**6 + 1, "MB")


def copy_one(source: Path, name: str, entry: dict[str, Any], staging: Path) -> int:
    """One file of the backup into `staging`; its bytes. Raises Damaged, naming it and both hashes."""
    copied = backup.copy_hashed(source / name, staging / name)
    if (copied["sha256"], copied["bytes"]) != (entry["sha256"], entry["bytes"]):
        raise Damaged(f"{source / name} is damaged: sha256 {copied['sha256'][:16]}… found, {entry['sha256'][:16]}… written. Nothing was restored. "
                      "Use another copy of this backup")
    return int(copied["bytes"])


def _place(layout: Layout, staging: Path, source: Path) -> list[str]:
    """Objects into DVC's cache, then everything else by renames that can be undone. Returns the settings files that were others."""
    _add_objects(layout, staging)
    staged = Layout(root=staging)
    for stage in chain.BY_NAME:
        for out in healing.locked_outs(staged, stage):
            copy = healing.copy_from_cache(layout, out)
            if copy is None:
                continue  # the backup said that it lacks this one: its stage runs again
            (staging / out["path"]).parent.mkdir(parents=True, exist_ok=True)
            copy.rename(staging / out["path"])
    moves = [path.relative_to(staging).as_posix() for path in _units(staged, staging)]
    replaced = [name for name in moves if (layout.root / name).is_file() and Path(name).suffix in (".yaml", ".lock")
                and (layout.root / name).read_bytes() != (staging / name).read_bytes()]
    files.fsync_tree(staging)
    files.write_sealed(staging / JOURNAL, {"source": str(source), "moves": {name: _touched(staging / name) for name in moves}})
    for name in moves:
        _move_in(layout.root, staging, name)
    (staging / JOURNAL).unlink()  # from here on the checkout is the restored one
    files.fsync_dir(staging)
    shutil.rmtree(staging, ignore_errors=True)
    return replaced


def _units(staged: Layout, staging: Path) -> list[Path]:
    """What moves, in order: what nothing refers to first, the databases and the receipt last."""
    outs = [staged.root / out["path"] for stage in chain.BY_NAME for out in healing.locked_outs(staged, stage)]
    wanted = [staged.artifacts, *outs, staged.imported, staged.spool, staged.params, staged.sources, staged.dvc_lock, staged.last_run, staged.scheduled,
              staged.prefect_database, staged.mlflow_database, staged.receipt]
    return [path for path in wanted if path.exists()]


def _add_objects(layout: Layout, staging: Path) -> None:
    """By content: what the cache has already is the same, unless it is damaged; left behind, they do no harm."""
    held, objects = staging / ".dvc/cache/files/md5", healing.objects_folder(layout)
    if not held.is_dir():
        return
    files.fsync_tree(held)
    for path in sorted(held.rglob("*")):
        if path.is_file():
            final = objects / path.relative_to(held)
            if not (final.exists() and backup.md5_of(final) == final.parent.name + final.name.removesuffix(".dir")):
                final.parent.mkdir(parents=True, exist_ok=True)
                path.replace(final)


def _move_in(root: Path, staging: Path, name: str) -> None:
    """One rename; what was there (a setting, a database that nobody used) waits in before/ until the end."""
    final = root / name
    for path in (final, *(final.with_name(final.name + end) for end in BESIDE)):
        if path.exists():
            aside = staging / "before" / path.relative_to(root)
            aside.parent.mkdir(parents=True, exist_ok=True)
            path.rename(aside)
    final.parent.mkdir(parents=True, exist_ok=True)
    (staging / name).rename(final)
    files.fsync_dir(final.parent)


def undo(layout: Layout, staging: Path) -> None:
    """Take back what a restore that failed or was killed had moved in; nothing to do after a whole one.

    Raises UserError, and changes nothing, where somebody worked in the half-restored checkout meanwhile.
    """
    if (written := half_restored.journal(layout)) is not None:
        planned = written["moves"]
        # what is not in staging any more was moved in
        moved = [name for name in planned if not (staging / name).exists() and (layout.root / name).exists()]
        if used := [name for name in moved if _touched(layout.root / name) != planned[name]]:
            raise UserError(f"a restore was killed here, and {', '.join(used)} changed since. Move what you need away, remove the rest and {staging}, then run again")
        for name in moved:
            final = layout.root / name
            shutil.rmtree(final) if final.is_dir() else final.unlink()
            with contextlib.suppress(OSError):  # a folder that was made for it; others are not empty
                final.parent.rmdir()
        before = staging / "before"
        for path in [path for path in before.rglob("*") if path.is_file()] if before.exists() else []:
            original = layout.root / path.relative_to(before)
            original.parent.mkdir(parents=True, exist_ok=True)
            path.replace(original)
    shutil.rmtree(staging, ignore_errors=True)


def _touched(path: Path) -> int:
    """The newest change of a file (a database: with what lies beside it) or of any file in a folder, in ns; a rename keeps it."""
    inside = path.rglob("*") if path.is_dir() else (one for one in (path, *(path.with_name(path.name + end) for end in BESIDE)) if one.exists())
    return max((one.stat().st_mtime_ns for one in inside if one.is_file()), default=0)
