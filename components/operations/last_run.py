"""How the last `lmworks run` of this checkout ended, kept for `lmworks status` when no server answers.

Runs of a deployment are told by `.lmworks/scheduled.json`.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Any

from components import files
from components.errors import UserError
from components.layout import Layout

FORMAT = 1
MAX_MESSAGE_CHARS = 2000


def write(layout: Layout, *, verdict: str, message: str, exit_code: int, elapsed_s: float, flow_run: str | None) -> None:
    """Write it down; a full disk is no reason to fail a run that has ended."""
    with contextlib.suppress(OSError, UserError):
        files.write_sealed(layout.last_run, {
            "format": FORMAT, "verdict": verdict, "message": message[:MAX_MESSAGE_CHARS], "exit_code": exit_code, "elapsed_s": round(elapsed_s, 1),
            "flow_run": flow_run, "ended_at": datetime.now(UTC).isoformat(timespec="seconds")})


def read(layout: Layout) -> dict[str, Any] | None:
    """What `write` wrote; None without one that can be read."""
    try:
        told = files.read_sealed(layout.last_run)
    except (OSError, UserError):
        return None
    return told if told.get("format") == FORMAT else None
