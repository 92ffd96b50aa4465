"""Training runs in MLflow, through a spool: tracking never stops training and no point is lost.

A run is a folder in .lmworks/spool/ with `run.json` (what it is) and `events.jsonl` (points, tags,
states, each with its own time). A thread of the training process, or any later command, sends what
is new to the MLflow server over its REST API (urllib: `import mlflow` would cost every stage
seconds). Sending twice is harmless: MLflow's key is run, metric, timestamp, step and value.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components import files
from components.config import Config
from components.errors import Busy, UserError
from components.layout import Layout

SEND_INTERVAL_S = 2.0
REQUEST_TIMEOUT_S = 5.0
METRICS_A_BATCH = 900  # MLflow takes 1,000 metrics in one log-batch


class Unreachable(Exception):
    """The server did not answer, or answered that it cannot now."""


def server_url(layout: Layout) -> str | None:
    """Address of the MLflow server: the environment first, then the one that `lmworks up` started."""
    url = os.environ.get("MLFLOW_TRACKING_URI")
    if not url and layout.services.exists():
        with contextlib.suppress(UserError):
            url = (files.read_json(layout.services).get("mlflow") or {}).get("url")
    return url if url and url.startswith("http") else None


def call(url: str, method: str, path: str, body: dict[str, Any] | None = None, timeout_s: float = REQUEST_TIMEOUT_S) -> Any:
    """One MLflow REST call (`path` below /api/2.0/mlflow/). Returns None on 404. Raises Unreachable."""
    request = urllib.request.Request(f"{url.rstrip('/')}/api/2.0/mlflow/{path}", method=method,
                                     data=None if body is None else json.dumps(body).encode(),
                                     headers={"Content-Type": "application/json"})
    # loopback must not go through a proxy that the environment names for the outside
    loopback = "://127.0.0.1" in url or "://localhost" in url
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({})) if loopback else urllib.request.build_opener()
    try:
        with opener.open(request, timeout=timeout_s) as answer:
            return json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise Unreachable(f"{path}: {error.code} {error.read()[:300].decode(errors='replace')}") from error
    except (OSError, ValueError) as error:
        raise Unreachable(f"{path}: {error}") from error


def now_ms() -> int:
    return int(time.time() * 1000)


def _alive(pid: int, started: float) -> bool:
    import psutil

    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started) < 1
    except psutil.NoSuchProcess:
        return False


def _events(folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / "events.jsonl"
    if path.exists():
        for line in path.read_bytes().split(b"\n")[:-1]:  # after the last newline: cut short by a kill
            with contextlib.suppress(ValueError):
                yield json.loads(line)


class Run:
    """One model's training run; `log` appends to the spool, a thread sends."""

    def __init__(self, folder: Path, layout: Layout, last_step: int):
        self.folder, self.layout, self.last_step = folder, layout, last_step
        self._file = open(folder / "events.jsonl", "ab")  # noqa: SIM115 - closed in finish
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._sender = threading.Thread(target=self._send_loop, daemon=True, name="tracking")
        self._sender.start()

    def _append(self, event: dict[str, Any]) -> None:
        with self._lock:
            self._file.write(json.dumps({"t": now_ms(), **event}).encode() + b"\n")
            self._file.flush()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Points of one step. A resumed run skips the steps that an earlier life has spooled."""
        if step > self.last_step:
            self._append({"step": step, "metrics": {k: float(v) for k, v in metrics.items()}})

    def flush(self) -> None:
        """What was logged is on disk when this returns."""
        with self._lock:
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self, status: str, tags: dict[str, str] | None = None) -> None:
        """FINISHED, FAILED or KILLED; sends what it can within a few seconds, leaves the rest spooled."""
        self._append({"status": status, "tags": tags or {}})
        self.flush()
        self._ended.set()
        self._sender.join(timeout=2 * REQUEST_TIMEOUT_S)
        self._file.close()

    def _send_loop(self) -> None:
        url, pause_s = server_url(self.layout), SEND_INTERVAL_S
        while True:
            ended = self._ended.wait(pause_s)
            if url:
                try:
                    send(self.folder, url)
                    pause_s = SEND_INTERVAL_S
                except (Unreachable, Busy):
                    pause_s = min(2 * pause_s, 30)
            if ended:
                return


def open_run(config: Config, layout: Layout, *, stage: str, name: str, params: dict[str, Any], tags: dict[str, str]) -> Run:
    """The run of this stage and KEY: the one that a killed life left, or a new one."""
    import psutil

    assert layout.work is not None
    key = layout.work.name
    folder = layout.spool / f"{stage}-{key}"
    events = list(_events(folder))
    if events and events[-1].get("status") == "FINISHED":  # a forced run of the same KEY is another run
        folder.rename(folder.with_name(f"{folder.name}-{uuid.uuid4().hex[:8]}"))
        events = []
    process = {"pid": os.getpid(), "started": psutil.Process().create_time(), "host": socket.gethostname()}
    if not (folder / "run.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / "run.json", {
            "uuid": uuid.uuid4().hex, "experiment": config.name, "name": name, "started_ms": now_ms(), "process": process,
            "params": {k: str(v) for k, v in params.items()},
            "tags": {**tags, "lmworks.stage": stage, "lmworks.key": key, "lmworks.name": config.name, "lmworks.preset": config.preset}})
    else:
        about = files.read_json(folder / "run.json")
        files.write_json(folder / "run.json", {**about, "process": process})
        path = folder / "events.jsonl"
        if path.exists():
            whole = path.read_bytes()
            os.truncate(path, whole.rfind(b"\n") + 1)
    run = Run(folder, layout, max((e["step"] for e in events if "step" in e), default=-1))
    run._append({"status": "RUNNING"})
    return run


# --- sending -------------------------------------------------------------------------------------

def _experiment_id(url: str, name: str) -> str:
    found = call(url, "GET", f"experiments/get-by-name?experiment_name={urllib.parse.quote(name)}")
    if found:
        return found["experiment"]["experiment_id"]
    return call(url, "POST", "experiments/create", {"name": name})["experiment_id"]


def _ensure_run(url: str, about: dict[str, Any]) -> str:
    """The MLflow run of this spool: found by its uuid (an earlier life may have made it), or made."""
    experiment = _experiment_id(url, about["experiment"])
    found = call(url, "POST", "runs/search", {"experiment_ids": [experiment], "filter": f"tags.`lmworks.run_uuid` = '{about['uuid']}'", "max_results": 1})
    if found and found.get("runs"):
        return found["runs"][0]["info"]["run_id"]
    tags = {**about["tags"], "lmworks.run_uuid": about["uuid"], "mlflow.runName": about["name"], "mlflow.source.name": "lmworks", "mlflow.user": _user()}
    made = call(url, "POST", "runs/create", {"experiment_id": experiment, "start_time": about["started_ms"], "run_name": about["name"],
                                             "tags": [{"key": k, "value": v} for k, v in tags.items()]})
    run_id = made["run"]["info"]["run_id"]
    params = [{"key": k, "value": v[:6000]} for k, v in about["params"].items()]
    call(url, "POST", "runs/log-batch", {"run_id": run_id, "params": params})
    return run_id


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def send(folder: Path, url: str) -> None:
    """Send what is new of one spooled run; remove the folder when a FINISHED run is sent whole.

    Raises Unreachable (nothing is lost: the next call goes on), Busy when another process sends it.
    """
    with files.lock(folder / ".lock", what="sending this run"):
        about = files.read_json(folder / "run.json")
        sent_path = folder / "sent.json"
        sent = files.read_json(sent_path) if sent_path.exists() else {"offset": 0, "run_id": None}
        path = folder / "events.jsonl"
        if not path.exists():
            return
        with open(path, "rb") as f:
            f.seek(sent["offset"])
            new = f.read()
        new = new[: new.rfind(b"\n") + 1]
        if not new:
            return
        run_id = sent["run_id"] or _ensure_run(url, about)
        metrics: list[dict[str, Any]] = []
        last: dict[str, Any] = {}
        for line in new.splitlines():
            event = json.loads(line)
            metrics += [{"key": k, "value": v, "timestamp": event["t"], "step": event["step"]} for k, v in event.get("metrics", {}).items()]
            if "status" in event:
                last = event
        for at in range(0, len(metrics), METRICS_A_BATCH):
            call(url, "POST", "runs/log-batch", {"run_id": run_id, "metrics": metrics[at:at + METRICS_A_BATCH]})
        for key, value in last.get("tags", {}).items():
            call(url, "POST", "runs/set-tag", {"run_id": run_id, "key": key, "value": value})
        if last:
            ended = {} if last["status"] == "RUNNING" else {"end_time": last["t"]}
            call(url, "POST", "runs/update", {"run_id": run_id, "status": last["status"], **ended})
        files.write_json(sent_path, {"offset": sent["offset"] + len(new), "run_id": run_id})
    if last.get("status") == "FINISHED":
        shutil.rmtree(folder, ignore_errors=True)


def drain(layout: Layout) -> int:
    """Send every spooled run to the server. Returns how many still hold unsent points."""
    url, left = server_url(layout), 0
    for folder in sorted(layout.spool.glob("*/")) if layout.spool.exists() else []:
        if not (folder / "run.json").exists():
            continue
        try:
            if url is None:
                raise Unreachable("no server is known")
            send(folder, url)
        except (Unreachable, Busy):
            left += 1
    return left


def close_dead(layout: Layout) -> list[str]:
    """Mark spooled runs whose process is gone as KILLED (a resume sets them RUNNING again). Returns their names."""
    closed = []
    for folder in sorted(layout.spool.glob("*/")) if layout.spool.exists() else []:
        if not (folder / "run.json").exists():
            continue
        about = files.read_json(folder / "run.json")
        process = about["process"]
        states = [e["status"] for e in _events(folder) if "status" in e]
        if states[-1:] == ["RUNNING"] and process["host"] == socket.gethostname() and not _alive(process["pid"], process["started"]):
            with open(folder / "events.jsonl", "r+b") as f:
                whole = f.read()
                f.seek(whole.rfind(b"\n") + 1)
                f.truncate()
                f.write(json.dumps({"t": now_ms(), "status": "KILLED", "tags": {}}).encode() + b"\n")
            closed.append(about["name"])
    return closed
