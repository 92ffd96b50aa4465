"""What MLflow and Prefect show of a chain that was killed: runs left open, points lost, points doubled."""

from __future__ import annotations

import functools
import urllib.parse
from collections import Counter
from pathlib import Path
from typing import Any

from components import files, mlflow_rest
from components.layout import Layout
from components.operations import rest

MOST = 25_000
SPEED = ("train/tokens_per_s", "train/mfu")  # a clock's, so another in each life
MACHINE = "system/"
OPEN = ["RUNNING", "PENDING", "CANCELLING", "SCHEDULED"]

call = functools.partial(mlflow_rest.call, timeout_s=60)  # who counts may wait

Curves = dict[str, dict[str, list[tuple[int, float]]]]


def _urls(root: Path) -> tuple[str, str]:
    recorded = files.read_sealed(Layout(root=root).services)
    return recorded["mlflow"]["url"], recorded["prefect"]["url"]


def runs_of(root: Path, name: str) -> dict[str, list[str]]:
    """{training: the ids of its runs} in the experiment NAME."""
    url, _ = _urls(root)
    experiment = call(url, "GET", f"experiments/get-by-name?experiment_name={name}")
    found: dict[str, list[str]] = {}
    asked = {"experiment_ids": [experiment["experiment"]["experiment_id"]], "max_results": 100}
    for run in (call(url, "POST", "runs/search", asked) or {}).get("runs", []) if experiment else []:
        stage = {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}.get("lmworks.stage")
        if stage:
            found.setdefault(stage, []).append(run["info"]["run_id"])
    return found


def history(url: str, run: str, key: str) -> list[dict[str, Any]]:
    """The points of a metric of a run, as MLflow has them."""
    asked = urllib.parse.urlencode({"run_id": run, "metric_key": key, "max_results": MOST})
    return (call(url, "GET", f"metrics/get-history?{asked}") or {}).get("metrics", [])


def curves(root: Path, name: str) -> Curves:
    """{training: {metric: its points (step, value)}}, of all runs of that training together."""
    url, _ = _urls(root)
    found: Curves = {}
    for stage, runs in runs_of(root, name).items():
        for run in runs:
            keys = [metric["key"] for metric in (call(url, "GET", f"runs/get?run_id={run}") or {})["run"]["data"].get("metrics", [])]
            for key in keys:
                points = [(int(point["step"]), float(point["value"])) for point in history(url, run, key)]
                found.setdefault(stage, {}).setdefault(key, []).extend(points)
    return found


def registered(root: Path, name: str) -> dict[str, Any]:
    """{model: its aliases and how many versions it has}, of NAME and its instruct model."""
    url, _ = _urls(root)
    found = {}
    for model in (name, f"{name}-instruct"):
        known = call(url, "GET", f"registered-models/get?name={model}")
        versions = (call(url, "GET", f"model-versions/search?filter=name%3D'{model}'&max_results=100") or {}).get("model_versions", [])
        aliases = {one["alias"]: one["version"] for one in known["registered_model"].get("aliases", [])} if known else {}
        found[model] = {"aliases": aliases, "versions": len(versions)}
    return found


def compared(wanted: Curves, found: Curves) -> dict[str, list[str]]:
    """{"lost", "doubled", "changed"}: points of `found` against an untouched chain's. Speed may differ, the machine's samples have an axis of their own."""
    lost, doubled, changed = [], [], []
    for stage, keys in wanted.items():
        for key, points in keys.items():
            there = found.get(stage, {}).get(key, [])
            times = Counter(step for step, _ in there)
            doubled += [f"{stage} {key} step {step}: {n} times" for step, n in times.items() if n > 1]
            if key.startswith(MACHINE):
                continue
            lost += [f"{stage} {key} step {step}" for step, _ in points if step not in times]
            if key not in SPEED:
                values = dict(there)
                changed += [f"{stage} {key} step {step}: {value} wanted, {values[step]} there" for step, value in points if values.get(step, value) != value]
    return {"lost": lost, "doubled": doubled, "changed": changed}


def left_open(root: Path) -> list[str]:
    """MLflow, flow and task runs that no process works on any more, and that are not ended. For a time when nothing runs."""
    mlflow, prefect = _urls(root)
    experiments = (call(mlflow, "POST", "experiments/search", {"max_results": 1000}) or {}).get("experiments", [])
    asked = {"experiment_ids": [one["experiment_id"] for one in experiments], "filter": "attributes.status = 'RUNNING'", "max_results": 200}
    found = [f"MLflow run {run['info'].get('run_name')}" for run in (call(mlflow, "POST", "runs/search", asked) or {}).get("runs", [])]
    api = rest.Prefect(f"{prefect}/api", timeout_s=60)
    still: dict[str, Any] = {"state": {"type": {"any_": OPEN}}}
    for kind in ("flow_runs", "task_runs"):
        found += [f"Prefect {kind[:4]} run {run['name']}: {run['state_name']}" for run in api.send(f"/{kind}/filter", {kind: still, "limit": 200})]
    return found
