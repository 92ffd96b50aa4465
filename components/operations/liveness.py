"""Which process an entry in .lmworks means: pid and start, so that a reused pid is never mistaken for it.

The start is counted from boot: a clock that is set, or a virtual machine that wakes up, changes every wall-clock start (C14).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

RUN = "LMWORKS_RUN"  # PID:MARK of the run that a stage works for


def started(pid: int) -> str:
    """A mark that this process shares with no other. Raises psutil.NoSuchProcess."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]  # field 22; the name before ")" may hold blanks
        return f"{boot}-{ticks}"
    except OSError:
        import psutil

        return f"{psutil.Process(pid).create_time():.2f}"  # not Linux, or no such process


def of_this_boot(recorded: dict[str, Any]) -> bool:
    """Whether what was recorded can have left anything: a boot ends every process, and its numbers are given anew."""
    mark = str(recorded.get("started"))
    return "-" not in mark or mark.partition("-")[0] == started(os.getpid()).partition("-")[0]


def entry(pid: int) -> dict[str, Any]:
    """What to record of a process. Raises psutil.NoSuchProcess."""
    return {"pid": pid, "started": started(pid)}


def process_of(recorded: Any) -> psutil.Process | None:
    """The live process (no zombie) that an entry describes."""
    import psutil

    try:
        process = psutil.Process(int(recorded["pid"]))
        alive = process.status() != psutil.STATUS_ZOMBIE and started(process.pid) == recorded["started"]
        return process if alive else None
    except (psutil.Error, KeyError, TypeError, ValueError):
        return None
