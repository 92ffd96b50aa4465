"""A backup of one checkout: a folder that can be read with any tool, whole or not there, every file of it with its sha256.

The databases come first and the artifacts after them: artifacts are only ever added, so whatever the copied database names is
still there to be copied. Restoring is components/operations/restoration.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from components import chain, files, provenance, storage
from components.errors import Damaged, UserError
from components.layout import Layout
from components.operations import databases, half_restored, healing, services
from components.operations.processes import MLFLOW, PREFECT, Service
from components.reporting import Progress

INDEX = "backup.json"
FORMAT = 1
CHUNK_BYTES = 2**20
SPARE = 1.02  # of the space that is needed: directories, the index
NOT_IN = ("your own text and records where they lie outside this checkout (the snapshot that was trained on is in the backup)",
          "checkpoints of a training that has not ended: it begins again at step 0",
          "the code (it is in git), .venv and data/packages (make setup)")


@dataclass(frozen=True, kw_only=True)
class File:
    """One file to copy: from where, to where in the backup; `md5`: what DVC says its bytes are."""

    source: Path
    target: str
    md5: str | None = None


def create(layout: Layout, target: Path) -> dict[str, Any]:
    """Write the backup folder `target` and return its index, with "warnings".

    Raises Busy (a run or a stage goes on), UserError (`target` is there; no space; nothing to back up) and Damaged (a database).
    """
    target = target.absolute()
    half_restored.refuse(layout)
    _check_target(layout, target)
    with files.lock(layout.run_lock, what="lmworks run"), files.lock(layout.stage_lock, what="a stage"):
        for left in target.parent.glob(f".{target.name}.*.partial"):  # a kill while an earlier one was written
            if left.name.split(".")[-2].isdigit() and not psutil.pid_exists(int(left.name.split(".")[-2])):
                shutil.rmtree(left, ignore_errors=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            index = _write(layout, partial)
            if target.exists():
                raise UserError(f"{target} appeared meanwhile; nothing is overwritten. Name a new folder")
            files.fsync_tree(partial)
            partial.rename(target)
            files.fsync_dir(target.parent)
        except OSError as error:
            why = storage.said(error, partial) or f"{error.strerror or error}: {error.filename or partial}. Mend that, then run again"
            raise UserError(f"cannot write the backup {target}: {why}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return index


def _check_target(layout: Layout, target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} is there already; a backup never overwrites. Name a new folder")
    if not target.parent.is_dir():
        raise UserError(f"{target.parent} is no folder. Make it first: mkdir -p {target.parent}")
    inside = next((folder for folder in (layout.mlruns, layout.prefect_home, layout.state, layout.work_root, layout.root / "data", layout.root / ".dvc")
                   if target.resolve().is_relative_to(folder.resolve())), None)
    if inside is not None:
        raise UserError(f"{target} lies in {inside}, which belongs to what is backed up. Name a folder outside, best on another disk")


def outside(layout: Layout) -> dict[str, str]:
    """{server: what to do} of the servers that are not this checkout's: their data is not in its backup."""
    told = {}
    for service, what in ((MLFLOW, "runs, models and their files"), (PREFECT, "flow runs and schedules")):
        if url := services.outside(service, layout):
            told[service.name] = (f"{what} are kept by {url} ({service.variable}) and are NOT in this backup. Back that server up where it runs, the "
                                  "database first (PostgreSQL: pg_dump -Fc DATABASE > mlflow.dump), then its artifact store (S3: a versioned bucket, or a sync)"
                                  if service is MLFLOW else
                                  f"{what} are kept by {url} ({service.variable}) and are NOT in this backup. Back its database up where it runs "
                                  "(PostgreSQL: pg_dump -Fc DATABASE > prefect.dump)")
    return told


def _write(layout: Layout, partial: Path) -> dict[str, Any]:
    elsewhere = outside(layout)
    partial.mkdir(mode=0o700)  # what was trained on may be private
    taken = []
    wanted: tuple[tuple[Service, Path], ...] = ((MLFLOW, layout.mlflow_database), (PREFECT, layout.prefect_database))
    for service, database in wanted:
        if service.name not in elsewhere and database.exists():
            databases.snapshot(database, partial / database.relative_to(layout.root))
            taken.append(database.relative_to(layout.root).as_posix())
    whole, lacking = chain_objects(layout)
    plan = [*settings(layout), *([] if MLFLOW.name in elsewhere else tree(layout, layout.artifacts)), *tree(layout, layout.imported),
            *tree(layout, layout.spool), *whole]
    if not taken and not whole and not elsewhere:
        raise UserError(f"nothing to back up in {layout.root}: no database, and no stage has run. Run: lmworks run")
    _check_space(partial, plan)
    entries = _copy(plan, partial)
    for name in taken:
        entries[name] = {"sha256": files.sha256_file(partial / name), "bytes": (partial / name).stat().st_size}
    warnings = [*elsewhere.values(), *lacking]
    copied = Layout(root=partial)
    versions = []
    if copied.mlflow_database.exists():
        stands = databases.standing(copied)
        warnings += [line for line in stands.lines() if "newer than the database" not in line]  # those are harmless, and stay
        versions = [{"name": v.name, "version": v.number, "aliases": list(v.aliases), "weights_sha256": v.weights_sha256, "sound": v in stands.sound}
                    for v in (*stands.sound, *stands.unsound)]
    branch, commit = provenance.git_head(layout.root)
    index: dict[str, Any] = {
        "format": FORMAT, "made_at": datetime.now(UTC).isoformat(timespec="seconds"), "git": {"branch": branch, "commit": commit},
        "versions": versions, "warnings": warnings, "not_in": list(NOT_IN), "files": dict(sorted(entries.items()))}
    index["sha256"] = digest(index)
    files.write_json(partial / INDEX, index)
    return index


def digest(index: dict[str, Any]) -> str:
    """The hash of an index, that key itself left out: a flipped byte in backup.json is seen as well."""
    return files.sha256_bytes(files.canonical_json({key: value for key, value in index.items() if key != "sha256"}).encode())


# --- what belongs to it --------------------------------------------------------------------------

def tree(layout: Layout, folder: Path) -> list[File]:
    """Every file below `folder`, links left out: what they name lies elsewhere."""
    if not folder.is_dir():
        return []
    return [File(source=path, target=path.relative_to(layout.root).as_posix()) for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.is_symlink() and path.name != ".lock"]


def settings(layout: Layout) -> list[File]:
    """What was asked for, what came of it, and how the last runs ended."""
    wanted = (layout.params, layout.sources, layout.dvc_lock, layout.receipt, layout.last_run, layout.scheduled)
    return [File(source=path, target=path.relative_to(layout.root).as_posix()) for path in wanted if path.exists()]


def object_path(md5: str) -> str:
    """Where a backup keeps an object of DVC: where a checkout does by default."""
    return f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}"


def chain_objects(layout: Layout) -> tuple[list[File], list[str]]:
    """(the objects of DVC that dvc.lock needs, each once; sentences about outputs that are not whole and are left out).

    An object that the cache lacks, or holds damaged, is taken from the output itself. Every file is hashed.
    """
    found: dict[str, File] = {}
    lacking = []
    for stage in chain.BY_NAME:
        for out in healing.locked_outs(layout, stage):
            try:
                mine = list(_objects_of(layout, out))
            except (OSError, ValueError, KeyError, TypeError):
                lacking.append(f"{out['path']} is not whole, neither in data/ nor in DVC's cache, and is left out: {stage} runs again after a restore")
                continue
            found |= {file.target: file for file in mine}
    return list(found.values()), lacking


def _objects_of(layout: Layout, out: dict[str, Any]) -> Iterator[File]:
    """The objects of one output. Raises FileNotFoundError where one is nowhere whole."""
    objects, md5 = healing.objects_folder(layout), str(out["md5"])
    listing = objects / md5[:2] / md5[2:]
    yield File(source=listing, target=object_path(md5), md5=_checked(listing, md5.removesuffix(".dir")))
    for entry in json.loads(listing.read_bytes()):
        sources = (objects / entry["md5"][:2] / entry["md5"][2:], layout.root / out["path"] / entry["relpath"])
        whole = next((path for path in sources if path.is_file() and md5_of(path) == entry["md5"]), None)
        if whole is None:
            raise FileNotFoundError(entry["relpath"])
        yield File(source=whole, target=object_path(entry["md5"]), md5=entry["md5"])


def _checked(path: Path, md5: str) -> str:
    if md5_of(path) != md5:
        raise FileNotFoundError(path)
    return md5


def md5_of(path: Path) -> str:
    """DVC's name for the bytes of a file."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


# --- copying -------------------------------------------------------------------------------------

def _check_space(folder: Path, plan: list[File]) -> None:
    needed = sum(file.source.stat().st_size for file in plan) * SPARE
    storage.check_room(folder.parent, needed, "the backup", "run again, or name another disk")


def _copy(plan: list[File], partial: Path) -> dict[str, dict[str, Any]]:
    """{path in the backup: {"sha256", "bytes"}}. Raises Damaged for an object that changed since it was hashed."""
    total = sum(file.source.stat().st_size for file in plan) or 1
    entries, done = {}, 0
    with Progress("backup", total // 10**6 + 1) as progress:  # the last one: the end
        for file in plan:
            copied = copy_hashed(file.source, partial / file.target)
            if file.md5 and copied.pop("md5") != file.md5:
                raise Damaged(f"{file.source} changed while it was copied. Run again")
            copied.pop("md5", None)
            entries[file.target] = copied
            done += copied["bytes"]
            progress.update(min(done, total) // 10**6, f"MB, {len(entries):,} of {len(plan):,} files")
        progress.update(total // 10**6 + 1, "MB")
    return entries


def copy_hashed(source: Path, target: Path) -> dict[str, Any]:
    """Copy the bytes; {"sha256", "md5", "bytes"} of what was written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with open(source, "rb") as read, open(target, "wb") as written:
        while chunk := read.read(CHUNK_BYTES):
            sha256.update(chunk)
            md5.update(chunk)
            written.write(chunk)
            size += len(chunk)
    return {"sha256": sha256.hexdigest(), "md5": md5.hexdigest(), "bytes": size}
