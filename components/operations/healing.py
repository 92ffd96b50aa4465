"""A damaged out made whole: from DVC's cache where its objects are good, else by running its stage again.

DVC hands out whatever lies in its cache, and looks at times before it looks at bytes (tests/CATALOGUE.md A12, A13); so objects are hashed
here, bad ones are deleted, and what they would restore is checked against its manifest before it takes its place.
"""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from components import files
from components.errors import Damaged, UserError
from components.layout import Layout
from components.operations import lock_file

CHUNK_BYTES = 2**20


def locked_outs(layout: Layout, stage: str) -> list[dict[str, Any]]:
    """The outs of a stage as dvc.lock has them: [{"path", "md5", …}]; [] if it never ran. Raises Damaged (dvc.lock itself)."""
    return lock_file.read(layout).get(stage, {}).get("outs") or []


def damage(layout: Layout, stage: str) -> list[str]:
    """One line for each out of the stage that is there, but not as it was published. Every file is hashed."""
    found = []
    for out in locked_outs(layout, stage):
        folder = layout.root / out["path"]
        if folder.is_dir():
            try:
                files.verify_manifest(folder)
            except Damaged as error:
                found.append(str(error).replace(f"{layout.root}/", "").partition(". R")[0])
    return found


def mend(layout: Layout, stage: str) -> bool:
    """Bring the damaged outs of a stage back from the cache.

    Returns whether all came back. Where an object is bad or missing, it and the out are gone afterwards: DVC then runs the
    stage again. Raises Busy while a stage runs.
    """
    whole = True
    with files.lock(layout.stage_lock, what=f"a stage (wanted: mend {stage})", wait_s=5):
        for out in locked_outs(layout, stage):
            folder = layout.root / out["path"]
            try:
                if folder.is_dir():
                    files.verify_manifest(folder)
            except Damaged:
                copy = copy_from_cache(layout, out)
                if copy:
                    files.replace_folder(copy, folder)
                else:
                    shutil.rmtree(folder)
                    whole = False
    return whole


def restore_previous(layout: Layout, stage: str) -> list[str]:
    """Bring back the outs that DVC deleted before a run that failed, as far as that goes. Returns their paths."""
    restored = []
    with contextlib.suppress(UserError, OSError):  # the failure itself is the news
        for out in locked_outs(layout, stage):
            folder = layout.root / out["path"]
            if not folder.exists() and (copy := copy_from_cache(layout, out)):
                files.replace_folder(copy, folder)
                restored.append(out["path"])
    return restored


def copy_from_cache(layout: Layout, out: dict[str, Any]) -> Path | None:
    """A verified copy of a locked out in data/.partial/. None if the cache has no whole one; bad objects are deleted."""
    md5 = str(out.get("md5", ""))
    if not md5.endswith(".dir"):  # none of ours: every out is a folder
        return None
    objects = objects_folder(layout)
    listing = objects / md5[:2] / md5[2:]
    if md5_of(listing) != md5.removesuffix(".dir"):
        listing.unlink(missing_ok=True)
        return None
    partial = layout.partial / f"restore-{Path(out['path']).name}"
    shutil.rmtree(partial, ignore_errors=True)
    whole = True
    try:
        for entry in json.loads(listing.read_bytes()):  # its bytes are those that DVC wrote: their hash is its name
            target, found = partial / entry["relpath"], objects / entry["md5"][:2] / entry["md5"][2:]
            target.parent.mkdir(parents=True, exist_ok=True)
            if md5_of(found, target) != entry["md5"]:
                found.unlink(missing_ok=True)
                whole = False
        if whole:
            files.verify_manifest(partial)
            return partial
    except Damaged:
        listing.unlink(missing_ok=True)  # the damage was committed: DVC must not hand it out again
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"cannot bring {out['path']} back from DVC's cache: {error.strerror}: {error.filename}. Mend that, then run again") from error
    shutil.rmtree(partial, ignore_errors=True)
    return None


def md5_of(path: Path, target: Path | None = None) -> str | None:
    """DVC's name for the bytes of a file, copied to `target` on the way; None if there is no such file."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        source = open(path, "rb")  # noqa: SIM115 - closed below; only a missing source is no error
    except FileNotFoundError:
        return None
    with source, open(target or "/dev/null", "wb") as copy:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
            copy.write(chunk)
    return digest.hexdigest()


CONFIGS = {"config": "git checkout -- .dvc/config", "config.local": "mend it, or remove it where DVC needs no settings of this machine"}


def dvc_config(layout: Layout) -> configparser.ConfigParser:
    """DVC's settings of this checkout. Raises Damaged for a file that is none, or that lost what every checkout's has."""
    config = configparser.ConfigParser(interpolation=None)
    for name, mend in CONFIGS.items():
        path = layout.root / ".dvc" / name
        try:
            config.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise Damaged(f"{path} cannot be read as DVC's settings: {' '.join(str(error).split())}. Mend it: {mend}") from error
    lost = _lost_settings(config) if (layout.root / ".dvc" / "config").exists() else None
    if lost:
        raise Damaged(f"{layout.root / '.dvc' / 'config'}: {lost}. Mend it: {CONFIGS['config']}")
    return config


def _lost_settings(config: configparser.ConfigParser) -> str | None:
    """In words, what is not there any more; a person may set all else."""
    if config.BOOLEAN_STATES.get(config.get("core", "analytics", fallback="true").casefold()) is not False:
        return "core.analytics is not false, so DVC would report its use"
    remote = config.get("core", "remote", fallback=None)
    if remote is not None and not _describes(config, remote) and not _describes(_settings_of_all_checkouts(), remote):
        return f"core.remote names {remote}, and no such remote is described"
    return None


def _describes(config: configparser.ConfigParser, remote: str) -> bool:
    return any(section.strip("'") == f'remote "{remote}"' for section in config.sections())


def _settings_of_all_checkouts() -> configparser.ConfigParser:
    """DVC's settings of this user and of this machine, as far as they can be read; where it looks for them: dvc/dirs.py."""
    import platformdirs

    folders = (os.environ.get("DVC_SYSTEM_CONFIG_DIR") or platformdirs.site_config_dir("dvc", "iterative"),
               os.environ.get("DVC_GLOBAL_CONFIG_DIR") or platformdirs.user_config_dir("dvc", "iterative"))
    config = configparser.ConfigParser(interpolation=None, strict=False)
    for folder in folders:
        with contextlib.suppress(configparser.Error, UnicodeDecodeError, OSError):
            config.read(Path(folder) / "config", encoding="utf-8")
    return config


def objects_folder(layout: Layout) -> Path:
    """Where DVC keeps its objects: the setting cache.dir, else .dvc/cache. Raises Damaged (DVC's settings)."""
    return layout.root / ".dvc" / dvc_config(layout).get("cache", "dir", fallback="cache") / "files" / "md5"


def unverified_remotes(layout: Layout) -> list[str]:
    """Remotes of DVC whose objects are not hashed when they come: bit rot there would be pulled, and only the next run would see it.
    Raises Damaged (DVC's settings)."""
    config = dvc_config(layout)
    named = {section: section.strip("'").removeprefix('remote "').removesuffix('"') for section in config.sections() if section.startswith("'remote ")}
    return [name for section, name in named.items()  # a word that is neither: DVC refuses it itself
            if config.BOOLEAN_STATES.get(config.get(section, "verify", fallback="").casefold()) is not True]
