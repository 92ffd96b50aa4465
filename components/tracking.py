"""Training runs in MLflow, through a spool: tracking never stops training and no point is lost.

A run is a folder in .lmworks/spool/ with `run.json` (what it is) and `events.jsonl` (points, tags,
states, each with its own time). A thread of the training process, or any later command, sends what
is new to the MLflow server. Sending twice is harmless: MLflow's key is run, metric, timestamp, step and value.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import socket
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components import files
from components.config import Config
from components.errors import UserError
from components.layout import Layout
from components.mlflow_rest import REQUEST_TIMEOUT_S, Gone, Refused, Unreachable, call, server_url

SEND_INTERVAL_S = 2.0
METRICS_A_BATCH = 900  # MLflow takes 1,000 metrics in one log-batch


def now_ms() -> int:
    return int(time.time() * 1000)


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
        pause_s = SEND_INTERVAL_S
        while True:
            ended = self._ended.wait(pause_s)
            try:
                if url := server_url(self.layout):  # asked each time: servers come and go during a long training
                    send(self.folder, url)
                pause_s = SEND_INTERVAL_S
            except NOT_NOW:
                pause_s = min(2 * pause_s, 30)
            if ended:
                return


def _about(folder: Path) -> dict[str, Any] | None:
    """run.json of a spooled run; None if there is none that can be read."""
    try:
        return files.read_json(folder / "run.json")
    except (OSError, UserError):
        return None


def open_run(config: Config, layout: Layout, *, stage: str, name: str, params: dict[str, Any], tags: dict[str, str]) -> Run:
    """The run of this stage and KEY: the one that a killed life left, or a new one."""
    from components.operations import liveness

    assert layout.work is not None
    key = layout.work.name
    folder = layout.spool / f"{stage}-{key}-{config.name}"
    events, about = list(_events(folder)), _about(folder)
    if folder.exists() and (about is None or (events and events[-1].get("status") == "FINISHED")):
        # a forced run of the same KEY is another run; one whose run.json was damaged cannot go on
        folder.rename(folder.with_name(f"{folder.name}-{uuid.uuid4().hex[:8]}"))
        events, about = [], None
    if about is None:
        about = {"uuid": uuid.uuid4().hex, "experiment": config.name, "name": name, "started_ms": now_ms(),
                 "params": {k: str(v) for k, v in params.items()},
                 "tags": {**tags, "lmworks.stage": stage, "lmworks.key": key, "lmworks.name": config.name, "lmworks.preset": config.preset}}
    elif (folder / "events.jsonl").exists():  # an earlier life: what a kill cut short goes
        whole = (folder / "events.jsonl").read_bytes()
        os.truncate(folder / "events.jsonl", whole.rfind(b"\n") + 1)
    files.write_json(folder / "run.json", {**about, "process": {**liveness.entry(os.getpid()), "host": socket.gethostname()}})
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
        run_id = found["runs"][0]["info"]["run_id"]
    else:
        tags = {**about["tags"], "lmworks.run_uuid": about["uuid"], "mlflow.runName": about["name"], "mlflow.source.name": "lmworks", "mlflow.user": _user()}
        made = call(url, "POST", "runs/create", {"experiment_id": experiment, "start_time": about["started_ms"], "run_name": about["name"],
                                                 "tags": [{"key": k, "value": v} for k, v in tags.items()]})
        run_id = made["run"]["info"]["run_id"]
    # a found run too: its maker may have died before this call, and the same values again are no error
    call(url, "POST", "runs/log-batch", {"run_id": run_id, "params": [{"key": k, "value": v[:6000]} for k, v in about["params"].items()]})
    return run_id


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _sent(folder: Path) -> dict[str, Any]:
    """{"offset": bytes of events.jsonl that the server has, "run_id", "refused": points}. Sending again is harmless, so a damaged
    file counts as none."""
    try:
        sent = files.read_json(folder / "sent.json")
        return {"offset": int(sent["offset"]), "run_id": sent["run_id"], "refused": int(sent["refused"])}
    except (OSError, UserError, KeyError, TypeError, ValueError):
        return {"offset": 0, "run_id": None, "refused": 0}


def _batches(path: Path, offset: int) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Whole lines from `offset` on, as events of at most METRICS_A_BATCH points together, each with the offset behind it."""
    events: list[dict[str, Any]] = []
    points = 0
    if not path.exists():
        return
    with open(path, "rb") as f:
        f.seek(offset)
        for line in f:
            if not line.endswith(b"\n"):
                break  # being written, or cut short by a kill
            event: dict[str, Any] = {}
            with contextlib.suppress(ValueError):  # a damaged line is a lost point, no more
                event = json.loads(line)
            if points + len(event.get("metrics", {})) > METRICS_A_BATCH:
                yield events, offset
                events, points = [], 0
            offset += len(line)
            points += len(event.get("metrics", {}))
            events.append(event)
    if events:
        yield events, offset


def _number(value: float) -> float | str:
    """JSON has no NaN; MLflow takes it, and infinity, as text."""
    return value if math.isfinite(value) else str(value).replace("nan", "NaN").replace("inf", "Infinity")


def _log_metrics(url: str, run_id: str, metrics: list[dict[str, Any]]) -> int:
    """Points to the server. Returns how many it refuses for good: one bad point must not hold up the others."""
    try:
        if metrics and call(url, "POST", "runs/log-batch", {"run_id": run_id, "metrics": metrics}) is None:
            raise Gone(f"run {run_id}")
        return 0
    except Refused:
        if len(metrics) == 1:
            return 1
        middle = len(metrics) // 2
        return _log_metrics(url, run_id, metrics[:middle]) + _log_metrics(url, run_id, metrics[middle:])


def _send_batch(url: str, run_id: str, events: list[dict[str, Any]], refused: int) -> int:
    """Points, then the last state with its tags. Returns how many points were refused, `refused` earlier ones included."""
    metrics = [{"key": k, "value": _number(v), "timestamp": e["t"], "step": e["step"]} for e in events for k, v in e.get("metrics", {}).items()]
    try:
        refused += _log_metrics(url, run_id, metrics)
        last = next((event for event in reversed(events) if "status" in event), {})
        for key, value in {**last.get("tags", {}), **({"lmworks.refused_points": str(refused)} if refused else {})}.items():
            call(url, "POST", "runs/set-tag", {"run_id": run_id, "key": key, "value": value})
        if last:
            ended = {} if last["status"] == "RUNNING" else {"end_time": last["t"]}
            call(url, "POST", "runs/update", {"run_id": run_id, "status": last["status"], **ended})
    except Refused:
        found = call(url, "GET", f"runs/get?run_id={run_id}")
        if not found or found["run"]["info"].get("lifecycle_stage") != "deleted":
            raise  # else a person deleted the run in MLflow's page, and nobody wants its points
    return refused


def _send_new(folder: Path, url: str) -> str | None:
    """Everything that the server does not have yet; returns the last state sent. Raises Unreachable."""
    about, sent, status = files.read_json(folder / "run.json"), _sent(folder), None
    for events, offset in _batches(folder / "events.jsonl", sent["offset"]):
        run_id = sent["run_id"] or _ensure_run(url, about)
        sent = {"offset": offset, "run_id": run_id, "refused": _send_batch(url, run_id, events, sent["refused"])}
        files.write_json(folder / "sent.json", sent)
        status = next((event["status"] for event in reversed(events) if "status" in event), None)
    return status


def send(folder: Path, url: str) -> None:
    """Send what is new of one spooled run; remove the folder when a FINISHED run is sent whole.

    Raises Unreachable (nothing is lost: the next call goes on), Busy when another process sends it.
    """
    with files.lock(folder / ".lock", what="sending this run"):
        try:
            try:
                status = _send_new(folder, url)
            except Gone:
                (folder / "sent.json").unlink()  # from the beginning, in a run of this server
                status = _send_new(folder, url)
        except (KeyError, TypeError) as error:
            raise Unreachable(f"{url} answers, but not as MLflow does ({type(error).__name__}: {error})") from error
    if status == "FINISHED":
        shutil.rmtree(folder, ignore_errors=True)


NOT_NOW = (Unreachable, UserError, OSError)  # what keeps a spool from being sent for the moment


def _folders(layout: Layout) -> list[Path]:
    return sorted(path.parent for path in layout.spool.glob("*/run.json"))


def unsent(layout: Layout) -> int:
    """How many spooled runs hold points that no server has yet."""
    paths = [folder / "events.jsonl" for folder in _folders(layout)]
    return sum(1 for path in paths if path.exists() and path.stat().st_size > _sent(path.parent)["offset"])


def drain(layout: Layout) -> int:
    """Send every spooled run to the server. Returns how many still hold unsent points."""
    url = server_url(layout)
    for folder in _folders(layout) if url else []:
        with contextlib.suppress(*NOT_NOW):
            send(folder, url)
    return unsent(layout)


def close_dead(layout: Layout) -> list[str]:
    """Mark spooled runs whose process is gone as KILLED (a resume sets them RUNNING again). Returns their names."""
    from components.operations import liveness

    closed = []
    for folder in _folders(layout):
        with contextlib.suppress(UserError):  # a damaged run.json: nobody can say whose points these are
            about = files.read_json(folder / "run.json")
            states = [e["status"] for e in _events(folder) if "status" in e]
            if states[-1:] == ["RUNNING"] and about["process"]["host"] == socket.gethostname() and liveness.process_of(about["process"]) is None:
                with open(folder / "events.jsonl", "r+b") as f:
                    whole = f.read()
                    f.seek(whole.rfind(b"\n") + 1)
                    f.truncate()
                    f.write(json.dumps({"t": now_ms(), "status": "KILLED", "tags": {}}).encode() + b"\n")
                closed.append(about["name"])
    return closed
