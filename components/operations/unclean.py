"""The unclean marker: a file that a live run or stage keeps, so that a crash is noticed by the next start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil

from components import files
from components.errors import UserError
from components.layout import Layout


def mark(layout: Layout, **facts: Any) -> Path:
    """Write run-PID.json for this process; the caller removes it at a clean end."""
    path = layout.unclean / f"run-{os.getpid()}.json"
    files.write_json(path, {"pid": os.getpid(), "started": psutil.Process().create_time(), **facts})
    return path


def read(path: Path) -> dict[str, Any]:
    """The marker, or {} for one that was cut short."""
    try:
        marker = files.read_json(path)
    except (OSError, UserError):
        return {}
    return marker if isinstance(marker, dict) else {}


def alive(path: Path) -> bool:
    """Whether the process that wrote the marker still lives (a reused pid does not count)."""
    marker = read(path)
    try:
        process = psutil.Process(int(marker["pid"]))
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if "started" in marker:
            return abs(process.create_time() - float(marker["started"])) < 0.05
        return "components.chain" in process.cmdline()  # a stage's marker (components/chain.py) has no start time
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def dead(layout: Layout) -> list[Path]:
    """The markers that a crash left."""
    return [path for path in sorted(layout.unclean.glob("*.json")) if not alive(path)] if layout.unclean.exists() else []
