"""fetch: a verified copy of every source file, so that all that follows depends on one snapshot."""

from __future__ import annotations

import hashlib
import reprlib
from pathlib import Path
from typing import Any

from components import files
from components.config import Config
from components.corpus.origins import GROUPS, ORIGIN, check_name, locate
from components.errors import UserError
from components.layout import Layout
from components.reporting import Progress, Report

CHUNK_BYTES = 2**20
MEND = "Run: lmworks run (it brings sources.yaml up to date)"


def run(config: Config, layout: Layout) -> Report:
    """Copy the files that sources.yaml lists, hashing while copying.

    Raises UserError if sources.yaml is missing, malformed or of other settings, or if a file's bytes differ from it.
    """
    groups = listed(layout.sources)
    for name, setting in (("corpus", config.corpus.source), ("records", config.corpus.records), ("base", config.corpus.base)):
        if groups[name].get("source") != setting:
            raise UserError(f"sources.yaml lists the {name} of {groups[name].get('source')!r}, params.yaml says {setting!r}. {MEND}")
    folders = {"corpus": layout.sources_corpus, "records": layout.sources_records, "base": layout.sources_base}
    total_bytes = sum(entry["bytes"] for group in groups.values() for entry in group["files"])
    report = Report()
    done_bytes = 0
    with Progress("fetch (kB)", total_bytes >> 10) as progress:
        for name, folder in folders.items():
            group = groups[name]
            for entry in group["files"]:
                copy(entry, folder, layout.root)
                done_bytes += entry["bytes"]
                progress.update(done_bytes >> 10, entry["name"])
            # No text_field here: fetch runs again for other bytes alone, so a setting kept here would go stale.
            files.write_json(folder / ORIGIN, {"kind": group["kind"], "files": len(group["files"])})
            report.counts[f"{name}_files"] = len(group["files"])
            report.counts[f"{name}_bytes"] = sum(entry["bytes"] for entry in group["files"])
            if skipped := group.get("skipped"):
                report.notes.append(f"{name}: {skipped['files']} files of kinds that are not read were skipped: {', '.join(skipped['names'])}")
    return report


def listed(path: Path) -> dict[str, Any]:
    """The groups of sources.yaml. Raises UserError where it is missing or not what `sources.update` writes."""
    if not path.exists():
        raise UserError(f"no {path.name} in {path.parent}; it lists the source files. {MEND}")
    groups = files.load_yaml(path)
    try:
        for name in GROUPS:
            if not isinstance(groups[name]["kind"], str) or not isinstance(groups[name]["files"], list):
                raise TypeError(name)
            for entry in groups[name]["files"]:
                if not (isinstance(entry["name"], str) and isinstance(entry["path"], str) and isinstance(entry["sha256"], str)
                        and type(entry["bytes"]) is int and entry["bytes"] >= 0):
                    raise TypeError(f"{name}: {reprlib.repr(entry)}")  # short: a few lines of YAML can be a value of gigabytes
    except (KeyError, TypeError) as error:
        raise UserError(f"{path.name} is not a list of source files ({' '.join(str(error).split())[:200]}). Delete it. {MEND}") from error
    return groups


def copy(entry: dict[str, Any], folder: Path, root: Path) -> None:
    """One file into `folder` under its name. Raises UserError (faults A11, A15, A16) and leaves no part behind."""
    name = check_name(entry["name"], "sources.yaml")
    source, target = locate(entry["path"], root), folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, read_bytes = hashlib.sha256(), 0
    try:
        with open(source, "rb") as reader, open(target, "xb") as writer:
            while chunk := reader.read(CHUNK_BYTES):
                digest.update(chunk)
                read_bytes += len(chunk)
                if read_bytes > entry["bytes"]:
                    break  # it grew: reading on could go on for ever
                writer.write(chunk)
    except FileNotFoundError as error:
        raise UserError(f"fetch: {source} ({name}) is missing; sources.yaml lists it. {MEND}") from error
    except (PermissionError, IsADirectoryError, NotADirectoryError, ValueError) as error:  # ValueError: a NUL in the path
        raise UserError(f"fetch: {source} ({name}) cannot be read: {(getattr(error, 'strerror', None) or str(error)).lower()}. Mend it. {MEND}") from error
    if read_bytes > entry["bytes"]:
        target.unlink()
        raise UserError(f"fetch: {source} ({name}) grew: more than the {entry['bytes']:,} bytes that sources.yaml lists "
                        f"(sha256 {entry['sha256'][:16]}…). {MEND}")
    if digest.hexdigest() != entry["sha256"]:
        target.unlink()
        raise UserError(f"fetch: {source} ({name}) differs from sources.yaml: sha256 {digest.hexdigest()[:16]}… found ({read_bytes:,} bytes), "
                        f"{entry['sha256'][:16]}… listed ({entry['bytes']:,} bytes). {MEND}")
