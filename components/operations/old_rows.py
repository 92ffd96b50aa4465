"""What may go from MLflow's and Prefect's stores: files of runs in the bin and of models that no version names, flow runs that nobody
refers to.

The databases are read from outside; rows are changed through their servers, which must be up for it. `mlflow gc` is not used: told to
take some runs, it takes every model in the bin with them, also one that a version still names.
"""

from __future__ import annotations

import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

from components import mlflow_rest
from components.errors import UserError
from components.layout import Layout
from components.operations import databases, processes, rest, services
from components.operations.cleaning import Item, Kind, size_of
from components.provenance import PREFECT_RUN

RUN_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def _elsewhere(layout: Layout, service: processes.Service, name: str, takes: int) -> Kind | None:
    """The kind where it is not this checkout's to clean."""
    if url := services.outside(service, layout):
        return Kind(name=name, bytes=takes, keeps=f"all: {url} is not this checkout's server")
    return None


# --- MLflow --------------------------------------------------------------------------------------

Found = dict[str, tuple[str, Path]]  # {id: (name, its folder)}


def models(layout: Layout, before_s: float) -> Kind:
    """Files of runs in MLflow's bin and of models that no version names, both past the age."""
    takes = sum(map(size_of, (layout.artifacts, layout.mlflow_database)))
    if (kind := _elsewhere(layout, processes.MLFLOW, "MLflow", takes)) is not None:
        return kind
    kind = Kind(name="MLflow", bytes=takes, keeps="every registered version and its run, every run that is not in the bin; rows in the bin stay there")
    if not layout.mlflow_database.exists():
        return kind
    runs, unused, unknown = _unneeded(layout, before_s)
    url = services.address(layout, processes.MLFLOW)
    if unused and url is None:
        kind.keeps += f"; {len(unused)} model(s) that no version names, as MLflow is down: lmworks up, then again"
        unused = {}
    if unknown:
        kind.keeps += f"; {len(unknown)} model folder(s) that the database does not know ({unknown[0]}): nobody can say what they are"
    for found, what, why in ((runs, "files of run", "in MLflow's bin, and no version needs it"), (unused, "model", "no version of a registered model names it")):
        kind.items += [Item(what=f"{what} {name} ({folder.relative_to(layout.root)})", bytes=size_of(folder), why=why) for name, folder in found.values()]
    if kind.items:
        kind.remove = lambda: _remove_models(str(url), list(unused), [folder for _, folder in (*runs.values(), *unused.values())])
    return kind


def _unneeded(layout: Layout, before_s: float) -> tuple[Found, Found, list[str]]:
    """(runs in the bin, logged models) that are older than `before_s`, that no version needs and that have files; folders nobody knows."""
    kept = databases.versions(layout.mlflow_database)
    models_kept, before_ms = {version.model_id for version in kept}, int(before_s * 1000)
    with databases.opened(layout.mlflow_database) as database:
        if not databases.has_table(database, "logged_models"):
            return {}, {}, []
        known = database.execute("SELECT model_id, name, artifact_location, creation_timestamp_ms, source_run_id FROM logged_models").fetchall()
        binned = database.execute("SELECT run_uuid, name, artifact_uri FROM runs WHERE lifecycle_stage = 'deleted' AND deleted_time < ?", (before_ms,)).fetchall()
    runs_kept = {version.run_id for version in kept} | {run for model_id, _, _, _, run in known if model_id in models_kept}
    runs = {run_id: (name or run_id, _folder(layout, uri)) for run_id, name, uri in binned if run_id not in runs_kept}
    unused = {model_id: (name, _folder(layout, uri)) for model_id, name, uri, made_ms, _ in known if model_id not in models_kept and made_ms < before_ms}
    there = {folder.parent for folder in layout.artifacts.glob("*/models/m-*/artifacts")}
    unknown = there - {_folder(layout, uri) for _, _, uri, _, _ in known}
    return *({key: (name, folder) for key, (name, folder) in found.items() if folder and folder.is_dir()} for found in (runs, unused)), \
        sorted(folder.name for folder in unknown)


def _folder(layout: Layout, address: str) -> Path | None:
    """EXPERIMENT/RUN or EXPERIMENT/models/MODEL in our store, from its address (which ends in /artifacts)."""
    inside = address.removeprefix(databases.PROXIED).strip("/")
    ours = address.startswith(databases.PROXIED) and inside.endswith("/artifacts") and inside.count("/") >= 2 and ".." not in inside
    return (layout.artifacts / inside).parent if ours else None


def _remove_models(url: str, unused: list[str], folders: list[Path]) -> None:
    """Models into MLflow's bin first: none is left that looks whole. Raises UserError where its server does not answer."""
    try:
        for model_id in unused:
            mlflow_rest.call(url, "DELETE", f"logged-models/{model_id}")  # a 404: it is in the bin already
    except mlflow_rest.Unreachable as error:
        raise UserError(f"MLflow at {url} does not answer as it should: {error}. No file of a model was removed. If it hangs: lmworks down --force, "
                        "lmworks up, then run again") from error
    for folder in folders:
        shutil.rmtree(folder)


# --- Prefect -------------------------------------------------------------------------------------

def flow_runs(layout: Layout, before_s: float) -> Kind:
    """Flow runs that ended before `before_s` and that nobody refers to, with their tasks and logs."""
    database = layout.prefect_database
    takes = sum(size_of(path) for path in database.parent.glob("prefect.db*")) if database.exists() else 0
    if (kind := _elsewhere(layout, processes.PREFECT, "Prefect", takes)) is not None:
        return kind
    kind = Kind(name="Prefect", bytes=takes, keeps="flow runs that made a registered version, the last ones, younger ones, and those that have not ended; "
                "the file stays as large as it is, its space is used again")
    if not database.exists():
        return kind
    with databases.opened(database) as connection:
        if not databases.has_table(connection, "flow_run"):
            return kind
        moment = datetime.fromtimestamp(before_s, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")  # as SQLite has them: UTC, comparable as text
        old = connection.execute(f"SELECT id, name, end_time FROM flow_run WHERE state_type IN ({', '.join('?' * len(ENDED))}) AND end_time < ? "
                                 "ORDER BY end_time", (*ENDED, moment)).fetchall()
    referred = _referred(layout)
    going = [(run_id, name, end) for run_id, name, end in old if run_id not in referred]
    url = services.address(layout, processes.PREFECT)
    if going and url is None:
        kind.keeps += f"; {len(going)} old flow run(s), as Prefect is down: lmworks up, then again"
        return kind
    kind.items = [Item(what=f"flow run {name}", bytes=0, why=f"ended {end[:10]}, and nothing refers to it") for _, name, end in going]
    if going:
        kind.remove = lambda: _remove_flow_runs(f"{url}/api", [run_id for run_id, _, _ in going])
    return kind


def _referred(layout: Layout) -> set[str]:
    """Ids of the flow runs that the runs of registered versions link to, and of those that `lmworks status` shows."""
    shown = {match for path in (layout.last_run, layout.scheduled) if path.exists() for match in RUN_ID.findall(path.read_text(errors="replace"))}
    if not layout.mlflow_database.exists():
        return shown
    wanted = {version.run_id for version in databases.versions(layout.mlflow_database)}
    with databases.opened(layout.mlflow_database) as database:
        if not databases.has_table(database, "tags"):
            return shown
        return shown | {link.rpartition("/")[2] for run, link in database.execute("SELECT run_uuid, value FROM tags WHERE key = ?", (PREFECT_RUN,)) if run in wanted}


def _remove_flow_runs(api_url: str, ids: list[str]) -> None:
    """Raises Unreachable; those that went before are gone."""
    api = rest.Prefect(api_url)
    for run_id in ids:
        try:
            api.send(f"/flow_runs/{run_id}", method="DELETE")
        except rest.Unreachable as error:
            if error.status != 404:  # somebody deleted it meanwhile
                raise
