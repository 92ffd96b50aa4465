"""The last runs of the chain and its parts, as Prefect's server tells it by plain REST."""

from __future__ import annotations

from typing import Any

from components.operations import rest

FLOWS = "lmworks-"  # how the flows of this checkout are called


def latest(url: str, limit: int) -> list[dict[str, Any]]:
    """Flow runs that have begun, newest first: {"name", "verdict", "type", "deployment" (None: `lmworks run`), "started_at", "elapsed_s",
    "message", "url"}. Raises rest.Unreachable."""
    api = rest.Prefect(f"{url}/api")
    runs = api.send("/flow_runs/filter", {
        "flows": {"name": {"like_": FLOWS}}, "flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED"]}}}, "sort": "START_TIME_DESC", "limit": limit})
    wanted = sorted({run["deployment_id"] for run in runs if run.get("deployment_id")})
    found = api.send("/deployments/filter", {"deployments": {"id": {"any_": wanted}}, "limit": len(wanted)}) if wanted else []
    deployments = {deployment["id"]: deployment["name"] for deployment in found}
    return [{
        "name": run["name"], "verdict": run["state_name"], "type": run["state_type"],
        # one that was deleted since is still no run from a terminal
        "deployment": deployments.get(run["deployment_id"], "a deleted deployment") if run.get("deployment_id") else None,
        "started_at": run.get("start_time") or run.get("expected_start_time"), "elapsed_s": run.get("estimated_run_time"),  # of one that goes on: until now
        "message": (run.get("state") or {}).get("message") or "", "url": f"{url}/runs/flow-run/{run['id']}"} for run in runs]
