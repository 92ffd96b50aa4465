"""Kernel locks of a checkout: who holds one, and what whoever finds it held is told. Used as `files.lock`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from components.errors import Busy

GLANCE_S = 0.2


@contextlib.contextmanager
def lock(path: Path, *, what: str, wait_s: float = 0) -> Iterator[Callable[[], None]]:
    """A kernel lock (flock): it goes with the process, so it cannot go stale, whatever its file holds.

    The file names its holder, for people only. Gives a fence, to be called before what must not happen twice: it raises Busy where
    the file was taken away (somebody deleted .lmworks), as another process may then hold a lock of the same name (G4).
    Raises Busy after `wait_s`, and not before GLANCE_S: who only looks at the lock (`lmworks status`) holds it for a moment.
    """
    deadline = time.monotonic() + max(wait_s, GLANCE_S)
    while (fd := _locked(path)) is None:
        if time.monotonic() >= deadline:
            raise Busy(_in_use(path, what))
        time.sleep(0.1)

    def fence() -> None:
        if not _names(path, fd):
            raise Busy(f"{path.parent.name}/{path.name} was taken away while this process (pid {os.getpid()}) held it, so another may be at work: "
                       "nothing of this one was published. Wait for the other, then run again")

    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{this_command() or what}, pid {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode(), 0)
        yield fence
    finally:
        os.close(fd)


def _locked(path: Path) -> int | None:
    """The lock's open file, held; None while somebody else holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _names(path, fd):  # not deleted between our open and our lock
            return fd
    except BlockingIOError:
        pass
    os.close(fd)
    return None


def _names(path: Path, fd: int) -> bool:
    """Whether the path still leads to the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def this_command() -> str | None:
    """`lmworks run`, `stage clean`: what people call this process. None for others."""
    program, word = Path(sys.argv[0]), sys.argv[1] if len(sys.argv) > 1 else ""
    if not re.fullmatch("[a-z]+", word):
        return None
    if program.name == "lmworks" or program.parts[-2:] == ("commands", "__main__.py"):
        return f"lmworks {word}"
    return f"stage {word}" if program.parts[-2:] == ("components", "chain.py") else None


def lock_holder(path: Path) -> str | None:
    """Who holds a lock, as the holder wrote it: "lmworks run, pid 12, since …"; None if nobody does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
    finally:
        os.close(fd)


def _in_use(path: Path, what: str) -> str:
    """What whoever finds the lock held is told."""
    holder = lock_holder(path) or "another process"
    name, _, rest = holder.partition(", pid ")
    who = name if what.startswith("lmworks ") and rest else what
    told = holder if who != name else f"pid {rest}"
    pid = rest.partition(",")[0]
    stopped = f"; that process is stopped: kill -CONT {pid} lets it go on, kill -9 {pid} ends it" if _is_stopped(pid) else ""
    return f"{who} is already running in this checkout ({told}{stopped}). Wait for it, or stop it, then run again"


def _is_stopped(pid: str) -> bool:
    try:
        return Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, ValueError, IndexError):
        return False  # no such process, or not Linux
