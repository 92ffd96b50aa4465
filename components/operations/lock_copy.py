"""A copy of dvc.lock, which must outlive a full disk: DVC writes it in place, so a write that ends halfway leaves a part of it, or nothing.

A good copy is kept in .lmworks; it takes the place of a cut one. What DVC was about to write is lost then, but not the work: its run cache
holds the result of the stage.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from components import files
from components.errors import UserError
from components.layout import Layout


def copy_of(layout: Layout) -> Path:
    return layout.state / layout.dvc_lock.name


def whole(path: Path) -> bool:
    """Whether it can be what DVC wrote: it ends as DVC ends it, and every stage in it says what it ran and what it made."""
    try:
        if not path.read_bytes().endswith(b"\n"):
            return False
        tree: Any = files.load_yaml(path)
        return "schema" in tree and all("cmd" in stage and "outs" in stage for stage in tree["stages"].values())
    except (UserError, OSError, TypeError, KeyError, AttributeError):
        return False


def keep(layout: Layout) -> None:
    """Copy a whole dvc.lock aside, if it is another than the one that is kept. Where nothing can be written, a look must still be possible."""
    kept, path = copy_of(layout), layout.dvc_lock
    if path.exists() and not (kept.exists() and kept.read_bytes() == path.read_bytes()) and whole(path):
        with contextlib.suppress(UserError, OSError):
            files.write_atomic(kept, path.read_bytes())


def mend(layout: Layout) -> bool:
    """Put the kept copy in the place of a dvc.lock that was cut short; what was there stays in .lmworks. Returns whether that was done."""
    kept, path = copy_of(layout), layout.dvc_lock
    if not path.exists() or not kept.exists() or not _cut(path, kept) or not whole(kept):
        return False
    shutil.copyfile(path, layout.state / f"{path.name}.cut")
    files.write_atomic(path, kept.read_bytes())
    return True


def _cut(path: Path, kept: Path) -> bool:
    """A person's edit is none: a cut file is empty, or begins as the kept one does and has no end."""
    content = path.read_bytes()
    if not content:
        return True
    return not content.endswith(b"\n") and kept.read_bytes().startswith(content[:64])
