"""Registered models, checked: the stored files of each version against what release vouched for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from components import files
from components.errors import Damaged, UserError
from components.layout import Layout
from components.operations import databases, services
from components.operations.findings import Check, Problem, said, size_of
from components.operations.processes import MLFLOW
from components.release import calls, history, model_files, registry


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
    if "champion" in version.aliases:
        model, tags, judged = _records(layout, version)
        yield from _promotion(version.name, where, model, tags, judged)
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


def _records(layout: Layout, version: databases.Version) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """(the registered model as `history` takes it, the tags of the version, what its gate wrote: {} where that is gone or of another version)."""
    with databases.opened(layout.mlflow_database) as database:
        history_of = dict(database.execute("SELECT key, value FROM registered_model_tags WHERE name = ?", (version.name,)).fetchall())
        tags = dict(database.execute("SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?", (version.name, version.number)).fetchall())
        place = database.execute("SELECT artifact_uri FROM runs WHERE run_uuid = ?", (version.run_id,)).fetchone()
    report = layout.artifacts / str(place[0] if place else "").removeprefix(databases.PROXIED).strip("/") / "promotion.json"
    try:
        judged = files.read_json(report)
    except (OSError, Damaged):
        judged = {}
    mine = isinstance(judged, dict) and judged.get("version") == version.number
    return {"aliases": {"champion": version.number}, "tags": history_of}, tags, judged if mine else {}


def _promotion(name: str, where: str, model: dict[str, Any], tags: dict[str, str], judged: dict[str, Any]) -> Iterator[Problem]:
    """What a person should know of a champion whose bytes may all be right: that no gate made it one, or one that judged something else."""
    other = f"lmworks run judges what data/ holds; lmworks rollback {name} goes back to a champion that a gate made"
    if moved := history.by_hand(model):
        yield Problem(kind="models", where=where, wrong=moved, todo=f"where that was meant: nothing; else: {other}", damaged=False)
    if (verdict := tags.get(registry.VERDICT, "none")) != "passed":
        yield Problem(kind="models", where=where, wrong=f"is champion, and the verdict of its gate is {verdict}: it was moved by hand, or the gate was changed since",
                      todo=other, damaged=False)
    found, wanted = tags.get(registry.EVALUATION), judged.get("evaluation_sha256")
    if judged and found != wanted:
        yield Problem(kind="models", where=where, wrong=f"the registry says evaluation {found}, its gate judged evaluation {wanted}", todo=other)


def _mend(name: str, champion: bool) -> str:
    back = f"; until then: lmworks rollback {name}" if champion else ""
    return (f"where data/ still holds the weights: rm -f .lmworks/release.json, then lmworks run (it registers them again){back}; "
            "or bring a backup back into an empty checkout: lmworks restore PATH")


def _served(layout: Layout, wanted: list[str]) -> Iterator[Check]:
    """Versions of a server that is not this checkout's: its store is read through it."""
    client = registry.client(layout)
    aliases = [f"models:/{model['name']}@{alias}" for model in registry.catalogue(layout) for alias in sorted(model["aliases"])] if not wanted else []
    with calls.explained(layout, "Look at `lmworks status`, then run again: lmworks verify"):
        versions = {(version.name, str(version.version)): version for version in (registry.named(client, uri) for uri in [*wanted, *aliases])}
    for version in versions.values():
        yield Check(kind="models", bytes=0, look=lambda version=version: _fetched(layout, version))


def _fetched(layout: Layout, version: Any) -> Iterator[Problem]:
    model = registry.registered(layout, version.name)
    if model and model["aliases"].get("champion") == str(version.version):
        yield from _promotion(version.name, f"{version.name} version {version.version} (champion)", model, dict(version.tags), {})
    try:
        with model_files.fetched(version, layout):
            return
    except UserError as error:
        yield Problem(kind="models", where=f"{version.name} version {version.version}", wrong=said(error, layout), todo=_mend(version.name, False),
                      damaged=isinstance(error, Damaged))
