"""What may go from MLflow's and Prefect's stores: runs in the bin, files of models that no version names, flow runs that nobody refers to.

The databases are read from outside; models and flow runs are removed through their servers, which must be up for it. `mlflow gc` is not
used, only its function for one run: told to take some runs, it takes every model in the bin with them, also one that a version still names.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from components import mlflow_rest, spool
from components.errors import UserError
from components.layout import Layout
from components.operations import databases, migrations, processes, rest, services
from components.operations.cleaning import Item, Kind, size_of
from components.provenance import PREFECT_RUN
from components.release import emptied_bin

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
    """Runs in MLflow's bin with their files, and files of models that no version names, both past the age."""
    takes = sum(map(size_of, (layout.artifacts, layout.mlflow_database)))
    if (kind := _elsewhere(layout, processes.MLFLOW, "MLflow", takes)) is not None:
        return kind
    kind = Kind(name="MLflow", bytes=takes, keeps="every registered version and its run, every run that is not in the bin, and one there whose model stays; "
                "the database stays as large as it is, its space is used again")
    if not layout.mlflow_database.exists():
        return kind
    url = services.address(layout, processes.MLFLOW)
    kept, known = {version.model_id for version in databases.versions(layout.mlflow_database)}, _models(layout)
    unused = {one.id: (one.name, one.folder) for one in known if one.id not in kept and one.made_ms < before_s * 1000 and one.folder and one.folder.is_dir()}
    if unused and url is None:
        kind.keeps += f"; {len(unused)} model(s) that no version names, as MLflow is down: lmworks up, then again"
        unused = {}
    staying = [one for one in known if one.id in kept or not (one.in_bin or one.id in unused)]
    runs = _runs_in_bin(layout, before_s, needed={one.run_id for one in staying})
    if runs and migrations.stamps(layout.mlflow_database) != migrations.revisions(processes.MLFLOW)[1]:  # MLflow would migrate it, without a copy
        kind.keeps += f"; {len(runs)} run(s) in the bin, as another version of MLflow wrote the database: lmworks up, then again"
        runs = {}
    unknown = sorted({folder.parent.name for folder in layout.artifacts.glob("*/models/m-*/artifacts")} - {one.folder.name for one in known if one.folder})
    if unknown:
        kind.keeps += f"; {len(unknown)} model folder(s) that the database does not know ({unknown[0]}): nobody can say what they are"
    for found, what, why in ((runs, "run", "in MLflow's bin, and no version or model needs it"), (unused, "model", "no version of a registered model names it")):
        kind.items += [Item(what=f"{what} {name} ({folder.relative_to(layout.root)})", bytes=size_of(folder), why=why) for name, folder in found.values()]
    if kind.items:
        kind.remove = lambda: _remove_models(layout, str(url), unused, runs)
    return kind


@dataclass(frozen=True, kw_only=True)
class LoggedModel:
    """A row of MLflow's."""

    id: str
    name: str
    folder: Path | None
    made_ms: int
    run_id: str | None
    in_bin: bool


def _models(layout: Layout) -> list[LoggedModel]:
    with databases.opened(layout.mlflow_database) as database:
        if not databases.has_table(database, "logged_models"):
            return []
        return [LoggedModel(id=model_id, name=name, folder=_folder(layout, uri), made_ms=made_ms, run_id=run_id, in_bin=stage == "deleted")
                for model_id, name, uri, made_ms, run_id, stage in database.execute(
                    "SELECT model_id, name, artifact_location, creation_timestamp_ms, source_run_id, lifecycle_stage FROM logged_models")]


def _runs_in_bin(layout: Layout, before_s: float, needed: set[str | None]) -> Found:
    """Runs that were put into the bin before `before_s` and that neither `needed`, a version nor a spool names."""
    needed = needed | {version.run_id for version in databases.versions(layout.mlflow_database)}
    # without the row, the spool would take the server for another one and send the whole run again
    needed |= {spool.sent(path.parent)["run_id"] for path in layout.spool.glob("*/sent.json")}
    with databases.opened(layout.mlflow_database) as database:
        if not databases.has_table(database, "runs"):
            return {}
        rows = database.execute("SELECT run_uuid, name, artifact_uri FROM runs WHERE lifecycle_stage = 'deleted' AND deleted_time < ?", (int(before_s * 1000),)).fetchall()
    return {run_id: (name or run_id, folder) for run_id, name, uri in rows if run_id not in needed and (folder := _folder(layout, uri))}


def _folder(layout: Layout, address: str) -> Path | None:
    """EXPERIMENT/RUN or EXPERIMENT/models/MODEL in our store, from its address (which ends in /artifacts)."""
    inside = address.removeprefix(databases.PROXIED).strip("/")
    ours = address.startswith(databases.PROXIED) and inside.endswith("/artifacts") and inside.count("/") >= 2 and ".." not in inside
    return (layout.artifacts / inside).parent if ours else None


def _remove_models(layout: Layout, url: str, unused: Found, runs: Found) -> None:
    """Models into MLflow's bin first: none is left that looks whole. Rows of runs last: a row without files goes the next time, files
    without a row would stay. Raises UserError, also where its server does not answer."""
    try:
        for model_id in unused:
            mlflow_rest.call(url, "DELETE", f"logged-models/{model_id}")  # a 404: it is in the bin already
    except mlflow_rest.Unreachable as error:
        raise UserError(f"MLflow at {url} does not answer as it should: {error}. No file of a model or run was removed. If it hangs: lmworks down --force, "
                        "lmworks up, then run again") from error
    for _, folder in (*unused.values(), *runs.values()):
        if folder.exists():
            shutil.rmtree(folder)
    if runs:
        emptied_bin.remove(layout, list(runs))


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
