"""Atomic writes, hashes, manifests, locks: the one place that decides how bytes reach the disk."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from components.errors import Busy, Damaged, UserError

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
MAX_YAML_BYTES = 64 * 2**20
GLANCE_S = 0.2


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
    try:
        with open(partial, "wb") as f:
            f.write(data.encode() if isinstance(data, str) else data)
            f.flush()
            os.fsync(f.fileno())
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}. Free space or mend permissions there, then run again") from error
    finally:
        partial.unlink(missing_ok=True)  # Ctrl-C included; after the rename there is none
    fsync_dir(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, canonical_json(value))


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is not valid JSON ({error}); it was damaged or cut short") from error


class _UniqueKeyLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Safe YAML that refuses a key given twice (plain YAML lets the last one win silently)."""


def _unique_mapping(loader: Any, node: Any) -> dict:
    seen: dict = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool | None):
            raise yaml.constructor.ConstructorError(None, None, "a name was expected as key", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def load_yaml(path: Path) -> Any:
    """Raises UserError with file, line and what is wrong."""
    if path.stat().st_size > MAX_YAML_BYTES:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; at most {MAX_YAML_BYTES:,} are read")
    try:
        return yaml.load(path.read_bytes(), Loader=_UniqueKeyLoader)  # a subclass of SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or number that is none
        raise UserError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}. Mend it, then run again") from error


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
    whole = isinstance(manifest, dict) and manifest.get("format") == MANIFEST_FORMAT and isinstance(manifest.get("files"), dict)
    if not whole or path.read_bytes() != canonical_json(manifest).encode():  # the one way it is written
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
    if final.exists():
        old = partial.with_name(partial.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
        partial.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        partial.rename(final)
    fsync_dir(final.parent)


# --- locks ---------------------------------------------------------------------------------------

@contextlib.contextmanager
def lock(path: Path, *, what: str, wait_s: float = 0) -> Iterator[None]:
    """A kernel lock (flock): it goes with the process, so it cannot go stale.

    The file holds pid and start time of the holder, for people only. Raises Busy after `wait_s`, and not before
    GLANCE_S: who only looks at the lock (`lmworks status`) holds it for a moment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + max(wait_s, GLANCE_S)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Busy(f"{what} is already running in this checkout ({_written_by_holder(fd)}). Wait for it, or stop it, then run again") from None
                time.sleep(0.1)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"pid {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def lock_holder(path: Path) -> str | None:
    """Who holds a lock, as the holder wrote it; None if nobody does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _written_by_holder(fd)
    finally:
        os.close(fd)


def _written_by_holder(fd: int) -> str:
    return os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
