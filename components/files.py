"""Atomic writes, hashes, manifests, and (from components/locks.py) locks: the one place that decides how bytes reach the disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

from components import failpoints, storage
from components.errors import Damaged, UserError
from components.locks import lock as lock
from components.locks import lock_holder as lock_holder
from components.plain_yaml import load_yaml as load_yaml

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """The same text for the same value, whoever wrote it."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1, allow_nan=False) + "\n"


def fsync_dir(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes | str) -> None:
    """The old file or the new one, never a part: temporary name, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    content = data.encode() if isinstance(data, str) else data
    try:
        failpoints.hit("files.write", path.name)
        with open(partial, "wb", opener=_follow_no_link) as f:
            f.write(content)
            f.flush()
            failpoints.hit("files.before_fsync", path.name)
            os.fsync(f.fileno())
        failpoints.hit("files.before_rename", path.name)
        partial.replace(path)
        failpoints.hit("files.after_rename", path.name)
    except OSError as error:
        why = storage.said(error, path.parent, len(content)) or f"{error.strerror}. Mend that, then run again"
        raise UserError(f"cannot write {path}: {why}") from error
    finally:
        partial.unlink(missing_ok=True)  # Ctrl-C included; after the rename there is none
    fsync_dir(path.parent)


def _follow_no_link(name: str, flags: int) -> int:
    """A link that somebody put where our temporary file will be leads nowhere (J15)."""
    return os.open(name, flags | os.O_NOFOLLOW, 0o666)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, canonical_json(value))


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is not valid JSON ({error}); it was damaged or cut short") from error


# --- sealed: small files and lines that vouch for themselves -------------------------------------

def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """JSON with its own hash in it (key "sha256"): what `read_sealed` gives back is what was written, or it says no."""
    write_json(path, value | {"sha256": seal_of(value)})


def seal_of(value: dict[str, Any]) -> str:
    """The hash of a mapping, its key "sha256" left out."""
    return sha256_bytes(canonical_json({key: part for key, part in value.items() if key != "sha256"}).encode())


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote, without the hash. Raises Damaged for any other byte. A file without a hash is one of an earlier version."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise Damaged(f"{path} holds something else than was written; it was damaged")
    if "sha256" in value:
        try:
            whole = value["sha256"] == seal_of(value) and path.read_bytes() == canonical_json(value).encode()
        except ValueError:  # NaN, or half a character: never written
            whole = False
        if not whole:
            raise Damaged(f"{path} is damaged: it is not what was written, by the hash in it")
    elif any(isinstance(part, str) and re.fullmatch("[0-9a-f]{64}", part) for part in value.values()):
        raise Damaged(f"{path} is damaged: the hash in it goes by another name than was written")
    return {key: part for key, part in value.items() if key != "sha256"}


def seal_line(line: bytes) -> bytes:
    """A line of a log with its checksum behind it, newline included."""
    return line + b"#%08x\n" % zlib.crc32(line)


def open_line(line: bytes) -> bytes | None:
    """The line without its checksum (and newline); None where it does not fit. A line without one is of an earlier version."""
    body, mark, checksum = line.rstrip(b"\n").rpartition(b"#")
    if not (mark and re.fullmatch(rb"[0-9a-f]{8}", checksum)):
        return line.rstrip(b"\n")
    return body if int(checksum, 16) == zlib.crc32(body) else None


# --- manifests -----------------------------------------------------------------------------------

def list_files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)


def manifest_of(folder: Path) -> dict[str, Any]:
    files = {name: {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size} for name in list_files(folder)}
    return {"format": MANIFEST_FORMAT, "files": files}


def write_manifest(folder: Path) -> dict[str, Any]:
    manifest = manifest_of(folder)
    write_json(folder / MANIFEST, manifest)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        raise Damaged(f"{folder} has no {MANIFEST}: it was never published whole. Run: lmworks run")
    manifest = read_json(path)
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if type(found) is int and found > MANIFEST_FORMAT:
        raise Damaged(f"{path} has format {found}; this lmworks reads {MANIFEST_FORMAT}: a newer version wrote it, or it is damaged. Use that version, "
                      "or make the folder again: lmworks run")
    whole = (isinstance(manifest, dict) and manifest.get("format") == MANIFEST_FORMAT and isinstance(manifest.get("files"), dict)
             and all(isinstance(entry, dict) and {"sha256", "bytes"} <= entry.keys() for entry in manifest["files"].values()))
    try:
        whole = whole and path.read_bytes() == canonical_json(manifest).encode()  # the one way it is written
    except ValueError:  # NaN, or half a character: never written
        whole = False
    if not whole:
        raise Damaged(f"{path}: format {MANIFEST_FORMAT} with a list of files was expected. Run: lmworks run")
    return manifest


def verify_manifest(folder: Path) -> dict[str, Any]:
    """Hash every file again. Raises Damaged, naming the first file at fault and both hashes."""
    manifest = read_manifest(folder)
    found = set(list_files(folder))
    for name, entry in sorted(manifest["files"].items()):
        if name not in found:
            raise Damaged(f"{folder / name} is missing; {MANIFEST} lists it. Run: lmworks run")
        actual = {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size}
        if actual != entry:
            written = str(entry.get("sha256") if isinstance(entry, dict) else entry)
            raise Damaged(f"{folder / name} is damaged: sha256 {actual['sha256'][:16]}… found, {written[:16]}… written. Run: lmworks run")
    extra = found - set(manifest["files"])
    if extra:
        raise Damaged(f"{folder / min(extra)} is not in {MANIFEST}: somebody added it. Remove it, or run: lmworks run")
    return manifest


def read_published(folder: Path, name: str) -> Any:
    """The JSON of one file of a published folder, held against its manifest; the other files are not read. Raises Damaged."""
    written, data = read_manifest(folder)["files"].get(name), (folder / name).read_bytes() if (folder / name).is_file() else b""
    if not isinstance(written, dict) or written.get("sha256") != sha256_bytes(data):
        told = str(written.get("sha256"))[:16] if isinstance(written, dict) else "nothing"
        raise Damaged(f"{folder / name} is damaged: sha256 {sha256_bytes(data)[:16]}… found, {told}… written. Run: lmworks run")
    return json.loads(data)


def manifest_hash(folder: Path) -> str:
    """One hash for a published folder, from its manifest (the files are not read)."""
    return sha256_bytes(canonical_json(read_manifest(folder)["files"]).encode())


def weights_sha256(model_folder: Path) -> str:
    """The identity of a model: the hash of its safetensors file, or of the list of its shards."""
    shards = sorted(model_folder.glob("*.safetensors"))
    if not shards:
        raise Damaged(f"{model_folder} holds no *.safetensors file. Run: lmworks run")
    hashes = {shard.name: sha256_file(shard) for shard in shards}
    return next(iter(hashes.values())) if len(hashes) == 1 else sha256_bytes(canonical_json(hashes).encode())


def fsync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with open(path, "rb") as f:
                os.fsync(f.fileno())
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            fsync_dir(path)


def publish(partial: Path, final: Path) -> dict[str, Any]:
    """Manifest, fsync, rename: `final` appears whole or stays as it was."""
    manifest = write_manifest(partial)
    replace_folder(partial, final)
    return manifest


def replace_folder(partial: Path, final: Path) -> None:
    """`partial` takes the place of `final`, whatever was there."""
    fsync_tree(partial)
    final.parent.mkdir(parents=True, exist_ok=True)
    failpoints.hit("publish.before_rename", final.name)
    if final.exists():
        old = partial.with_name(partial.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
        failpoints.hit("publish.between_renames", final.name)
        partial.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        partial.rename(final)
    failpoints.hit("publish.after_rename", final.name)
    fsync_dir(final.parent)
