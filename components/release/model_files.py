"""The files of the models in MLflow's store: fetched, checked against what was vouched for at registration, never used damaged."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components import files, storage
from components.errors import Damaged, Passing, UserError
from components.layout import Layout
from components.operations import rest
from components.release import loader, registry

FILES = "lmworks.files"  # the tag of a version: {file: sha256} of its model
TAG_EDITED = f"its tag {FILES} was edited and cannot be read, so nothing vouches for its bytes"
CARD = "README.md"
VOUCHED = "vouched.json"  # what the tag FILES says, for a consumer that asks no registry (components/serving/model_file.py)
FETCHED_AS = "registered_model_meta"  # MLflow writes it beside the files that it fetches; it is none of them
LOGGED_MODEL = re.compile(r"models:/m-[0-9a-f]+")
GONE = re.compile(r"\b404\b|No such artifact|RESOURCE_DOES_NOT_EXIST")  # how the store says that a file is not there


def local_files(folder: Path) -> dict[str, str]:
    """{path: sha256} of a logged model, the weights' folder by its manifest alone and without the card and the list itself."""
    return {name: files.sha256_file(folder / name)
            for name in sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
            if name not in (CARD, VOUCHED, FETCHED_AS) and (not name.startswith("artifacts/model/") or name.endswith("/" + files.MANIFEST))}


def _not_given(error: Exception, what: str, work: Path, layout: Layout) -> UserError:
    """What kept the files of a model from us: a disk, a server that is away or that refuses are no damage, and nobody may take them for it."""
    from components.operations import (  # they look into databases, which know of versions from here
        contention,
        services,
    )
    from components.operations.processes import MLFLOW

    words = " ".join(str(error).split())[:200]
    if full := storage.said(error, work) or storage.tight(work):
        return Passing(f"{what} cannot be fetched: {full}")
    ours = services.outside(MLFLOW, layout) is None
    if ours and (found := contention.trouble(layout, MLFLOW)):
        return found
    if not rest.healthy(f"{registry.address(layout)}/health") or not ours and not GONE.search(str(error)):
        return rest.Unreachable(f"MLflow at {registry.address(layout)} did not give the files of {what} ({words}). Look at `lmworks status`, then run the same command again")
    return Damaged(f"{what}: the model store does not give its files ({words}). Release it again: lmworks run")


@contextlib.contextmanager
def stored(source: str, expected: dict[str, str] | None, what: str, layout: Layout) -> Iterator[Path]:
    """A copy of a logged model (models:/m-…) as the store serves it, gone afterwards; checked against `expected` unless that is None.

    Raises Damaged, naming file and both hashes, and for a source that is anything else: a version may name any address (J6); Passing where
    the disk is full or the server went away.
    """
    if not LOGGED_MODEL.fullmatch(source):
        raise Damaged(f"{what}: its files are said to lie at {source[:80]!r}, which is no model that lmworks stored, so nothing is fetched. Release it again: lmworks run")
    import mlflow
    from mlflow.exceptions import MlflowException

    work = layout.work_root / "models"
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        for again in (True, False):  # one that was cut is asked for once more
            try:
                folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=scratch))
                break
            except (MlflowException, OSError) as error:
                if not again or GONE.search(str(error)):
                    raise _not_given(error, what, work, layout) from None
        if expected is not None:
            check_files(folder, expected, what)
        yield folder


def vouched_files(tag: str | None) -> dict[str, str] | None:
    """{file: sha256} of the tag FILES; None where there is none, or it was edited and cannot be read."""
    try:
        found = json.loads(tag or "null")
    except ValueError:
        return None
    return found if isinstance(found, dict) and found else None


@contextlib.contextmanager
def fetched(version: Any, layout: Layout) -> Iterator[Path]:
    """A verified copy of a version's files, gone afterwards: its code and MLmodel are vouched for by the version's tag,
    the rest by the manifest (which the tag covers), and no code but ours is in it, whatever the tag says. Raises UserError and Damaged."""
    if FILES not in version.tags:
        raise UserError(f"{version.name} version {version.version} was not registered by lmworks (no tag {FILES}), so nothing vouches "
                        "for its bytes. Use a version that `lmworks models` lists, or release again: lmworks run")
    what = f"{version.name} version {version.version}"
    expected = vouched_files(version.tags[FILES])
    if expected is None:
        raise Damaged(f"{what}: {TAG_EDITED}. Release it again: lmworks run")
    with stored(version.source, expected, what, layout) as folder:
        loader.check(folder, what)
        yield folder


def check_files(folder: Path, expected: dict[str, str], what: str) -> None:
    """Raises Damaged when the logged model in `folder` is not `expected` (as of `local_files`) or breaks its manifest."""
    actual = local_files(folder)
    for name, sha256 in expected.items():
        if name != FETCHED_AS and actual.get(name) != sha256:  # earlier versions list it
            raise Damaged(f"{what}: {name} is damaged in the model store: sha256 {actual.get(name, 'no such file')} found, "
                          f"{sha256} registered. Release it again: lmworks run")
    extra = set(actual) - set(expected)
    if extra:
        raise Damaged(f"{what}: {min(extra)} was added in the model store after registration. Release it again: lmworks run")
    listed = (folder / VOUCHED).read_text(errors="replace") if (folder / VOUCHED).exists() else None
    if listed != listing(expected) and not (listed is None and expected.get(loader.MODEL_FILE.name) in loader.WITHOUT_LIST):
        wrong = "is not there" if listed is None else "does not list what was registered"
        raise Damaged(f"{what}: {VOUCHED} is damaged in the model store: it {wrong}. Release it again: lmworks run")
    files.verify_manifest(folder / "artifacts" / "model")


def listing(vouched: dict[str, str]) -> str:
    """The text of VOUCHED: the model file reads no other."""
    return json.dumps(vouched, indent=1, sort_keys=True) + "\n"
