"""Is every byte that lmworks keeps the byte that was written? What is wrong, where, and what to do. Nothing is changed.

What to look at is listed first, with its size, and then looked at. Each kind is held against what vouches for it: a published folder
against its manifest and dvc.lock, DVC's objects and runs against their names, text packages against their RECORD, sources against
sources.yaml, checkpoints against their manifests, receipts and points against the hash in them, models against the tags that release wrote. In a database SQLite's own check sees broken structure, not each changed letter.
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import shlex
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components import chain, files, spool
from components import config as settings
from components.corpus import origins
from components.errors import Damaged, UserError
from components.layout import Layout
from components.operations import databases, healing, lock_file, services, staleness, stored_models
from components.operations.findings import Check, Problem, said, size_of
from components.operations.processes import MLFLOW, PREFECT
from components.reporting import Progress

WORTH_SAYING_BYTES = 64 * 2**20
MEND = {"dvc.lock": "rm dvc.lock: lmworks run writes it anew and runs only what DVC's cache does not hold",
        "dvc.yaml": "python -m components.chain --generate", "sources.yaml": "lmworks run, which writes it anew"}
NOT_A_RECORD = (ValueError, TypeError, csv.Error)  # what the reader of Python's library raises: a size or bytes that are none, columns too many or too few
RUN = "lmworks run mends it: from DVC's cache where that is whole, else by running the stage again"


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was looked at, by kind {kind: (things, bytes)}, and what was found."""

    looked_at: dict[str, tuple[int, int]]
    problems: list[Problem]

    @property
    def clean(self) -> bool:
        return not any(problem.damaged for problem in self.problems)


def verify(layout: Layout, models: list[str]) -> Verified:
    """Everything of this checkout, or the models (models:/NAME@ALIAS, models:/NAME/VERSION) alone.

    Raises Busy (a run or a stage writes what would be read) and UserError (a model that is not there, a database that is busy).
    """
    if models:
        return _look(list(stored_models.checks(layout, models)))
    with files.lock(layout.run_lock, what="lmworks run"), files.lock(layout.stage_lock, what="a stage"):
        return _look([check for part in (_settings, _published, _cache, _packages, _sources, _checkpoints, _records, _databases) for check in part(layout)]
                     + list(stored_models.checks(layout, [])))


def small(layout: Layout) -> list[Problem]:
    """What is wrong with settings, receipts and spool: the part of it all that takes a moment."""
    return _look([check for part in (_settings, _records) for check in part(layout)]).problems


def _look(checks: list[Check]) -> Verified:
    looked_at: dict[str, tuple[int, int]] = {}
    problems: list[Problem] = []
    total, done = sum(check.bytes for check in checks), 0
    progress = Progress("verify (MB)", total >> 20) if total > WORTH_SAYING_BYTES else None
    for check in checks:
        try:
            problems += check.look()
        except OSError as error:
            problems.append(Problem(kind=check.kind, where=str(error.filename or ""), wrong=error.strerror or str(error), todo="mend the disk or its permissions"))
        count, size = looked_at.get(check.kind, (0, 0))
        looked_at[check.kind] = count + 1, size + check.bytes
        done += check.bytes
        if progress:
            progress.update(done >> 20)
    if progress:
        progress.__exit__()
    return Verified(looked_at=looked_at, problems=problems)


def _shown(layout: Layout, path: Path) -> str:
    return path.relative_to(layout.root).as_posix() if path.is_relative_to(layout.root) else str(path)


# --- what the chain wrote ------------------------------------------------------------------------

def _settings(layout: Layout) -> Iterator[Check]:
    readers: dict[Path, Callable[[Path], Any]] = {
        layout.params: settings.load, layout.dvc_lock: lambda _path: _lock_file(layout), layout.sources: files.load_yaml,
        layout.versions: files.load_yaml, layout.dvc_yaml: lambda _path: staleness.check_dvc_yaml(layout),
        layout.root / ".dvc" / "config": lambda _path: healing.dvc_config(layout)}

    def look(path: Path) -> Iterator[Problem]:
        where = path.relative_to(layout.root).as_posix()
        try:
            readers[path](path)
        except UserError as error:
            todo = f"git checkout -- {where}, where you committed it, or " + MEND.get(where, "mend it")
            yield Problem(kind="settings", where=where, wrong=said(error, layout), todo=todo)

    for path in readers:
        if path.exists():
            yield Check(kind="settings", bytes=size_of(path), look=lambda path=path: look(path))


def _lock_file(layout: Layout) -> None:
    """Raises Damaged where dvc.lock cannot be read, or states another size of an output than it has."""
    if found := lock_file.wrong(layout, chain.BY_NAME, parts=("outs",)):
        raise Damaged(found)


def _locked(layout: Layout) -> list[dict[str, Any]]:
    """Every out that dvc.lock names; [] where it cannot be read, which is said elsewhere."""
    try:
        return [out for stage in chain.BY_NAME for out in healing.locked_outs(layout, stage)]
    except UserError:
        return []


def _published(layout: Layout) -> Iterator[Check]:
    locked = {out["path"]: out for out in _locked(layout)}
    imported = [folder.relative_to(layout.root).as_posix() for folder in sorted(layout.imported.glob("*")) if (folder / files.MANIFEST).exists()]
    for path in sorted({*locked, *(f"data/{out}" for stage in chain.STAGES for out in stage.outs), *imported}):
        if (layout.root / path).is_dir():
            yield Check(kind="outputs", bytes=size_of(layout.root / path), look=lambda path=path: _folder(layout, path, locked.get(path)))
        elif path in locked:
            gone = Problem(kind="outputs", where=path, wrong="is not here; dvc.lock names it", todo="lmworks run brings or makes it", damaged=False)
            yield Check(kind="outputs", bytes=0, look=lambda gone=gone: iter([gone]))


def _folder(layout: Layout, path: str, locked: dict[str, Any] | None) -> Iterator[Problem]:
    todo = RUN if not path.startswith("data/imported/") else "delete the folder, then lmworks import PATH again"
    try:
        files.verify_manifest(layout.root / path)
    except Damaged as error:
        yield Problem(kind="outputs", where=path, wrong=said(error, layout), todo=todo)
        return
    for entry in _listing(layout, locked) or []:
        found = healing.md5_of(layout.root / path / entry["relpath"])
        if entry["relpath"] == files.MANIFEST and found != entry["md5"]:
            yield Problem(kind="outputs", where=f"{path}/{files.MANIFEST}", todo=RUN,
                          wrong=f"is not the one that dvc.lock names: md5 {found} found, {entry['md5']} recorded")


def _objects(layout: Layout) -> Path | None:
    """Where DVC keeps its objects; None where its settings cannot be read, which is said elsewhere."""
    try:
        return healing.objects_folder(layout)
    except UserError:
        return None


def _listing(layout: Layout, out: dict[str, Any] | None) -> list[dict[str, Any]] | None:
    """The files of an out as DVC's cache has them; None without a whole listing."""
    md5, objects = str((out or {}).get("md5", "")), _objects(layout)
    if objects is None or not md5.endswith(".dir") or healing.md5_of(objects / md5[:2] / md5[2:]) != md5.removesuffix(".dir"):
        return None
    return json.loads((objects / md5[:2] / md5[2:]).read_bytes())


def _cache(layout: Layout) -> Iterator[Check]:
    seen: set[str] = set()
    if (objects := _objects(layout)) is None:
        return
    for out in _locked(layout):
        for md5, name in [(str(out.get("md5", "")), None), *((entry["md5"], entry["relpath"]) for entry in _listing(layout, out) or [])]:
            path = objects / md5[:2] / md5[2:]
            if md5 not in seen and (path.exists() or (layout.root / out["path"]).exists()):  # a fresh clone has neither
                seen.add(md5)
                yield Check(kind="DVC cache", bytes=size_of(path),
                            look=lambda path=path, md5=md5, out=out["path"], name=name: _object(layout, path, md5, out, name))
    for run in lock_file.runs(objects.parent.parent):
        yield Check(kind="run cache", bytes=size_of(run), look=lambda run=run: _run(layout, run))


def _run(layout: Layout, run: Path) -> Iterator[Problem]:
    if not staleness.is_whole_run(run):
        where = _shown(layout, run)
        yield Problem(kind="run cache", where=where, wrong="is not what its name, its hash, says", todo=f"rm -r {shlex.quote(str(Path(where).parent))}: its stage runs where DVC would have used it")


def _object(layout: Layout, path: Path, md5: str, out: str, name: str | None) -> Iterator[Problem]:
    """`name`: the file of the out that the object holds; None: the list of its files."""
    found = healing.md5_of(path)
    if found != md5.removesuffix(".dir"):
        where = _shown(layout, path)
        again = (f"cp {shlex.quote(f'{out}/{name}')} {shlex.quote(where)}" if name
                 else ".venv/bin/dvc commit -f (only while lmworks run --dry-run calls everything up to date: it takes all as it stands)")
        yield Problem(kind="DVC cache", where=f"{where} (of {out})", wrong=f"md5 {found} found, {md5.removesuffix('.dir')} in dvc.lock" if found else "is not there; dvc.lock needs it",
                      todo=f"where {out} is whole: rm -f {shlex.quote(where)}, then {again}; else .venv/bin/dvc fetch, where a remote holds it, or lmworks run, "
                           "which makes both anew")


# --- what came from outside ----------------------------------------------------------------------

INSTALL = "rm -r data/packages, then make setup"


def _packages(layout: Layout) -> Iterator[Check]:
    """Files of the text packages against the RECORD that pip wrote when it had checked the archive's hash."""
    for package in sorted(layout.packages.glob("*.dist-info")):
        try:
            entries = importlib.metadata.Distribution.at(package).files or []
        except NOT_A_RECORD as error:
            broken = Problem(kind="text packages", where=_shown(layout, package / "RECORD"), wrong=f"cannot be read: {error}", todo=INSTALL)
            yield Check(kind="text packages", bytes=size_of(package / "RECORD"), look=lambda broken=broken: iter([broken]))
            continue
        listed = [(Path(str(entry.locate())), entry.hash.value) for entry in entries if entry.hash and entry.hash.mode == "sha256"]
        yield Check(kind="text packages", bytes=sum(size_of(path) for path, _ in listed), look=lambda listed=listed: _recorded(layout, listed))


def _recorded(layout: Layout, listed: list[tuple[Path, str]]) -> Iterator[Problem]:
    for path, wanted in listed:
        found = urlsafe_b64encode(bytes.fromhex(files.sha256_file(path))).decode().rstrip("=") if path.exists() else "no such file"
        if found != wanted:
            yield Problem(kind="text packages", where=_shown(layout, path), wrong=f"sha256 (base64) {found} found, {wanted} installed", todo=INSTALL)


def _sources(layout: Layout) -> Iterator[Check]:
    try:
        groups = files.load_yaml(layout.sources) if layout.sources.exists() else {}
        listed = [(name, entry, origins.locate(entry["path"], layout.root)) for name in origins.GROUPS for entry in (groups.get(name) or {}).get("files") or []]
    except (UserError, KeyError, TypeError, AttributeError):
        malformed = Problem(kind="sources", where=layout.sources.name, wrong="cannot be read as a list of files", todo="lmworks run writes it anew")
        yield Check(kind="sources", bytes=0, look=lambda: iter([malformed]))
        return
    here = layout.packages.is_dir()  # not so before make setup
    for name, entry, path in listed:
        if here or not path.is_relative_to(layout.packages):
            yield Check(kind="sources", bytes=size_of(path), look=lambda name=name, entry=entry, path=path: _source(layout, name, entry, path))


def _source(layout: Layout, name: str, entry: dict[str, Any], path: Path) -> Iterator[Problem]:
    found = files.sha256_file(path) if path.exists() else "no such file"
    if found != entry["sha256"]:
        snapshot = layout.root / "data" / "sources" / name / entry["name"]
        kept = f"; the bytes of then are in {snapshot.relative_to(layout.root)}" if snapshot.exists() else ""
        yield Problem(kind="sources", where=str(entry["path"]), wrong=f"sha256 {found} found, {entry['sha256']} in sources.yaml",
                      todo=f"if you changed it: lmworks run takes it in; if nobody did, bring the file back{kept}")


# --- what this machine keeps ---------------------------------------------------------------------

def _checkpoints(layout: Layout) -> Iterator[Check]:
    """Of trainings that have not ended."""
    for folder in sorted(layout.work_root.glob("*/*/checkpoints/step-*")):
        yield Check(kind="checkpoints", bytes=size_of(folder), look=lambda folder=folder: _checkpoint(layout, folder))


def _checkpoint(layout: Layout, folder: Path) -> Iterator[Problem]:
    try:
        files.verify_manifest(folder)
    except Damaged as error:
        yield Problem(kind="checkpoints", where=folder.relative_to(layout.root).as_posix(), wrong=said(error, layout),
                      todo="nothing: lmworks run goes on from the checkpoint before it (without one, from step 0) and removes this one")


def _records(layout: Layout) -> Iterator[Check]:
    """Receipts, outcomes and spooled runs: readable, as their readers want them."""
    kept = [path for folder in (layout.state, layout.outcomes, layout.unclean) for path in sorted(folder.glob("*.json"))]
    cache = [layout.stat_cache] if layout.stat_cache.exists() else []
    for path in [*kept, *cache, *sorted(layout.spool.glob("*/*.json"))]:
        yield Check(kind="receipts and spool", bytes=size_of(path), look=lambda path=path: _json(layout, path))
    for path in sorted(layout.spool.glob("*/events.jsonl")):
        yield Check(kind="receipts and spool", bytes=size_of(path), look=lambda path=path: _events(layout, path))


def _json(layout: Layout, path: Path) -> Iterator[Problem]:
    where = path.relative_to(layout.root).as_posix()
    todo = ("nothing: its copy beside it is read, and the training writes both anew" if path.name in spool.ABOUT and spool.about(path.parent)
            else "the training goes on, its run in MLflow lacks these points: delete the folder" if path.name in spool.ABOUT
            else "lmworks run writes it anew" if path in (layout.receipt, layout.stat_cache)
            else "lmworks up asks the servers that run and writes it anew" if path == layout.services else "delete it: what needs it writes it anew")
    try:
        files.read_sealed(path)
    except Damaged as error:
        yield Problem(kind="receipts and spool", where=where, wrong=said(error, layout), todo=todo)


def _events(layout: Layout, path: Path) -> Iterator[Problem]:
    if bad := spool.damaged_lines(path.parent):  # what a kill left of a last line is no damage
        yield Problem(kind="receipts and spool", where=path.relative_to(layout.root).as_posix(), wrong=f"{bad} line{'s are' if bad > 1 else ' is'} not what was written",
                      todo="nothing: those points are lost, the others are sent by lmworks run")


def _databases(layout: Layout) -> Iterator[Check]:
    for service, path in ((MLFLOW, layout.mlflow_database), (PREFECT, layout.prefect_database)):
        where = path.relative_to(layout.root).as_posix()
        if services.outside(service, layout) is None and path.exists():
            yield Check(kind="databases", bytes=size_of(path), look=lambda path=path, where=where: _database(layout, path, where))


def _database(layout: Layout, path: Path, where: str) -> Iterator[Problem]:
    try:
        problems = databases.integrity(path)
    except Damaged as error:
        problems = [said(error, layout)]
    for wrong in problems[:1]:
        yield Problem(kind="databases", where=where, wrong=wrong, todo=databases.BACK)
