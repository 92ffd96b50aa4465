"""DVC's own record of who uses which path (.dvc/tmp/rwlock), kept usable after a kill, so that nobody must delete it by hand.

It is JSON that names process ids, written in place: a kill can cut it short, after which every command of DVC refuses; an id that
another program has now, or a process that only waits to be buried, blocks as if DVC still ran (G2). DVC's other locks are
kernel locks and need nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components import files
from components.errors import UserError
from components.layout import Layout


def mend(layout: Layout) -> None:
    """Take out what no process holds; a record that cannot be read goes. The caller holds DVC's repository lock.

    While a stage runs its DVC lives, and nothing is touched.
    """
    path = layout.root / ".dvc" / "tmp" / "rwlock"
    if not path.exists() or files.lock_holder(layout.stage_lock) is not None:
        return
    with files.lock(path.with_name("rwlock.lock"), what="DVC", wait_s=5):  # DVC's own guard of that file
        held = _read(path)
        if held is None:
            path.unlink(missing_ok=True)
            return
        alive: dict[str, Any] = {"read": {where: kept for where, infos in held["read"].items() if (kept := [info for info in infos if _lives(info, layout)])},
                                 "write": {where: info for where, info in held["write"].items() if _lives(info, layout)}}
        if alive != held:
            files.write_json(path, alive)


def _read(path: Path) -> dict[str, Any] | None:
    """{"read": {path: [holder]}, "write": {path: holder}}, a holder being {"pid", "cmd"}; None for anything else."""
    try:
        found = files.read_json(path)
        held = {"read": found.get("read", {}), "write": found.get("write", {})}
        holders = [*held["write"].values(), *(info for infos in held["read"].values() for info in infos)]
        whole = set(found) <= set(held) and all(type(info["pid"]) is int and isinstance(info["cmd"], str) for info in holders)
    except (OSError, UserError, AttributeError, TypeError, KeyError):
        return None
    return held if whole else None


def _lives(info: dict[str, Any], layout: Layout) -> bool:
    """Whether the process is there, works in this checkout and was called with the words on record: no zombie, no other program."""
    import psutil

    try:
        process = psutil.Process(info["pid"])
        words = info["cmd"].partition(" ")[2]  # without the program: `python -m dvc` goes by another name there
        if process.status() == psutil.STATUS_ZOMBIE or not " ".join(process.cmdline()).endswith(words):
            return False
        return Path(process.cwd()).is_relative_to(layout.root.resolve())
    except psutil.AccessDenied:
        return True  # another user's, called with those words: DVC decides
    except (psutil.Error, ValueError, OverflowError):
        return False
