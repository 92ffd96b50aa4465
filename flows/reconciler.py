"""After a crash: close what it left open — flow, task and MLflow runs — and remove temporary files of our own."""

from __future__ import annotations

import re
import shutil
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from components import failpoints, files, tracking
from components.layout import Layout
from components.operations import contention, processes, rest, services, unclean

ORPHAN_WAIT_S = 30
SETTLED_S = 60  # after the end of a flow run its last events have arrived, or never will
RESTARTED_S = 10  # so long they are waited for where Prefect's server was started anew meanwhile, and what was on its way is lost
DATABASE_WAIT_S = 45  # another program may hold Prefect's database for a while: its server waits for a minute
OPEN = ["RUNNING", "PENDING", "CANCELLING"]
OURS = re.compile(r"^\..+\.(\d+)\.partial$")  # components.files.write_atomic: .NAME.PID.partial
REUSED_S = 7200  # more than a clock that was set can explain
WORDS = "its process was killed; closed by the next start"


def reconcile(layout: Layout, orphan_wait_s: float = ORPHAN_WAIT_S) -> list[str]:
    """Close what dead runs left; return what was done, in words ([] after a clean end).

    Waits at most `orphan_wait_s` for an orphaned stage to let go of the stage lock. Raises Busy if it does not.
    The markers go last, so that a reconciler that is killed itself begins again.
    """
    done = settle(layout)
    dead = unclean.dead(layout)
    if not dead:
        return done
    failpoints.hit("reconcile.start")
    with files.lock(layout.stage_lock, what="a stage that an earlier run left behind", wait_s=orphan_wait_s):
        done += _close_prefect(layout, [unclean.read(path) for path in dead if path.name.startswith("run-")])
        done += _close_mlflow(layout)
        done += _remove_partials(layout)
    failpoints.hit("reconcile.before_markers")
    for path in dead:
        path.unlink(missing_ok=True)
    return done


def settle(layout: Layout) -> list[str]:
    """What servers that were away have missed, told to them now; returned in words. Touches no run that goes on, so it needs no lock."""
    if tracking.unsent(layout):
        tracking.drain(layout)
    return _close_lost_tasks(layout)


def _close_lost_tasks(layout: Layout) -> list[str]:
    """Tasks that Prefect takes for running though their flow run has ended. The last state of a task is an event on its way to the server,
    and goes with a server that is killed just then (F2): such a task gets the state of its flow run. One that is only late is left alone."""
    url = services.address(layout, processes.PREFECT)
    server = services.process_of(services.read(layout).get(processes.PREFECT.name), layout)
    if not url or server is None:
        return []
    api, done, deadline = rest.Prefect(f"{url}/api"), [], time.monotonic() + RESTARTED_S
    try:
        while (lost := _lost_tasks(api, server.create_time())) and any(fresh for *_, fresh in lost) and time.monotonic() < deadline:
            time.sleep(0.5)
        for kind, run, _ in lost:
            api.close("task_runs", run["id"], state=kind, message="its last state was lost while Prefect's server was away; closed by the next start")
            done.append(f"Prefect: task run {run['name']!r} was left {run['state_name']} by a run that has ended; it is {kind.title()} now")
    except rest.Unreachable:
        pass  # not worth a run; the next start asks again
    return done


def _lost_tasks(api: rest.Prefect, server_began_s: float) -> list[tuple[str, dict[str, Any], bool]]:
    """(the state that it should have, a task run that is open though its flow run is not, whether that ended only now). Of flow runs that ended
    a while ago, and of tasks whose state is of before the server began."""
    now, found = datetime.now(UTC), []
    for kind, others in (("COMPLETED", []), ("CRASHED", ["FAILED", "CANCELLED"])):
        ended = {"state": {"type": {"any_": [kind, *others]}}}
        tasks = api.send("/task_runs/filter", {"flow_runs": ended, "task_runs": {"state": {"type": {"any_": OPEN}}}, "limit": 200})
        flows = api.send("/flow_runs/filter", {"flow_runs": {"id": {"any_": sorted({task["flow_run_id"] for task in tasks})}}, "limit": 200}) if tasks else []
        ends = {flow["id"]: datetime.fromisoformat(flow["end_time"] or flow["state"]["timestamp"]) for flow in flows}
        for task in tasks:
            fresh = (now - ends[task["flow_run_id"]]).total_seconds() < SETTLED_S
            if not fresh or datetime.fromisoformat(task["state"]["timestamp"]).timestamp() < server_began_s:
                found.append((kind, task, fresh))
    return found


def _close_prefect(layout: Layout, markers: list[dict[str, Any]]) -> list[str]:
    """Close the flow runs that the markers name, and their tasks. Raises UserError when Prefect's server does not take that.

    A marker that names none is of a process that died before it knew its flow run.
    """
    url = services.address(layout, processes.PREFECT)
    if not url or not markers:
        return []
    api = rest.Prefect(f"{url}/api", timeout_s=DATABASE_WAIT_S)
    with contention.named(layout, processes.PREFECT):
        named = [marker for marker in markers if marker.get("flow_run_id")]
        unnamed = len(named) < len(markers) and not services.outside(processes.PREFECT, layout)
        return [line for marker in [*named, *(_unnamed(api) if unnamed else [])] for line in _close_flow_run(api, marker)]


def _unnamed(api: rest.Prefect) -> list[dict[str, Any]]:
    """Markers for what is open and of no deployment: we hold the run lock, so no `lmworks run` of this checkout lives."""
    found = api.send("/flow_runs/filter", {"flows": {"name": {"like_": "lmworks-"}}, "limit": 200,
                                           "flow_runs": {"state": {"type": {"any_": OPEN}}, "deployment_id": {"is_null_": True}}})
    return [{"flow_run_id": run["id"]} for run in found]


def _close_flow_run(api: rest.Prefect, marker: dict[str, Any]) -> list[str]:
    """Crashed, unless the marker tells how the run ended: then only Prefect was away, and hears of it now."""
    told = marker.get("verdict")
    among = {"id": {"any_": [str(marker["flow_run_id"])]}}
    still_open = {"state": {"type": {"any_": OPEN}}}
    done = []
    for kind in ("task_runs", "flow_runs"):  # tasks first: a flow that is closed shows whole
        wanted = {"flow_runs": among, "task_runs": still_open} if kind == "task_runs" else {"flow_runs": {**among, **still_open}}
        name = told if kind == "flow_runs" else None
        for run in api.send(f"/{kind}/filter", {**wanted, "limit": 200}):
            api.close(kind, run["id"], state="COMPLETED" if told else "CRASHED", name=name, message=marker.get("message") or WORDS)
            now = name or ("Completed" if told else "Crashed")
            done.append(f"Prefect: {kind[:4]} run {run['name']!r} was left {run['state_name']}; it is {now} now")
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
            if match and _abandoned(path, int(match[1])):
                path.unlink(missing_ok=True)
                removed += 1
    return [f"{removed} temporary file{'s' if removed > 1 else ''} removed"] if removed else []


def _abandoned(path: Path, pid: int) -> bool:
    """Whether the writer is gone: no such process, or one that began so long after the last write that it has the number from another."""
    try:
        return psutil.Process(pid).create_time() - path.stat().st_mtime > REUSED_S
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True
    except psutil.Error:
        return False


def _files(folder: Path, deep: bool) -> list[Path]:
    if not folder.exists():
        return []
    return [path for path in (folder.rglob(".*.partial") if deep else folder.glob(".*.partial")) if path.is_file()]


