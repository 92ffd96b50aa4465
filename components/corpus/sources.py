"""sources.yaml: which outside bytes the chain reads, file by file, brought up to date before a run.

Stages depend on the digest of a group alone; `fetch` copies what is listed and refuses anything else.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from components import files
from components.config import Config
from components.corpus import installed
from components.corpus.origins import (
    GROUPS,
    KINDS_IN_WORDS,
    NONE,
    RESERVED,
    check_name,
    kind_of,
    locate,
    spell,
)
from components.errors import Damaged, UserError
from components.layout import Layout
from components.reporting import Progress, say

EMBEDDED = "embedded"
CACHE_FORMAT = 1
# A file that changed this recently may change again within the grain of its time stamp.
SETTLED_NS = 2_000_000_000
WORTH_SAYING_BYTES = 64 * 2**20
SKIPPED_NAMED = 20
RECORD_KINDS_IN_WORDS = ".jsonl, also as .jsonl.gz"


@dataclass(kw_only=True)
class Group:
    """One group of source files, as the configuration asks for it."""

    kind: str  # 'embedded' | 'user' | 'imported' | 'none'
    source: str  # the setting that named it
    files: list[tuple[str, Path]] = field(default_factory=list)  # (name, absolute path), sorted by name
    skipped: list[str] = field(default_factory=list)  # names of files that no reader reads
    vouched: dict[str, str] = field(default_factory=dict)  # {name: sha256} that the files were imported with: other bytes are no new version
    mend: str = "Delete its folder, then import the model again: lmworks import PATH"


def update(config: Config, layout: Layout) -> bool:
    """Bring sources.yaml up to date. Returns whether the digest of a group changed.

    Only files whose size, times or inode changed are hashed again. The file is written only when its
    content differs. Raises UserError for a path that is missing, unreadable, empty or leads outside.
    """
    groups = {"corpus": corpus_group(config, layout), "records": records_group(config, layout), "base": base_group(config, layout)}
    text, digests = render(groups, StatCache(layout.stat_cache, [p for g in groups.values() for _, p in g.files]), layout)
    before = layout.sources.read_text("utf-8", errors="replace") if layout.sources.exists() else ""
    if before == text:
        return False
    files.write_atomic(layout.sources, text)
    for name, group in groups.items():
        if group.skipped:
            wanted = RECORD_KINDS_IN_WORDS if name == "records" else KINDS_IN_WORDS
            say(f"{name}: {skipped_in_words(group.skipped)} (what is read: {wanted})")
    return digests != re.findall(r"^  digest: (\S+)$", before, flags=re.MULTILINE)


def shipped(path: str | Path, layout: Layout) -> str:
    """How params.yaml names a path that the user typed here: relative to the checkout if inside it, else absolute."""
    return spell(Path(os.path.abspath(os.path.expanduser(path))), layout.root)


def skipped_in_words(skipped: list[str]) -> str:
    more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    return f"{len(skipped)} file{'s' if len(skipped) > 1 else ''} skipped: {', '.join(skipped[:5])}{more}"


# --- which files ---------------------------------------------------------------------------------

def corpus_group(config: Config, layout: Layout) -> Group:
    source = config.corpus.source
    if source == EMBEDDED:
        return _embedded(config, layout)
    return _user("corpus.source", source, layout, wanted=None)


def records_group(config: Config, layout: Layout) -> Group:
    """User records, or the embedded ones beside a corpus of the user's (an embedded corpus brings its own)."""
    source = config.corpus.records
    if source != EMBEDDED:
        return _user("corpus.records", source, layout, wanted="jsonl")
    if config.corpus.source == EMBEDDED:
        return Group(kind="none", source=source)
    return _embedded(config, layout)


def base_group(config: Config, layout: Layout) -> Group:
    source = config.corpus.base
    if source == "none":
        return Group(kind="none", source=source)
    folder = Path(os.path.abspath(layout.imported / source.removeprefix("data/imported/")))
    if folder.parent != Path(os.path.abspath(layout.imported)):
        raise UserError(f"corpus.base={source!r} must be the name of a folder in data/imported/. Run: lmworks import PATH")
    if not folder.is_dir():
        raise UserError(f"corpus.base={source!r}: there is no folder data/imported/{folder.name}. Run: lmworks import PATH (a Hugging Face model folder)")
    found = [(name, path) for name, path in _walk(folder, "corpus.base") if name.rsplit("/", 1)[-1] not in RESERVED]
    if not found:
        raise UserError(f"corpus.base={source!r}: data/imported/{folder.name} is empty. Run: lmworks import PATH (a Hugging Face model folder)")
    listed = files.read_manifest(folder)["files"] if (folder / files.MANIFEST).exists() else {}  # none: put there by hand
    if gone := sorted(name for name in listed.keys() - {name for name, _ in found} if name.rsplit("/", 1)[-1] not in RESERVED):
        raise Damaged(f"{folder / files.MANIFEST} lists {gone[0]!r}, which is not there: one of them is damaged. Delete the folder, then lmworks import PATH again")
    return Group(kind="imported", source=source, files=found, vouched={name: entry["sha256"] for name, entry in listed.items()})


def _embedded(config: Config, layout: Layout) -> Group:
    from components.corpus.embedded import embedded_files

    return Group(kind=EMBEDDED, source=EMBEDDED, files=sorted(embedded_files(config, layout)),
                 mend="Nobody edits an installed package. Install it again: rm -r data/packages .venv, then make setup")


def _user(setting: str, source: str, layout: Layout, *, wanted: str | None) -> Group:
    """A file of the user's, or every file below a folder that a reader reads (`wanted`: of that kind alone)."""
    path = locate(source, layout.root)
    try:
        mode = path.stat().st_mode
    except ValueError as error:  # a NUL in it
        raise UserError(f"{setting}: {source!a} is no path ({error}). Give the path of a file or folder of text, or 'embedded'") from error
    except OSError as error:
        raise UserError(f"{setting}: {path}: {(error.strerror or str(error)).lower()}. Give the path of a file or folder of text, or 'embedded'") from error
    if stat.S_ISREG(mode):
        return Group(kind="user", source=source, files=[(check_name(path.name, setting), path)])
    if not stat.S_ISDIR(mode):
        raise UserError(f"{setting}: {path} is neither a file nor a folder. Give the path of a file or folder of text, or 'embedded'")
    group = Group(kind="user", source=source)
    for name, found in _walk(path, setting):
        kind = kind_of(name)
        if kind is None or wanted not in (None, kind):
            group.skipped.append(name.encode("utf-8", "backslashreplace").decode())  # a name that is no UTF-8, e.g. unpacked from a zip of Windows
        else:
            group.files.append((check_name(name, setting), found))
    if not group.files:
        found_words = skipped_in_words(group.skipped) if group.skipped else "it holds no files"
        needed = RECORD_KINDS_IN_WORDS if wanted else KINDS_IN_WORDS
        raise UserError(f"{setting}: nothing to read in {path} ({found_words}). Files of these kinds were expected: {needed}")
    return group


def _walk(folder: Path, setting: str) -> Iterator[tuple[str, Path]]:
    """(name, path) of every file below, sorted by name; hidden ones left out.

    Raises UserError for a link that leads outside or nowhere (fault A11), and for an unreadable folder.
    """
    inside = os.path.realpath(folder)
    names: list[str] = []

    def look(parent: str, prefix: str) -> None:
        with os.scandir(parent) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink():
                    target = os.path.realpath(entry.path)
                    if not target.startswith(inside + os.sep) or not os.path.exists(target):
                        raise UserError(f"{setting}: {entry.path} is a link to {target}, which is outside {inside} or missing. "
                                        "Put a copy of the file there, or remove the link, then run again")
                if entry.is_file():
                    names.append(prefix + entry.name)
                elif entry.is_dir(follow_symlinks=False):  # a folder that a link names is walked where it is
                    look(entry.path, f"{prefix}{entry.name}/")

    try:
        look(inside, "")
    except OSError as error:
        raise UserError(f"{setting}: {error.filename} cannot be read: {(error.strerror or '').lower()}. Mend its permissions, then run again") from error
    for name in sorted(names):
        yield name, Path(inside, name)


# --- hashes --------------------------------------------------------------------------------------

class StatCache:
    """work/stat-cache.json: size, times, inode and sha256 of every source file, so that only changed ones are hashed."""

    def __init__(self, path: Path, wanted: list[Path]):
        self.path, self.known, self.fresh = path, self._read(path), {}
        self.stats: dict[str, tuple[int, int, int, int]] = {}
        for file in wanted:
            try:
                found = os.stat(file)
            except OSError as error:
                raise UserError(f"{file}: {(error.strerror or str(error)).lower()}. Bring the file back, then run again") from error
            self.stats[str(file)] = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        to_hash = [key for key, now in self.stats.items() if self.known.get(key, ())[:4] != now]
        self.looks_again = bool(to_hash)
        self.total_bytes, self.done_bytes = sum(self.stats[key][0] for key in to_hash), 0
        self.progress = Progress("hash sources (MB)", self.total_bytes >> 20) if self.total_bytes > WORTH_SAYING_BYTES else None

    @staticmethod
    def _read(path: Path) -> dict[str, tuple]:
        try:
            kept = files.read_sealed(path)
            return {key: tuple(entry) for key, entry in kept["files"].items()} if kept["format"] == CACHE_FORMAT else {}
        except (OSError, UserError, KeyError, TypeError, AttributeError):
            return {}  # a cache: hashing again mends it

    def look_up(self, file: Path) -> tuple[int, str]:
        """(bytes, sha256) of a file. Raises UserError if it changes while it is read (fault A16) or cannot be read."""
        key = str(file)
        now = self.stats[key]
        entry = self.known.get(key, ())
        if entry[:4] == now:
            self.fresh[key] = entry
            return now[0], entry[4]
        try:
            sha256 = files.sha256_file(file)
            after = os.stat(file)
        except OSError as error:
            raise UserError(f"{file} cannot be read: {(error.strerror or str(error)).lower()}. Mend its permissions, then run again") from error
        if (after.st_size, after.st_mtime_ns) != now[:2]:
            raise UserError(f"{file} changed while it was being read ({now[0]:,} bytes, then {after.st_size:,}). Wait until it is complete, then run again")
        if time.time_ns() - max(now[1], now[2]) > SETTLED_NS:
            self.fresh[key] = (*now, sha256)
        self.done_bytes += now[0]
        if self.progress:
            self.progress.update(self.done_bytes >> 20)
        return now[0], sha256

    def save(self) -> None:
        if self.progress:
            self.progress.__exit__()
        if self.fresh != self.known:
            files.write_sealed(self.path, {"format": CACHE_FORMAT, "files": self.fresh})


def digest_of(kind: str, hashes: list[tuple[str, str]]) -> str:
    """One hash for a group: its kind and the sorted (name, sha256) pairs; 'none' without files."""
    if not hashes:
        return NONE
    return files.sha256_bytes(files.canonical_json([kind, sorted(hashes)]).encode())


def quoted(text: str) -> str:
    """A YAML double-quoted scalar. JSON's quoting, less the characters that YAML wants escaped."""
    return re.sub(r"[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", lambda m: f"\\u{ord(m[0]):04x}", json.dumps(text, ensure_ascii=False))


def render(groups: dict[str, Group], cache: StatCache, layout: Layout) -> tuple[str, list[str]]:
    """The text of sources.yaml, one line a file, and the digests in the order of the groups."""
    lines = ["# Which outside bytes the chain reads. Written by `lmworks run`; stages depend on the digests."]
    digests = []
    for name in GROUPS:
        group = groups[name]
        if group.kind == EMBEDDED and cache.looks_again:  # something is hashed again: it must be what pip installed
            group.vouched = installed.hashes(group.files, layout)
        hashes, rows = [], []
        for file_name, path in group.files:
            size, sha256 = cache.look_up(path)
            if group.vouched.get(file_name, sha256) != sha256:
                verb = "installed" if group.kind == EMBEDDED else "imported"
                raise Damaged(f"{path} is damaged: sha256 {sha256[:16]}… found, {group.vouched[file_name][:16]}… {verb}. {group.mend}")
            hashes.append((file_name, sha256))
            rows.append(f"  - {{name: {quoted(file_name)}, path: {quoted(spell(path, layout.root))}, bytes: {size}, sha256: \"{sha256}\"}}")
        digests.append(digest_of(group.kind, hashes))
        lines += [f"{name}:", f"  digest: {digests[-1]}", f"  kind: {group.kind}", f"  source: {quoted(group.source)}"]
        if group.skipped:
            named = [quoted(skipped) for skipped in group.skipped[:SKIPPED_NAMED]]
            lines.append(f"  skipped: {{files: {len(group.skipped)}, names: [{', '.join(named)}]}}")
        lines += ["  files:", *rows] if rows else ["  files: []"]
    cache.save()
    return "\n".join(lines) + "\n", digests
