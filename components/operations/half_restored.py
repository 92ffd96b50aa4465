"""A checkout in which `lmworks restore` was killed among its renames: neither the old one nor the restored one.

Known by a journal that the restore writes before its first rename and removes after the last. Everything that would work in such a
checkout asks here first; the next `lmworks restore` takes back what was moved, and begins anew.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from components import files
from components.errors import Damaged, UserError
from components.layout import Layout

JOURNAL = "journal.json"


def staging(layout: Layout) -> Path:
    """Where a restore gathers its files; without a journal nothing of them was moved."""
    return layout.state / "restore"


def journal(layout: Layout) -> dict[str, Any] | None:
    """{"source": the backup, "moves": {path: newest change in ns}} of a restore that did not end; None without one. Raises Damaged."""
    path = staging(layout) / JOURNAL
    if not path.exists():
        return None
    try:
        written = files.read_sealed(path)
        if isinstance(written["source"], str) and isinstance(written["moves"], dict):
            return written
    except (Damaged, KeyError):
        pass
    raise Damaged(f"a restore was killed in the middle: part of this checkout is the backup's, part is not, and {path}, which says what was moved, is "
                  f"damaged. So nothing can be taken back by itself. Move {path.parent} away (what stood here before is in its folder before/), then restore "
                  "into a fresh clone (git clone, make setup, lmworks restore PATH); or run that here: it names what is in its way and must be moved, too")


def told(layout: Layout) -> str | None:
    """What a person must know and do, in a sentence; None where no restore was killed halfway."""
    try:
        written = journal(layout)
    except Damaged as error:
        return str(error)
    return written and (f"a restore was killed in the middle: part of this checkout is the backup's, part is not. Run it again: lmworks restore "
                        f"{shlex.quote(written['source'])} (it takes back what it had moved, and begins anew)")


def refuse(layout: Layout) -> None:
    """Raises UserError in a checkout that is half restored."""
    if sentence := told(layout):
        raise UserError(sentence)
