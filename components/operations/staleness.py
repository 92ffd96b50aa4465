"""Which stages are stale, and why: DVC's answer, asked in process (no second rule of our own)."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from components import chain, files
from components.chain import REMEDIES
from components.errors import Busy, Damaged, UserError
from components.layout import Layout
from components.operations import dvc_locks, environment, healing, lock_copy, lock_file
from components.reporting import say

NEVER_RUN = "it never ran"
NOT_HASHED = ["size", "nfiles"]  # in the name of a run cache entry
OUTPUT = "its output"  # how a reason begins that lies in what the stage made, not in what it depends on


class _MemoryDamaged(Exception):
    """What DVC remembers of hashes (.dvc/site) cannot be read."""


def _generate(layout: Layout) -> str:
    return f"Run: {layout.venv / 'bin' / 'python'} -m components.chain --generate"


def names(layout: Layout) -> list[str]:
    """The stages of dvc.yaml, in the order of the chain. Raises UserError if there is none."""
    if not layout.dvc_yaml.exists():
        raise UserError(f"no dvc.yaml in {layout.root}. {_generate(layout)}")
    tree = files.load_yaml(layout.dvc_yaml)
    stages = tree.get("stages") if isinstance(tree, dict) else None
    if not isinstance(stages, dict) or not stages:
        raise Damaged(f"{layout.dvc_yaml} has no stages: it was emptied or damaged. {_generate(layout)}")
    return list(stages)


def check_dvc_yaml(layout: Layout) -> None:
    """Raises Damaged where dvc.yaml is not what the stage table and the imports of the stages give: DVC would take a stage that is not
    in it for none at all, and the rest for the whole chain."""
    wanted = chain.render_dvc_yaml(layout.root)
    found = layout.dvc_yaml.read_text(errors="replace") if layout.dvc_yaml.exists() else ""
    if found == wanted:
        return
    lacking = [line.strip(" :") for line in re.findall(r"^  \w+:$", wanted, re.MULTILINE) if f"\n{line}\n" not in found]
    number = next(number for number, (one, other) in enumerate(itertools.zip_longest(found.splitlines(True), wanted.splitlines(True)), start=1) if one != other)
    what = f"it lacks {', '.join(lacking)}" if lacking else f"line {number} is another"
    raise Damaged(f"{layout.dvc_yaml} is not what the stage table and the imports of the stages give ({what}). {_generate(layout)}")


@contextlib.contextmanager
def _repo(layout: Layout) -> Iterator[Any]:
    """An open DVC repository under its lock; other commands are waited for. DVC's errors become ours."""
    environment.apply(layout)
    _close_memory(layout)
    healing.dvc_config(layout)  # DVC does not say of every damage there which file it is in
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo, lock_repo
    from dvc.rwlock import RWLockFileCorruptedError
    from dvc_data.hashfile.cache import DiskError

    # after the import, which sets it; at ERROR a terminal gets a progress bar for each file that is looked at
    logging.getLogger("dvc").setLevel(logging.CRITICAL)
    try:
        # DVC names files relative to the current folder; people should read the same from anywhere
        with contextlib.chdir(layout.root), Repo(str(layout.root), _wait_for_lock=True) as repo, lock_repo(repo):
            dvc_locks.mend(layout)
            if lock_copy.mend(layout):
                say("dvc.lock was cut short (a full disk, or a kill while DVC wrote it): the copy of before is back in its place")
            lock_copy.keep(layout)
            yield repo
    except (LockError, RWLockFileCorruptedError) as error:
        raise Busy(f"DVC is busy in this checkout: {_one_line(error)}. Wait for it, then run again") from error
    except DvcException as error:
        if "busy" in str(error):
            raise Busy(f"a stage is running in this checkout: {_one_line(error)}. Wait for it, then run again") from error
        told = _one_line(error)
        advice = (REMEDIES[layout.sources.name] if layout.sources.name in told else lock_file.MEND if layout.dvc_lock.name in told
                  else "Mend that, then run again")
        raise UserError(f"DVC cannot read this checkout: {told.removesuffix('.')}. {advice}") from error
    except (sqlite3.DatabaseError, DiskError) as error:
        if isinstance(error, sqlite3.OperationalError) and not any(words in str(error) for words in ("no such", "malformed", "file format")):
            raise UserError(f"DVC cannot read or write {layout.root / '.dvc' / 'site'}: {_one_line(error)}. Mend that, then run again") from error
        raise _MemoryDamaged(_one_line(error)) from error
    except (KeyError, ValueError, TypeError, AttributeError) as error:  # DVC's own readers, of a value that it never writes
        raise Damaged(f"DVC cannot read what stands in {layout.dvc_lock.name} ({type(error).__name__}: {_one_line(error)[:200]}). {lock_file.MEND}") from error


def _ask(layout: Layout, question: Callable[[Any], Any]) -> Any:
    """The answer of an open repository. What DVC only remembers may go: it hashes again."""
    try:
        with _repo(layout) as repo:
            return question(repo)
    except _MemoryDamaged as error:
        say(f"DVC's memory of hashes in .dvc/site is damaged ({error}); it is made anew")
        forget(layout)
        with _repo(layout) as repo:
            return question(repo)


def forget(layout: Layout) -> None:
    """Drop what DVC remembers of hashes: it hashes again."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(layout.root / ".dvc" / "site" / "repo")


def _close_memory(layout: Layout) -> None:
    """DVC makes the folder of its memory open to all, and unpickles what lies in it (`dvc checkout` does): it is its owner's alone, and
    what stood open to others is no memory."""
    memory = layout.root / ".dvc" / "site"
    memory.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = memory.stat().st_mode
    if mode & 0o077:
        memory.chmod(0o700)
        if mode & 0o022:
            forget(layout)


def _one_line(error: BaseException) -> str:
    parts = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
    return " ".join(": ".join(parts).split())


def why(layout: Layout, name: str) -> list[str]:
    """Reasons to run one stage, none if it is fresh. Local: ask each stage just before it runs."""
    return _ask(layout, lambda repo: _why(repo.stage.load_one("dvc.yaml", name)))


def outputs_alone(reasons: list[str]) -> bool:
    """Whether code, inputs and settings are those of the last run, so that its result still holds."""
    return all(reason.startswith(OUTPUT) for reason in reasons)


def outputs_changed(reasons: list[str]) -> bool:
    """Whether nothing but other bytes in its outputs makes a stage stale."""
    return outputs_alone(reasons) and all(reason.endswith(_verb("modified")) for reason in reasons)


def stale(layout: Layout) -> dict[str, list[str]]:
    """{stage: reasons} of the whole chain, in its order; {} if nothing would run.

    A stage that is fresh by itself but follows a stale one is named too: it runs if its input changes.
    """
    return _ask(layout, lambda repo: _stale(repo, names(layout)))


def _stale(repo: Any, wanted: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    outs: dict[str, str] = {}  # path -> the stale stage that makes it
    for name in wanted:
        stage = repo.stage.load_one("dvc.yaml", name)
        reasons = _why(stage) or [f"its input {dep.def_path} comes from {outs[dep.def_path]}, which runs first"
                                  for dep in stage.deps if dep.def_path in outs]
        if reasons:
            found[name] = reasons
            outs |= {out.def_path: name for out in stage.outs}
    return found


def _why(stage: Any) -> list[str]:
    locked = ((stage.dvcfile._lockfile.load() or {}).get("stages") or {}).get(stage.name)
    if locked is None:
        return [NEVER_RUN]
    reasons: list[str] = []
    for entry in stage.status().get(stage.addressing, []):
        if isinstance(entry, str):
            reasons.append(f"its command changed: {locked['cmd']!r} -> {stage.cmd!r}" if entry == "changed command" else entry)
            continue
        for kind, changes in entry.items():
            for path, change in changes.items():
                if isinstance(change, dict):
                    reasons += _params(stage, locked, path, change)
                else:
                    reasons.append(f"{_thing(path, kind)} {path} {_verb(change)}")
    return reasons


def _params(stage: Any, locked: dict[str, Any], path: str, changed: dict[str, str]) -> list[str]:
    old = (locked.get("params") or {}).get(path, {})
    new = next(dep for dep in stage.params if str(dep) == path).read_params()
    reasons = []
    for key in changed:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):  # a whole section: name the settings at fault
            reasons += [f"{path} {key}.{k}: {before.get(k)!r} -> {after.get(k)!r}" for k in sorted({*before, *after}) if before.get(k) != after.get(k)]
        else:
            reasons.append(f"{path} {key}: {_short(before)} -> {_short(after)}")
    return reasons


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:12] + "…"


def _thing(path: str, kind: str) -> str:
    if "outs" in kind:
        return OUTPUT
    return "code" if path.endswith(".py") else "input"


def _verb(change: str) -> str:
    return {"modified": "changed", "deleted": "is missing", "new": "is new", "not in cache": "is not in the cache"}.get(change, change)


# --- the run cache -------------------------------------------------------------------------------

def is_whole_run(run: Path) -> bool:
    """Whether an entry of the run cache is what DVC wrote: its name is its hash, but for the sizes, which are those of the cache."""
    from dvc.exceptions import DvcException
    from dvc.utils import dict_sha256
    from dvc.utils.serialize import load_yaml

    try:
        entry = load_yaml(str(run))
        objects = run.parents[3] / "files" / "md5"
        return dict_sha256(entry, exclude=NOT_HASHED) == run.name and all(_has_its_size(out, objects) for out in entry["outs"])
    except (DvcException, TypeError, ValueError, AttributeError, KeyError):
        return False


def _has_its_size(out: dict[str, Any], objects: Path) -> bool:
    """Whether size and count of an out are those of its objects; where one of these is gone, DVC brings nothing back, and nobody can say."""
    try:
        md5 = str(out["md5"])
        found = objects / md5[:2] / md5[2:]
        if not md5.endswith(".dir"):
            return out.get("size") in (None, found.stat().st_size)
        listed = [objects / one["md5"][:2] / one["md5"][2:] for one in json.loads(found.read_bytes())]
        return out.get("nfiles") in (None, len(listed)) and out.get("size") in (None, sum(path.stat().st_size for path in listed))
    except (OSError, ValueError, KeyError, TypeError):
        return True


def drop_damaged_runs(cache: Path) -> list[str]:
    """Remove the entries of the run cache that are not what was written, so that their stages run. Returns their names."""
    dropped = [run for run in lock_file.runs(cache) if not is_whole_run(run)]
    for run in dropped:
        run.unlink(missing_ok=True)
    for folder in (cache / "runs").glob("*/*"):
        with contextlib.suppress(OSError):  # runs are in it; DVC trips over a folder without any
            folder.rmdir()
    return [run.name for run in dropped]
