"""After a crash: close what it left open — flow, task and MLflow runs — and remove temporary files of our own."""

from __future__ import annotations

import re
import shutil
import socket
import time
from pathlib import Path

import psutil

from components import files, tracking
from components.layout import Layout
from components.operations import processes, rest, services, unclean

ORPHAN_WAIT_S = 30
OPEN = ["RUNNING", "PENDING", "CANCELLING"]
OURS = re.compile(r"^\..+\.(\d+)\.partial$")  # components.files.write_atomic: .NAME.PID.partial
WORDS = "its process was killed; closed by the next start"


def reconcile(layout: Layout, orphan_wait_s: float = ORPHAN_WAIT_S) -> list[str]:
    """Close what dead runs left; return what was done, in words ([] after a clean end).

    Waits at most `orphan_wait_s` for an orphaned stage to let go of the stage lock. Raises Busy if it does not.
    The markers go last, so that a reconciler that is killed itself begins again.
    """
    dead = unclean.dead(layout)
    if not dead:
        return []
    done: list[str] = []
    with files.lock(layout.stage_lock, what="a stage that an earlier run left behind", wait_s=orphan_wait_s):
        done += _close_prefect(layout, [str(run) for path in dead if (run := unclean.read(path).get("flow_run_id"))])
        done += _close_mlflow(layout)
        done += _remove_partials(layout)
    for path in dead:
        path.unlink(missing_ok=True)
    return done


def _close_prefect(layout: Layout, flow_runs: list[str]) -> list[str]:
    url = services.address(layout, processes.PREFECT)
    if not url or not flow_runs:
        return []
    api = rest.Prefect(f"{url}/api")
    done = []
    among = {"id": {"any_": flow_runs}}
    still_open = {"state": {"type": {"any_": OPEN}}}
    for kind in ("task_runs", "flow_runs"):  # tasks first: a flow that is closed shows whole
        wanted = {"flow_runs": among, "task_runs": still_open} if kind == "task_runs" else {"flow_runs": {**among, **still_open}}
        for run in api.send(f"/{kind}/filter", {**wanted, "limit": 200}):
            api.close(kind, run["id"], state="CRASHED", message=WORDS)
            done.append(f"Prefect: {kind[:4]} run {run['name']!r} was left {run['state_name']}; it is Crashed now")
    return done


def _close_mlflow(layout: Layout) -> list[str]:
    """KILLED, in every case: a stage that resumes sets its own run RUNNING again (tracking.open_run)."""
    done = [f"MLflow: run {name!r} was left open; it is KILLED now" for name in tracking.close_dead(layout)]
    url = services.address(layout, processes.MLFLOW)
    if not url:
        return done  # the spool tells the server when there is one
    tracking.drain(layout)
    if services.outside(processes.MLFLOW, layout):
        return done  # a shared server: runs of other machines are RUNNING there
    try:
        done += _close_unspooled(url)
    except rest.Unreachable:
        pass  # not worth a run; the next crash asks again
    return done


def _close_unspooled(url: str) -> list[str]:
    """RUNNING runs of ours on our own server that no spool knows of: nothing runs (we hold both locks), so nobody will end them."""
    base = f"{url}/api/2.0/mlflow"
    found = rest.call(f"{base}/experiments/search", {"max_results": 200})
    ids = [experiment["experiment_id"] for experiment in found.get("experiments", [])]
    done = []
    for run in rest.call(f"{base}/runs/search", {"experiment_ids": ids, "filter": "attributes.status = 'RUNNING'", "max_results": 200}).get("runs", []):
        tags = {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}
        if not any(key.startswith("lmworks.") for key in tags):
            continue  # somebody's notebook
        rest.call(f"{base}/runs/update", {"run_id": run["info"]["run_id"], "status": "KILLED", "end_time": int(time.time() * 1000)})
        rest.call(f"{base}/runs/set-tag", {"run_id": run["info"]["run_id"], "key": "lmworks.note", "value": f"{WORDS} ({socket.gethostname()})"})
        done.append(f"MLflow: run {run['info'].get('run_name')!r} was left RUNNING; it is KILLED now")
    return done


def _remove_partials(layout: Layout) -> list[str]:
    """data/.partial/ (we hold the stage lock) and cut-short files whose writer is dead."""
    removed = 0
    if layout.partial.exists():
        removed += sum(1 for _ in layout.partial.iterdir())
        shutil.rmtree(layout.partial, ignore_errors=True)
    for folder, deep in ((layout.root, False), (layout.state, True), (layout.root / "data", True), (layout.work_root, True)):
        for path in _files(folder, deep):
            match = OURS.match(path.name)
            if match and not psutil.pid_exists(int(match[1])):
                path.unlink(missing_ok=True)
                removed += 1
    return [f"{removed} temporary file{'s' if removed > 1 else ''} removed"] if removed else []


def _files(folder: Path, deep: bool) -> list[Path]:
    if not folder.exists():
        return []
    return [path for path in (folder.rglob(".*.partial") if deep else folder.glob(".*.partial")) if path.is_file()]


