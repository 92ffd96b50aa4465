"""The models that were trained, one run each, as MLflow's server tells it by plain REST; and what the spool knows without it."""

from __future__ import annotations

import urllib.parse
from typing import Any

from components import mlflow_rest, spool
from components.errors import UserError
from components.layout import Layout
from components.release.registry import VERDICT, WEIGHTS, versions_of

STAGE = "lmworks.stage"
MAX_EXPERIMENTS = 1000


def trained(url: str, experiment: str | None, limit: int) -> list[dict[str, Any]]:
    """The newest runs that trained a model, of one experiment or (None) of all, newest first.

    {"run_id", "name", "experiment", "stage", "status", "started_s", "elapsed_s", "metrics": {key: last value}, "verdict", "versions":
    ["NAME/3"], "error", "weights_sha256", "url"}. An experiment that nobody has made yet has none. Raises mlflow_rest.Unreachable.
    """
    experiments = _experiments(url, experiment)
    if not experiments:
        return []
    found = mlflow_rest.call(url, "POST", "runs/search", {
        "experiment_ids": list(experiments), "filter": f"tags.`{STAGE}` LIKE '%'", "order_by": ["attributes.start_time DESC"], "max_results": limit})
    runs = [_run(run, experiments, url) for run in (found or {}).get("runs", [])]
    versions: dict[str, list[dict[str, Any]]] = {}
    for name in sorted({name for run in runs for name in (run["experiment"], f"{run['experiment']}-instruct")}):
        for version in versions_of(url, name):
            versions.setdefault(version.get("run_id", ""), []).append(version)
    for run in runs:
        mine = sorted(versions.get(run["run_id"], []), key=lambda version: int(version["version"]))
        run["versions"] = [f"{version['name']}/{version['version']}" for version in mine]
        if mine:  # the newest decision: a gate that was changed may have judged the weights again
            run["verdict"] = _tags(mine[-1]).get(VERDICT)
    return runs


def _experiments(url: str, name: str | None) -> dict[str, str]:
    """{experiment id: its name}."""
    if name is None:
        found = mlflow_rest.call(url, "POST", "experiments/search", {"max_results": MAX_EXPERIMENTS}) or {}
        return {experiment["experiment_id"]: experiment["name"] for experiment in found.get("experiments", [])}
    found = mlflow_rest.call(url, "GET", f"experiments/get-by-name?{urllib.parse.urlencode({'experiment_name': name})}")
    return {found["experiment"]["experiment_id"]: name} if found else {}


def _tags(entity: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in entity.get("tags", [])}


def _run(run: dict[str, Any], experiments: dict[str, str], url: str) -> dict[str, Any]:
    info, tags = run["info"], _tags(run["data"])
    started_ms, ended_ms = info.get("start_time"), info.get("end_time")
    experiment = info["experiment_id"]
    return {
        "run_id": info["run_id"], "name": info.get("run_name") or tags.get("mlflow.runName") or info["run_id"], "experiment": experiments[experiment],
        "stage": tags[STAGE], "status": info["status"], "started_s": started_ms / 1000 if started_ms else None,
        "elapsed_s": (ended_ms - started_ms) / 1000 if started_ms and ended_ms else None,
        # a loss that is no number comes as text
        "metrics": {metric["key"]: metric["value"] for metric in run["data"].get("metrics", [])
                    if metric["key"].startswith(("val/", "eval/")) and isinstance(metric["value"], int | float)},
        "verdict": tags.get("lmworks.verdict"), "versions": [], "error": tags.get("lmworks.error"), "weights_sha256": tags.get(WEIGHTS),
        "url": f"{url}/#/experiments/{experiment}/runs/{info['run_id']}"}


def spooled(layout: Layout) -> list[dict[str, Any]]:
    """Runs of this checkout that train now or whose last points no server has yet, newest first: {"name", "experiment", "stage", "started_s",
    "in_training"}."""
    from components.operations import liveness

    known = []
    for folder in spool.folders(layout.spool):
        try:
            about = spool.about(folder) or {}
            run = {"name": about["name"], "experiment": about["experiment"], "stage": about["tags"][STAGE], "started_s": about["started_ms"] / 1000,
                   "in_training": liveness.process_of(about["process"]) is not None}
            unsent = (folder / "events.jsonl").stat().st_size > spool.sent(folder)["offset"]
        except (OSError, UserError, KeyError, TypeError):
            continue  # a damaged spool cannot say what it is
        if unsent or run["in_training"]:
            known.append(run)
    return sorted(known, key=lambda run: -run["started_s"])
