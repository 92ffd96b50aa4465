"""What takes the space of a checkout, and what of it no version, alias, output of dvc.lock or running process needs.

Each kind is one function that looks and one that removes; looking changes nothing. By default nothing goes that would cost more than
running a cached stage again. What lies in MLflow and Prefect is components/operations/old_rows.py.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components import chain, files, spool, stage_code
from components import config as settings
from components.errors import UserError
from components.layout import Layout
from components.operations import environment, half_restored, healing

DAY_S = 86_400
SCRATCH_S = DAY_S  # whatever uses a temporary file of ours ends within a day
OURS = re.compile(r"^\..+\.\d+\.partial$")  # files.write_atomic, a backup: .NAME.PID.partial
GC_REMOVES = re.compile(r"Removing (/.*)$", re.M)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing that can go: its path or name, its size (0 for a row of a database), why it is not needed."""

    what: str
    bytes: int
    why: str


@dataclass(kw_only=True)
class Kind:
    """What takes space under one name; `remove` takes all its items away."""

    name: str
    bytes: int
    keeps: str  # what stays, and why
    items: list[Item] = field(default_factory=list)
    remove: Callable[[], None] | None = None  # None: nothing goes, or not now (`keeps` says why)
    failed: str | None = None  # why not all of its items went

    @property
    def removable_bytes(self) -> int:
        return sum(item.bytes for item in self.items)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; what vanishes meanwhile counts nothing."""
    return sum(stat.st_size for stat in _stats(path))


def last_touched(path: Path) -> float:
    """Unix time of the newest change in it."""
    return max((stat.st_mtime for stat in _stats(path)), default=path.stat().st_mtime if path.exists() else 0.0)


def _stats(path: Path) -> Iterator[Any]:
    for one in [path] if path.is_file() or path.is_symlink() else path.rglob("*"):
        try:
            stat = one.lstat()
        except OSError:
            continue
        if not one.is_dir() or one.is_symlink():
            yield stat


def survey(layout: Layout, *, older_than_days: float, cache: bool) -> list[Kind]:
    """Every kind, what it takes and what can go. The caller holds the run lock and the stage lock."""
    from components.operations import old_rows  # it builds its kinds from this module

    before_s = time.time() - older_than_days * DAY_S
    keys = current_keys(layout)
    checkpoints, objects = old_checkpoints(layout, keys, before_s), dvc_cache(layout, cache)
    return [checkpoints, temporary_files(layout), old_logs(layout, before_s), old_databases(layout, before_s), dead_spools(layout, keys, before_s, checkpoints), outputs(layout),
            objects, run_cache(layout, objects), old_rows.models(layout, before_s), old_rows.flow_runs(layout, before_s)]


def clean(layout: Layout, *, older_than_days: float, cache: bool = False, dry: bool = False) -> list[Kind]:
    """Look, and unless `dry` remove; what cannot be removed says so in its kind, and the others go. Raises Busy while a run or a stage
    goes on."""
    half_restored.refuse(layout)
    with files.lock(layout.run_lock, what="lmworks run"), files.lock(layout.stage_lock, what="a stage"):
        kinds = survey(layout, older_than_days=older_than_days, cache=cache)
        for kind in kinds if not dry else []:
            if kind.items and kind.remove:
                try:
                    kind.remove()
                except OSError as error:
                    kind.failed = f"{kind.name}: {error.strerror or error}: {error.filename}. Mend that, then run again; what went is gone, the rest is whole"
                except UserError as error:
                    kind.failed = f"{kind.name}: {error}"
    return kinds


def _removing(paths: Iterable[Path]) -> Callable[[], None]:
    found = list(paths)

    def remove() -> None:
        for path in found:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    return remove


def _kind(layout: Layout, name: str, takes: int, keeps: str, reasons: dict[Path, str]) -> Kind:
    items = [Item(what=path.relative_to(layout.root).as_posix(), bytes=size_of(path), why=why) for path, why in reasons.items()]
    return Kind(name=name, bytes=takes, keeps=keeps, items=items, remove=_removing(reasons))


# --- files of our own ----------------------------------------------------------------------------

def current_keys(layout: Layout) -> dict[str, str | None]:
    """{stage: the KEY that its next run would have}; None where that cannot be said: nothing of such a stage goes."""
    found: dict[str, str | None] = {}
    for stage in chain.STAGES:
        try:
            facts = chain.fingerprint(stage, settings.load(layout.params), layout, stage_code.of(stage.name, layout.root))
            found[stage.name] = files.sha256_bytes(files.canonical_json(facts).encode())[:16]
        except (UserError, OSError, SyntaxError, importlib.metadata.PackageNotFoundError):
            found[stage.name] = None
    return found


def old_checkpoints(layout: Layout, keys: dict[str, str | None], before_s: float) -> Kind:
    """work/STAGE/KEY of settings, data or code that are not the present ones, untouched for long."""
    folders = [folder for name in keys for folder in sorted((layout.work_root / name).glob("*")) if folder.is_dir()]
    reasons = {folder: "checkpoints of other settings, data or code than the present ones" for folder in folders
               if keys[folder.parent.name] not in (None, folder.name) and last_touched(folder) < before_s}
    return _kind(layout, "checkpoints", sum(map(size_of, folders)), "those that the next run goes on from, and all that are younger", reasons)


def temporary_files(layout: Layout) -> Kind:
    """What killed processes left: half-written files, scratch folders, copies of models."""
    found = [path for folder in (layout.partial, layout.work_root / "models", layout.work_root / "release") if folder.is_dir() for path in sorted(folder.iterdir())]
    found += [path for path in sorted(layout.root.glob(".*.partial")) if OURS.match(path.name)]
    inside = [folder for folder in (layout.state, layout.root / "data", layout.work_root) if folder.is_dir()]
    found += [path for folder in inside for path in sorted(folder.rglob(".*.partial"))
              if OURS.match(path.name) and not any(path.is_relative_to(other) for other in found)]
    objects = healing.objects_folder(layout)
    found += sorted(objects.rglob("*.tmp")) if objects.is_dir() and not _is_shared(layout, objects) else []
    before_s = time.time() - SCRATCH_S
    reasons = {path: "left by a process that was killed" for path in found if last_touched(path) < before_s}
    return _kind(layout, "temporary files", sum(map(size_of, found)), "those younger than a day: a process may use them", reasons)


def old_logs(layout: Layout, before_s: float) -> Kind:
    """Logs that were put aside at their largest size; the present ones are written to."""
    found = sorted(layout.logs.glob("*")) if layout.logs.is_dir() else []
    reasons = {path: "an old log of a server" for path in found if path.suffix != ".log" and last_touched(path) < before_s}
    return _kind(layout, "logs", sum(map(size_of, found)), "the present logs, and old ones that are younger", reasons)


def old_databases(layout: Layout, before_s: float) -> Kind:
    """Databases that a migration or a restore put aside; the present ones are MLflow's and Prefect's."""
    found = [path for database in (layout.mlflow_database, layout.prefect_database) for path in sorted(database.parent.glob(f"{database.name}.before-*"))]
    reasons = {path: "a database of before a migration or a restore" for path in found if last_touched(path) < before_s}
    return _kind(layout, "databases put aside", sum(map(size_of, found)), "younger ones", reasons)


def dead_spools(layout: Layout, keys: dict[str, str | None], before_s: float, checkpoints: Kind) -> Kind:
    """Spooled runs that ended for good, whose points MLflow has and whose training cannot go on any more."""
    going = {item.what for item in checkpoints.items}
    reasons = {}
    folders = sorted(path for path in layout.spool.glob("*") if path.is_dir()) if layout.spool.is_dir() else []
    for folder in folders:
        stage, _, rest = folder.name.partition("-")
        key = rest.partition("-")[0]
        events = folder / "events.jsonl"
        if stage not in keys or keys[stage] in (None, key) or not events.exists() or last_touched(folder) >= before_s:
            continue
        unsent = events.stat().st_size > spool.sent(folder)["offset"]
        work = layout.work_root / stage / key
        can_go_on = work.exists() and work.relative_to(layout.root).as_posix() not in going
        if not unsent and not can_go_on and _last_status(folder) in ("KILLED", "FAILED"):
            reasons[folder] = "a killed training that another took the place of; MLflow has all its points"
    return _kind(layout, "spooled runs", sum(map(size_of, folders)), "points that MLflow does not have, and trainings that can go on", reasons)


def _last_status(folder: Path) -> str | None:
    return next((event["status"] for event in reversed(list(spool.events(folder))) if "status" in event), None)


# --- DVC -----------------------------------------------------------------------------------------

def outputs(layout: Layout) -> Kind:
    """data/: the workspace itself. Nothing of it goes."""
    data = layout.root / "data"
    taken = sum(size_of(path) for path in data.iterdir() if not path.is_symlink() and path != layout.partial) if data.is_dir() else 0
    return Kind(name="data", bytes=taken, keeps="all: the outputs that dvc.lock names, packages, an imported base")


def _is_shared(layout: Layout, folder: Path) -> bool:
    """Whether a folder of DVC's cache lies outside this checkout, so that others may use it, too."""
    return not folder.resolve().is_relative_to(layout.root.resolve())


def dvc_cache(layout: Layout, wanted: bool) -> Kind:
    """What DVC's own `gc` would take: objects that neither this workspace nor any commit or experiment of git names."""
    folder = healing.objects_folder(layout).parent.parent
    kind = Kind(name="DVC cache", bytes=size_of(folder) if folder.is_dir() else 0,
                keeps="what dvc.lock and every commit, branch, tag and experiment name" if (layout.root / ".git").exists() else "what dvc.lock names")
    if not layout.dvc_lock.exists() or not folder.is_dir():
        kind.keeps = "all: without dvc.lock nobody can say what is needed"
        return kind
    if _is_shared(layout, folder):
        kind.keeps = "all: it lies outside this checkout, and others may use it (dvc gc --projects names them)"
        return kind
    told = _gc(layout, "--dry")
    for path in (Path(line) for line in GC_REMOVES.findall(told)):
        kind.items.append(Item(what=path.name if not path.is_relative_to(layout.root) else path.relative_to(layout.root).as_posix(), bytes=size_of(path),
                               why="of earlier settings; going back to them would run their stages again"))
    if wanted:
        kind.remove = lambda: _gc(layout) and None
    elif kind.items:
        kind.keeps += "; earlier settings too, as their stages would run again: --cache lets them go"
    return kind


def run_cache(layout: Layout, cache: Kind) -> Kind:
    """DVC's notes of what a stage made of which inputs, where the objects are gone, or go with `cache`: nothing comes back from those, and
    `dvc gc` leaves them."""
    folder = healing.objects_folder(layout).parent.parent / "runs"

    def useless(going: set[Path]) -> list[Path]:
        return [path for path in sorted(folder.glob("*/*/*")) if path.is_file() and not _made_is_there(layout, path, going)]

    kind = Kind(name="DVC run cache", bytes=size_of(folder), keeps="runs whose outputs stay in the cache")
    if _is_shared(layout, folder):
        kind.keeps = "all: it lies outside this checkout, and others may use it"
        return kind
    config = healing.dvc_config(layout)
    remotes = [config.get(section, "url", fallback="") for section in config.sections() if section.startswith("'remote ")]
    if any("://" in url or (layout.root / ".dvc" / url).exists() for url in remotes):  # a folder that is not there was never pushed to
        kind.keeps = "all: outputs that are not here may come back from DVC's remote"
        return kind
    found = useless({layout.root / item.what for item in cache.items} if cache.remove else set())
    kind.items = [Item(what=os.path.relpath(path, layout.root), bytes=size_of(path), why="DVC's cache has not what that run made") for path in found]

    def remove() -> None:
        for path in useless(set()):  # looked at again: objects that could not be removed are there
            path.unlink()
            for above in (path.parent, path.parent.parent):
                with contextlib.suppress(OSError):  # another run of the same inputs is in it
                    above.rmdir()

    kind.remove = remove
    return kind


def _made_is_there(layout: Layout, entry: Path, going: set[Path]) -> bool:
    """Whether DVC could bring back what a run of its run cache made; one that cannot be read brings back nothing."""
    objects = healing.objects_folder(layout)
    try:
        made = files.load_yaml(entry)["outs"]
        paths = [objects / out["md5"][:2] / out["md5"][2:] for out in made if out.get("hash") == "md5"]  # older entries name objects that lie elsewhere
        return all(path.exists() and path not in going for path in paths)
    except (UserError, KeyError, TypeError, AttributeError):
        return False


def _gc(layout: Layout, *more: str) -> str:
    """DVC's garbage collection; what it said. Raises UserError with its last line."""
    revisions = ["--all-commits", "--all-experiments"] if (layout.root / ".git").exists() else []
    done = subprocess.run([environment.python(layout), "-m", "dvc", "gc", "--workspace", *revisions, "--force", *more], cwd=layout.root, text=True,
                          env=environment.child(layout), capture_output=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(f"dvc gc ended with {done.returncode}: {lines[-1] if lines else 'no word'}. Nothing of the cache was removed")
    return done.stdout + done.stderr
