"""What pip wrote down of the packages that it installed: the hash of every file, so that a flipped byte in one is no new text."""

from __future__ import annotations

import contextlib
import csv
import sysconfig
from base64 import urlsafe_b64decode
from pathlib import Path

from components.layout import Layout

MARK = "sha256="


def hashes(wanted: list[tuple[str, Path]], layout: Layout) -> dict[str, str]:
    """{name: sha256} of the (name, path) that a package's RECORD lists; one without a RECORD vouches for nothing."""
    known: dict[str, str] = {}
    for base in (layout.packages, Path(sysconfig.get_path("purelib"))):
        mine = {path.relative_to(base).as_posix(): name for name, path in wanted if path.is_relative_to(base)}
        roots = {relative.partition("/")[0] for relative in mine}
        for record in sorted(base.glob("*.dist-info/RECORD")) if roots else []:
            if base == layout.packages or _name(record) in roots:  # of the hundreds beside them, only those that are read
                known |= {mine[relative]: sha256 for relative, sha256 in _listed(record) if relative in mine}
    return known


def _name(record: Path) -> str:
    """The folder that a distribution is imported from, where it differs from its name by custom."""
    distribution = record.parent.name.partition("-")[0].lower()
    return {"scikit_learn": "sklearn"}.get(distribution, distribution)


def _listed(record: Path) -> list[tuple[str, str]]:
    """(path, sha256 in hex) of a RECORD; a line that cannot be read vouches for nothing."""
    found = []
    with open(record, encoding="utf-8", errors="replace", newline="") as f:
        for row in csv.reader(f):
            if len(row) > 1 and row[1].startswith(MARK):
                with contextlib.suppress(ValueError):
                    found.append((row[0], urlsafe_b64decode(row[1].removeprefix(MARK) + "=").hex()))
    return found
