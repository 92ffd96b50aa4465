"""Work folders of finished stages: kept until DVC has recorded what they made.

DVC writes a stage into dvc.lock some moments after the stage has published its outs. A kill between the two makes the stage run
again; with its checkpoints it goes on from the last one. What DVC has recorded is not needed: a stage that is forced starts at step 0.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from components import files
from components.errors import UserError
from components.layout import Layout
from components.operations import healing

NOTE = "published.json"  # in work/STAGE/KEY: {out: DVC's name for it}


def note_published(layout: Layout, work: Path, outs: tuple[str, ...]) -> None:
    """Write down, in the stage's work folder if it used one, which bytes it has published. The caller holds the stage lock."""
    if work.exists():
        files.write_json(work / NOTE, {f"data/{out}": dvc_name(layout.out(out)) for out in outs})


def drop_recorded(layout: Layout) -> None:
    """Remove the work folders of results that stand in dvc.lock."""
    for note in sorted(layout.work_root.glob(f"*/*/{NOTE}")):
        try:
            published = files.read_json(note)
            known = {out["path"]: out.get("md5") for out in healing.locked_outs(layout, note.parent.parent.name)}
        except (OSError, UserError):
            continue  # who needs dvc.lock says that it is damaged
        if isinstance(published, dict) and published.items() <= known.items():
            shutil.rmtree(note.parent, ignore_errors=True)


def dvc_name(folder: Path) -> str:
    """DVC's name for a folder: the hash of the list of its files and theirs."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    listing = sorted(({"md5": healing.md5_of(path), "relpath": path.relative_to(folder).as_posix()} for path in paths), key=lambda entry: str(entry["relpath"]))
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"
