"""Register prefect.yaml with the server and start the worker: `lmworks up`."""

from __future__ import annotations

import importlib
import reprlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from components import config as settings
from components import files
from components.errors import UserError
from components.layout import Layout
from components.operations import (
    addresses,
    alerts,
    contention,
    environment,
    processes,
    rest,
    services,
    staleness,
)

KEPT_LATE = 1
WAIT_S = 45  # another program may hold Prefect's database for a while: its server waits for a minute


def start(layout: Layout, say: Callable[[str], None] = services.quiet) -> list[str]:
    """Pool, deployments, alerts, late runs, then the worker; returns what was done, in words. Prefect must be up. Raises UserError."""
    webhook, ping = (addresses.secret_address(variable) for variable in addresses.SECRETS)  # what is no address is said before anything is done
    url = services.address(layout, processes.PREFECT)
    if url is None:
        raise UserError("Prefect's server does not run. Run: lmworks up")
    environment.apply(layout, PREFECT_API_URL=f"{url}/api")
    api = rest.Prefect(f"{url}/api", timeout_s=WAIT_S)
    # one `lmworks up` after the other: of two that find nothing, both would make it
    with files.lock(layout.deployments_lock, what="lmworks up", wait_s=services.START_S), contention.named(layout, processes.PREFECT):
        done = _register_all(api, layout, webhook)
    services.ensure(layout, prefect=True, mlflow=False, worker=True, say=say)
    return done + _worker_pings(layout, ping)


def _register_all(api: rest.Prefect, layout: Layout, webhook: str | None) -> list[str]:
    if not _has_pool(api):
        api.send("/work_pools/", {"name": processes.POOL, "type": "process", "description": "runs flows in this checkout",
                                  "base_job_template": _job_template()})
    made = dict(_register(api, entry, layout) for entry in _entries(layout))
    done = [f"deployments: {', '.join(made)}"]
    done += alerts.install(api, webhook, deployments=list(made.values()), late_s=settings.load(layout.params).operations.late_alert_s)
    if dropped := drop_late(api):
        done.append(f"{dropped} late scheduled runs dropped")
    return done


def _worker_pings(layout: Layout, ping: str | None) -> list[str]:
    """The worker's runs ping the address that it was started with."""
    worker = services.process_of(services.read(layout).get("worker"), layout)
    if worker is None:
        return []
    if worker.environ().get(addresses.PING_URL, "").strip() != (ping or ""):
        return [f"the worker was started with another {addresses.PING_URL}; to change it: lmworks down, then lmworks up"]
    return [f"each run of a deployment pings {addresses.PING_URL} when it ends"] if ping else []


def _has_pool(api: rest.Prefect) -> bool:
    try:
        api.get(f"/work_pools/{processes.POOL}")
        return True
    except rest.Unreachable as error:
        if error.status != 404:
            raise
        return False


def _job_template() -> dict[str, Any]:
    from prefect.workers.process import ProcessWorker

    return ProcessWorker.get_default_base_job_template()


MEND = "Mend it, or bring it back (git checkout -- prefect.yaml); then: lmworks up"
SHAPE = {"pull": [dict], "deployments": [{
    "name": str, "entrypoint": str, "description": str, "tags": [str], "work_pool": {"name": str},
    "concurrency_limit": {"limit": int, "collision_strategy": str}, "schedules": [{"cron": str, "timezone": str, "active": bool, "slug": str}]}]}


def _entries(layout: Layout) -> list[dict[str, Any]]:
    """The deployments of prefect.yaml, each with what all of them share. Raises UserError for another shape."""
    path = layout.root / "prefect.yaml"
    tree = files.load_yaml(path)
    if wrong := _misfit(tree, SHAPE, ""):
        raise UserError(f"{path}: {wrong}. {MEND}")
    return [{"pull": tree["pull"], **entry} for entry in tree["deployments"]]


def _misfit(found: Any, wanted: Any, where: str) -> str | None:
    """The first place where `found` has not the shape of `wanted`, in words; keys more than are wanted are none."""
    kind = wanted if isinstance(wanted, type) else type(wanted)
    if not isinstance(found, kind):
        return f"{where.strip('.') or 'the file'} is {reprlib.repr(found)}, {kind.__name__} was expected"
    if isinstance(wanted, list):
        return next((wrong for number, one in enumerate(found) if (wrong := _misfit(one, wanted[0], f"{where}[{number}]"))), None)
    if isinstance(wanted, dict):
        return next((wrong for key, one in wanted.items() if (wrong := _misfit(found.get(key), one, f"{where}.{key}"))), None)
    return None


def _flow_at(entrypoint: str, layout: Layout) -> Any:
    """Raises UserError where none is there."""
    path, _, function = entrypoint.partition(":")
    there = path.startswith("flows/") and path.endswith(".py") and (layout.root / path).is_file()
    flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), function, None) if there else None
    if flow is None:
        raise UserError(f"{layout.root / 'prefect.yaml'}: no flow is at the entrypoint {entrypoint}. {MEND}")
    return flow


def _schema(flow: Any, layout: Layout) -> dict[str, Any]:
    """The flow's parameters, closed: an unknown one is refused when the run is asked for, not when it crashes."""
    from prefect.utilities.callables import parameter_schema

    schema = parameter_schema(flow.fn).model_dump(exclude_none=True)
    schema["additionalProperties"] = False
    stages = staleness.names(layout)
    for name in ("from_stage", "to_stage"):
        if name in schema["properties"]:  # a list to choose from in the page
            schema["properties"][name]["anyOf"] = [{"type": "string", "enum": stages}, {"type": "null"}]
    if "to_stage" in schema["properties"]:  # the last stage cannot come before the first
        schema["dependentSchemas"] = {"from_stage": {"allOf": [
            {"if": {"properties": {"from_stage": {"const": stage}}}, "then": {"properties": {"to_stage": {"enum": [None, *stages[number:]]}}}}
            for number, stage in enumerate(stages)]}}
    return schema


def _register(api: rest.Prefect, entry: dict[str, Any], layout: Layout) -> tuple[str, str]:
    """(FLOW/DEPLOYMENT, its id). Raises UserError."""
    flow = _flow_at(entry["entrypoint"], layout)
    flow_id = api.send("/flows/", {"name": flow.name})["id"]
    active = _active_schedules(api, flow.name, entry["name"])
    made = api.send("/deployments/", {
        "name": entry["name"], "flow_id": flow_id, "entrypoint": entry["entrypoint"], "path": ".", "pull_steps": entry["pull"],
        "work_pool_name": entry["work_pool"]["name"], "description": entry["description"], "tags": entry["tags"],
        "concurrency_limit": entry["concurrency_limit"]["limit"],
        "concurrency_options": {"collision_strategy": entry["concurrency_limit"]["collision_strategy"]},
        "enforce_parameter_schema": True, "parameter_openapi_schema": _schema(flow, layout), "parameters": {},
        "schedules": [{"schedule": {"cron": s["cron"], "timezone": s["timezone"]}, "slug": s["slug"], "active": active.get(s["slug"], s["active"])}
                      for s in entry["schedules"]],
    })
    return f"{flow.name}/{entry['name']}", made["id"]


def _active_schedules(api: rest.Prefect, flow: str, name: str) -> dict[str, bool]:
    """What a person switched on or off in the page outlives `lmworks up`."""
    try:
        known = api.get(f"/deployments/name/{flow}/{name}")
    except rest.Unreachable as error:
        if error.status != 404:
            raise
        return {}
    return {s["slug"]: s["active"] for s in known.get("schedules", []) if s.get("slug")}


def drop_late(api: rest.Prefect) -> int:
    """After an outage missed ticks are queued as Late: keep the newest of each deployment, cancel the others. Returns how many."""
    waiting = api.send("/flow_runs/filter", {
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}, "expected_start_time": {"before_": datetime.now(UTC).isoformat()}},
        "sort": "EXPECTED_START_TIME_DESC", "limit": 200})
    seen: dict[str, int] = {}
    dropped = 0
    for run in waiting:
        deployment = run.get("deployment_id")
        if not deployment or not run.get("auto_scheduled"):
            continue  # somebody asked for this one
        seen[deployment] = seen.get(deployment, 0) + 1
        if seen[deployment] > KEPT_LATE:
            api.close("flow_runs", run["id"], state="CANCELLED", name="Dropped", message="missed while the worker was down; a later one runs")
            dropped += 1
    return dropped
