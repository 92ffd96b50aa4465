"""The unclean marker: a file that a live run or stage keeps, so that a crash is noticed by the next start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from components import files
from components.errors import UserError
from components.layout import Layout
from components.operations import liveness


def mark(layout: Layout, kind: str = "run", **facts: Any) -> Path:
    """Write KIND-PID.json for this process; the caller removes it at a clean end."""
    path = layout.unclean / f"{kind}-{os.getpid()}.json"
    files.write_sealed(path, {**liveness.entry(os.getpid()), **facts})
    return path


def read(path: Path) -> dict[str, Any]:
    """The marker, or {} for one that was cut short."""
    try:
        return files.read_sealed(path)
    except (OSError, UserError):
        return {}


def alive(path: Path) -> bool:
    """Whether the process that wrote the marker still lives (a reused pid does not count)."""
    return liveness.process_of(read(path)) is not None


def dead(layout: Layout) -> list[Path]:
    """The markers that a crash left."""
    return [path for path in sorted(layout.unclean.glob("*.json")) if not alive(path)] if layout.unclean.exists() else []
