"""What DVC wrote down of a run, dvc.lock and its run cache: read with care, and put right where it is not what was written.

DVC compares hashes. A flipped byte in one makes its stage stale, and the run writes the entry anew; one in a size passes DVC
unnoticed, so sizes and counts are compared here. The name of a run cache entry is the hash of what stands in it; DVC does not look.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from components import files
from components.errors import Damaged, UserError
from components.layout import Layout
from components.operations import environment

MEND = ("Bring it back (git checkout -- dvc.lock, where you committed it), or remove it: lmworks run writes it anew, and runs only what DVC's "
        "cache does not hold")
SCHEMA = "2.0"


def read(layout: Layout) -> dict[str, dict[str, Any]]:
    """{stage: what dvc.lock says of it}, of the stages that ran. Raises Damaged for a file that is not as DVC writes it."""
    if not layout.dvc_lock.exists():
        return {}
    try:
        tree = files.load_yaml(layout.dvc_lock)
    except UserError as error:
        raise Damaged(f"{str(error).partition('. Mend it')[0]}. {MEND}") from error
    if tree is None:
        return {}  # empty: DVC takes it for none, too
    stages = tree.get("stages") or {} if isinstance(tree, dict) and tree.get("schema") == SCHEMA else None
    if not isinstance(stages, dict) or not all(map(_is_whole_entry, stages.values())):
        raise Damaged(f"{layout.dvc_lock} is damaged: schema {SCHEMA} was expected, with the files of each stage. {MEND}")
    return stages


def _is_whole_entry(found: Any) -> bool:
    parts = [found.get("deps") or [], found.get("outs") or []] if isinstance(found, dict) else [None]
    return all(isinstance(part, list) and all(isinstance(one, dict) and isinstance(one.get("path"), str) for one in part) for part in parts)


def wrong(layout: Layout, stages: Iterable[str], parts: tuple[str, ...] = ("deps", "outs")) -> str | None:
    """Where stages that DVC calls fresh have another size or count of files than dvc.lock says: their bytes are right, the record is not.
    Raises Damaged."""
    known = read(layout)
    for one in [one for stage in stages for part in parts for one in known.get(stage, {}).get(part) or []]:
        sizes = _sizes(layout.root / one["path"])
        for key, found in (("size", sum(sizes)), ("nfiles", len(sizes))):
            if sizes and key in one and one[key] != found:
                return f"dvc.lock is damaged: {key} {one[key]} of {one['path']} recorded, {found} found"
    return None


def _sizes(path: Path) -> list[int]:
    """The size of each file that was published there, the manifest included; [] where nobody can say."""
    if not path.is_dir():
        return [path.stat().st_size] if path.exists() else []
    try:
        listed = files.read_manifest(path)["files"]
        return [*(int(one["bytes"]) for one in listed.values()), (path / files.MANIFEST).stat().st_size]
    except (Damaged, TypeError, KeyError, ValueError):
        return []  # damaged itself, which is said elsewhere


def record_again(layout: Layout, stage: str) -> None:
    """Let DVC write the entry of a stage anew from what is there. The caller has checked that every byte of it is the one that was
    published. Raises UserError."""
    done = subprocess.run([environment.python(layout), "-m", "dvc", "commit", "-q", "-f", stage], cwd=layout.root, env=environment.child(layout),
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"dvc commit {stage} failed: {' '.join(done.stderr.split())[-300:]}. {MEND}")


def runs(cache: Path) -> Iterator[Path]:
    """The entries of DVC's run cache, `cache` being .dvc/cache: one finished run of a stage each."""
    return (path for path in sorted((cache / "runs").glob("*/*/*")) if path.is_file())
