"""A disk that is full, read-only, broken or closed to us, and too few files that may be open: said in words that a person can act on.

Libraries say it in many ways (torch: "unexpected pos 576 vs 534"; SQLite: "database or disk is full"; safetensors: "os error 28"), and
an error in the middle of a write often does not say which file it was.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from components.errors import UserError

MIN_OPEN_FILES = 256  # a run with its servers has about a hundred
WANTED_OPEN_FILES = 4096
TIGHT_BYTES = 4 * 2**20  # less room than this is worth saying beside an error that does not name its cause
FULL, OPEN, BROKEN = (errno.ENOSPC, errno.EDQUOT), (errno.EMFILE, errno.ENFILE), (errno.EIO, errno.ESTALE)
CLOSED = (errno.EACCES, errno.EPERM)
KNOWN = {*FULL, *OPEN, *BROKEN, *CLOSED, errno.EROFS, errno.EFBIG}
NUMBERED = re.compile(r"os error (\d+)|\[errno (\d+)\]")
PHRASES = {
    "no space left on device": errno.ENOSPC, "database or disk is full": errno.ENOSPC, "unexpected pos ": errno.ENOSPC, "quota exceeded": errno.EDQUOT,
    "disk i/o error": errno.EIO, "input/output error": errno.EIO, "read-only file system": errno.EROFS, "readonly database": errno.EROFS,
    "too many open files": errno.EMFILE, "file too large": errno.EFBIG}


def number(error: BaseException) -> int | None:
    """The errno of a disk behind `error`: its own, the one that its words name, or that of what caused it. None: it is no such error."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if isinstance(found, OSError) and found.errno in KNOWN:
            return found.errno
        if (code := number_in(str(found))) is not None:
            return code
        found = found.__cause__ or found.__context__
    return None


def number_in(text: str) -> int | None:
    """The errno of a disk that a program's words name; None if they name none."""
    text = text.casefold()
    for match in NUMBERED.finditer(text):
        if (code := int(match[1] or match[2])) in KNOWN:
            return code
    return next((code for phrase, code in PHRASES.items() if phrase in text), None)


def said(error: BaseException | str, folder: Path, needed: int | None = None) -> str | None:
    """One line, with what to do, for an error of the disk; None for any other.

    `folder`: where it happened, where the error itself names no file; `needed`: bytes that were to be written, if that is known.
    """
    code = number_in(error) if isinstance(error, str) else number(error)
    if code is None:
        return None
    named = getattr(error, "filename", None)
    place = Path(named) if isinstance(named, str) and named else folder
    here = existing(place if os.path.isdir(place) else place.parent if named else place)
    if code in FULL:
        return no_space(here, needed, quota=code == errno.EDQUOT)
    if code in OPEN:
        return f"too many open files: at most {_open_files()[0]:,} may be open here. Raise that (ulimit -n {WANTED_OPEN_FILES}), then run again"
    if code == errno.EROFS:
        return f"cannot write in {here}: its disk is read-only (one that had errors is turned so: see dmesg). Mount it for writing, then run again"
    if code == errno.EFBIG:
        return f"cannot write in {here}: a file would be larger than is allowed here (ulimit -f). Raise that, then run again"
    if code in CLOSED:
        return f"no permission for {place} as user {os.getuid()}. Give it (chown, chmod), then run again"
    return f"{place}: its disk does not read or write any more ({os.strerror(code)}). See dmesg; mend or change it, then run again: what was finished stays"


def no_space(folder: Path, needed: int | None = None, *, what: str = "what is written", then: str = "run again", quota: bool = False) -> str:
    """The sentence for a full disk, a used quota, or a disk without room for one more file. `folder` exists."""
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    if stat.f_files and not stat.f_favail and not quota:
        return (f"no space in {folder}: its disk has room for no further file (all {stat.f_files:,} inodes are taken, {amount(free)} are free). "
                f"Remove files there, then {then}")
    wants = f"needs {amount(needed)}" if needed is not None else "needs more"
    return (f"no space in {folder}: {what} {wants}, {amount(free)} are free{' and the quota is used up' if quota else ''}. "
            f"Free some (lmworks clean --dry-run says what takes it), then {then}")


def amount(count: float) -> str:
    """Of bytes, for a person; what is there at all is never 0."""
    return f"{count / 1e6:,.0f} MB" if count >= 10e6 else f"{count / 1e6:,.2f} MB" if count >= 1e6 else f"{-(-count // 1000):,.0f} kB"


def existing(path: Path) -> Path:
    """The nearest folder above (or at) `path` that is there."""
    while not os.path.isdir(path) and path != path.parent:  # pathlib's own raises where a folder above is closed to us
        path = path.parent
    return path


def check_room(folder: Path, needed: float, what: str, then: str = "run again") -> None:
    """Raises UserError where `folder` has not `needed` bytes, or no room for a file: before the work, not after it."""
    here = existing(folder)
    stat = os.statvfs(here)
    if shutil.disk_usage(here).free < needed or (stat.f_files and not stat.f_favail):
        raise UserError(no_space(here, int(needed), what=what, then=then))


def tight(folder: Path) -> str:
    """The sentence for a disk that is as good as full, else "": beside an error of a server or program that does not say why."""
    here = existing(folder)
    stat = os.statvfs(here)
    full = stat.f_bavail * stat.f_frsize < TIGHT_BYTES or (stat.f_files and not stat.f_favail)
    return no_space(here) if full else ""


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Errors of the disk inside become one UserError, with what is free at that moment.

    A broken disk's stay as they are: trying again can help there (a network drive that comes back).
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries wrap the disk's errors in their own kinds
        words = said(error, folder)
        if words is None or number(error) in BROKEN:
            raise
        raise UserError(words) from error


# --- open files ----------------------------------------------------------------------------------

def _open_files() -> tuple[int, int]:
    """(how many files this process may have open, how far it may raise that itself)."""
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)


def check_open_files() -> None:
    """Raise a low limit as far as this process may. Raises UserError where that is not enough for a run."""
    import resource

    now, most = _open_files()
    most = WANTED_OPEN_FILES if most == resource.RLIM_INFINITY else most
    if now == resource.RLIM_INFINITY or now >= WANTED_OPEN_FILES:
        return
    if most > now:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, WANTED_OPEN_FILES), _open_files()[1]))
    if max(now, most) < MIN_OPEN_FILES:
        raise UserError(f"too few files may be open here: {max(now, most):,}; a run needs {MIN_OPEN_FILES}. "
                        f"Raise that (ulimit -n {WANTED_OPEN_FILES}; in a unit LimitNOFILE={WANTED_OPEN_FILES}), then run again")
