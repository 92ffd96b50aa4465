"""Registered models, checked: the stored files of each version against what release vouched for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from components import files
from components.errors import Damaged, UserError
from components.layout import Layout
from components.operations import databases, services
from components.operations.findings import RESTORE, Check, Problem, said, size_of
from components.operations.processes import MLFLOW
from components.release import registry


def checks(layout: Layout, wanted: list[str]) -> Iterator[Check]:
    """The versions asked for, else every one that an alias names: in this checkout's store, or where MLFLOW_TRACKING_URI says."""
    if services.outside(MLFLOW, layout) is not None:
        yield from _served(layout, wanted)
        return
    path = layout.mlflow_database
    if not path.exists():
        if wanted:
            raise UserError(f"{wanted[0]}: no model is registered in this checkout yet. Run: lmworks run")
        return
    try:
        known, dangling, orphans = databases.versions(path), databases.dangling(path), databases.orphans(layout)
    except Damaged:
        if wanted:
            raise
        return  # said already
    for uri in wanted:
        if not any(_names(uri, version) for version in known):
            raise UserError(f"{uri} is not in the registry. models:/NAME@champion or models:/NAME/VERSION was expected; see what is: lmworks models")
    for version in known:
        if any(_names(uri, version) for uri in wanted) if wanted else version.aliases:
            yield Check(kind="models", bytes=size_of(layout.artifacts / version.folder) if version.folder else 0,
                        look=lambda version=version: _stored(layout, version))
    for line in [] if wanted else dangling:
        loose = Problem(kind="models", where="registry", wrong=line, todo="lmworks run judges again what data/ holds")
        yield Check(kind="models", bytes=0, look=lambda loose=loose: iter([loose]))
    for folder in [] if wanted else orphans:
        newer = Problem(kind="models", where=f"mlruns/artifacts/{folder}", wrong="is a model that the database does not know: it is newer than the database, or its "
                        "registration was killed", todo="nothing serves it; lmworks run registers what data/ holds. Remove the folder when you need its space", damaged=False)
        yield Check(kind="models", bytes=0, look=lambda newer=newer: iter([newer]))


def _names(uri: str, version: databases.Version) -> bool:
    return uri in {f"models:/{version.name}/{version.number}", *(f"models:/{version.name}@{alias}" for alias in version.aliases)}


def _stored(layout: Layout, version: databases.Version) -> Iterator[Problem]:
    where = f"{version.name} version {version.number}" + (f" ({', '.join(version.aliases)})" if version.aliases else "")
    wrong = databases.wrong_with(version, layout.artifacts)
    if wrong is None and version.vouched is None:
        yield Problem(kind="models", where=where, wrong="was not registered by lmworks, so nothing vouches for its bytes", todo="lmworks run registers its own", damaged=False)
        return
    if wrong is None:
        told = files.weights_sha256(layout.artifacts / str(version.folder) / "artifacts" / "model")
        if told != version.weights_sha256:
            wrong = f"the registry says weights {version.weights_sha256}, its files are weights {told}"
    if wrong is not None:
        yield Problem(kind="models", where=where, wrong=wrong, todo=_mend(version.name, "champion" in version.aliases))


def _mend(name: str, champion: bool) -> str:
    back = f"; until then: lmworks rollback {name}" if champion else ""
    return (f"where data/ still holds the weights: rm -f .lmworks/release.json, then lmworks run (it registers them again){back}; "
            f"or {RESTORE}")


def _served(layout: Layout, wanted: list[str]) -> Iterator[Check]:
    """Versions of a server that is not this checkout's: its store is read through it."""
    client = registry.client(layout)
    aliases = [f"models:/{model['name']}@{alias}" for model in registry.catalogue(layout) for alias in sorted(model["aliases"])] if not wanted else []
    versions = {(version.name, str(version.version)): version for version in (registry.named(client, uri) for uri in [*wanted, *aliases])}
    for version in versions.values():
        yield Check(kind="models", bytes=0, look=lambda version=version: _fetched(layout, version))


def _fetched(layout: Layout, version: Any) -> Iterator[Problem]:
    try:
        with registry.fetched(version, layout):
            return
    except UserError as error:
        yield Problem(kind="models", where=f"{version.name} version {version.version}", wrong=said(error, layout), todo=_mend(version.name, False),
                      damaged=isinstance(error, Damaged))
