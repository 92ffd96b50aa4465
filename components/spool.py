"""A spooled training run on disk, and how it reaches the MLflow server.

A folder of .lmworks/spool/ holds `run.json` (what the run is; twice, as nothing else could say so), `events.jsonl` (points, tags, states, each with its own time) and
`sent.json` (how far the server has them). Sending twice is harmless: MLflow's key is run, metric, timestamp, step and value. Logging a step
twice is not (the second has another timestamp), so sent.json also says which was the last: an events.jsonl that was cut does not.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from components import failpoints, files
from components.errors import UserError
from components.mlflow_rest import Gone, Refused, Unreachable, call

ABOUT = ("run.json", "run.copy.json")
METRICS_A_BATCH = 900  # MLflow takes 1,000 metrics in one log-batch
AXES = ("step", "sample")  # a point lies on one of them: of the training, of the machine
LAST_EVENT_BYTES = 2**16  # more than any one event has
NOT_NOW = (Unreachable, UserError, OSError)  # what keeps a spool from being sent for the moment
NOTE = "mlflow.note.content"  # the description that the page shows


def events(folder: Path) -> Iterator[dict[str, Any]]:
    """Every whole event. A damaged line (its checksum says so) is a lost point, no more."""
    path = folder / "events.jsonl"
    if path.exists():
        for line in path.read_bytes().split(b"\n")[:-1]:  # after the last newline: cut short by a kill
            if (event := _event(line)) is not None:
                yield event


def _event(line: bytes) -> dict[str, Any] | None:
    body = files.open_line(line)
    try:
        event = None if body is None else json.loads(body)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def line_of(event: dict[str, Any]) -> bytes:
    """An event as it stands in events.jsonl: a flipped digit must not become a point of the curve."""
    return files.seal_line(json.dumps(event).encode())


def damaged_lines(folder: Path) -> int:
    """How many whole lines of events.jsonl are not what was written."""
    path = folder / "events.jsonl"
    return sum(_event(line) is None for line in path.read_bytes().split(b"\n")[:-1]) if path.exists() else 0


def cut_torn_end(folder: Path) -> None:
    """Take away what a kill left of a last line, before anything is appended. For the one writer of the run alone."""
    path = folder / "events.jsonl"
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    note = sent(folder)
    if note["offset"] == 0 and (folder / "sent.json").exists():  # the file lost more: the old offset would skip what is appended now
        files.write_sealed(folder / "sent.json", note)


def folders(spool: Path) -> list[Path]:
    """The spooled runs below .lmworks/spool."""
    return sorted({path.parent for name in ABOUT for path in spool.glob(f"*/{name}")})


def write_about(folder: Path, run: dict[str, Any]) -> None:
    """What the run is, into both of its files."""
    for name in reversed(ABOUT):
        files.write_sealed(folder / name, run)


def about(folder: Path) -> dict[str, Any] | None:
    """What the run is, from whichever of its two files is whole; None if neither is."""
    for name in ABOUT:
        with contextlib.suppress(OSError, UserError):
            return files.read_sealed(folder / name)
    return None


def sent(folder: Path) -> dict[str, Any]:
    """{"offset": bytes of events.jsonl that the server has, "run_id", "refused": points, "step" and "sample": the last ones that it has}.

    Sending again is harmless, so a damaged file counts as none, and an events.jsonl that was cut below the offset is sent from its start.
    """
    path = folder / "events.jsonl"
    try:
        note = files.read_sealed(folder / "sent.json")
        found = {"offset": int(note["offset"]), "run_id": note["run_id"], "refused": int(note["refused"])}
        found |= {axis: int(note.get(axis, -1)) for axis in AXES}
        cut = found["offset"] > (path.stat().st_size if path.exists() else 0)
        return found | ({"offset": 0, "refused": 0} if cut else {})
    except (OSError, UserError, KeyError, TypeError, ValueError):
        return {"offset": 0, "run_id": None, "refused": 0, **dict.fromkeys(AXES, -1)}


def last(axis: str, events_: Iterable[dict[str, Any]]) -> int:
    """The highest "step" or "sample" among events; -1 where there is none."""
    return max((event[axis] for event in events_ if axis in event), default=-1)


# --- sending -------------------------------------------------------------------------------------

def send(folder: Path, url: str, *, keep: bool = False) -> None:
    """Send what is new of one spooled run; remove the folder when a FINISHED run is sent whole, unless it is to be kept.

    Raises Unreachable (nothing is lost: the next call goes on), Busy when another process sends it.
    """
    with files.lock(folder / ".lock", what="sending this run"):
        run = about(folder) or files.read_sealed(folder / ABOUT[0])  # the second says what is wrong
        try:
            try:
                _send_new(folder, url, run)
            except Gone:
                (folder / "sent.json").unlink()  # from the beginning, in a run of this server
                _send_new(folder, url, run)
        except (KeyError, TypeError, AttributeError) as error:
            raise Unreachable(f"{url} answers, but not as MLflow does ({type(error).__name__}: {error})") from error
        if not keep and _is_over(folder):
            _forget_twins(url, run, sent(folder)["run_id"])
            shutil.rmtree(folder, ignore_errors=True)


def _is_over(folder: Path) -> bool:
    """Whether the run FINISHED and the server has all of it."""
    path = folder / "events.jsonl"
    if not path.exists() or path.stat().st_size > sent(folder)["offset"]:
        return False
    with open(path, "rb") as f:
        f.seek(-min(path.stat().st_size, LAST_EVENT_BYTES), os.SEEK_END)
        lines = f.read().splitlines()
    return bool(lines) and (_event(lines[-1]) or {}).get("status") == "FINISHED"


def _send_new(folder: Path, url: str, run: dict[str, Any]) -> None:
    """Everything that the server does not have yet. Raises Unreachable."""
    note = sent(folder)
    for batch, offset in _batches(folder / "events.jsonl", note["offset"]):
        run_id = note["run_id"] or _ensure_run(url, run)
        note = {"offset": offset, "run_id": run_id, "refused": note["refused"] + _send_batch(url, run_id, batch, note["refused"]),
                **{axis: max(note[axis], last(axis, batch)) for axis in AXES}}
        files.write_sealed(folder / "sent.json", note)


def _batches(path: Path, offset: int) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Whole lines from `offset` on, as events of at most METRICS_A_BATCH points together, each with the offset behind it."""
    batch: list[dict[str, Any]] = []
    points = 0
    if not path.exists() or path.stat().st_size <= offset:
        return
    with open(path, "rb") as f:
        os.fsync(f.fileno())  # first on this disk: after a power cut the server must know no step that a resumed run would log again
        f.seek(offset)
        for line in f:
            if not line.endswith(b"\n"):
                break  # being written, or cut short by a kill
            event = _event(line) or {}
            if points + len(event.get("metrics", {})) > METRICS_A_BATCH:
                yield batch, offset
                batch, points = [], 0
            offset += len(line)
            points += len(event.get("metrics", {}))
            batch.append(event)
    if batch:
        yield batch, offset


def _send_batch(url: str, run_id: str, batch: list[dict[str, Any]], refused_before: int) -> int:
    """Points, then tags, then the last state. Returns how many points the server refuses for good."""
    failpoints.hit("spool.send")
    metrics = [{"key": key, "value": _number(value), "timestamp": event["t"], "step": event.get("step", event.get("sample"))}
               for event in batch for key, value in event.get("metrics", {}).items()]
    changes: dict[str, str | None] = {}  # of several lives in one batch, the last word on each tag counts
    for event in batch:
        changes |= event.get("tags", {})
    last = next((event for event in reversed(batch) if "status" in event), None)
    try:
        refused = _log_metrics(url, run_id, metrics)
        if refused:
            changes["lmworks.refused_points"] = str(refused_before + refused)
        _change_tags(url, run_id, changes)
        if last:
            ended = {} if last["status"] == "RUNNING" else {"end_time": last["t"]}
            call(url, "POST", "runs/update", {"run_id": run_id, "status": last["status"], **ended})
    except Refused:
        if not _is_deleted(url, run_id):
            raise
        return 0  # a person deleted the run in MLflow's page: nobody wants its points, and training goes on
    return refused


def _log_metrics(url: str, run_id: str, metrics: list[dict[str, Any]]) -> int:
    """Points to the server. Returns how many it refuses for good: one bad point must not hold up the others.

    Raises Gone for a run that the server does not know, Refused for one that is deleted.
    """
    try:
        if metrics and call(url, "POST", "runs/log-batch", {"run_id": run_id, "metrics": metrics}) is None:
            raise Gone(f"run {run_id}")
        return 0
    except Refused:
        if _is_deleted(url, run_id):
            raise
        if len(metrics) == 1:
            return 1
        middle = len(metrics) // 2
        return _log_metrics(url, run_id, metrics[:middle]) + _log_metrics(url, run_id, metrics[middle:])


def _change_tags(url: str, run_id: str, changes: dict[str, str | None]) -> None:
    kept = [{"key": key, "value": value} for key, value in changes.items() if value is not None]
    if kept:
        call(url, "POST", "runs/log-batch", {"run_id": run_id, "tags": kept})
    for key in (key for key, value in changes.items() if value is None):
        call(url, "POST", "runs/delete-tag", {"run_id": run_id, "key": key})  # a 404 says that it had none


def _is_deleted(url: str, run_id: str) -> bool:
    found = call(url, "GET", f"runs/get?run_id={run_id}")
    return bool(found) and found["run"]["info"].get("lifecycle_stage") == "deleted"


def _number(value: float) -> float | str:
    """JSON has no NaN; MLflow takes it, and infinity, as text."""
    return value if math.isfinite(value) else str(value).replace("nan", "NaN").replace("inf", "Infinity")


def _experiment_id(url: str, name: str) -> str:
    """The experiment NAME, made if it is new. One that a person deleted is brought back: MLflow lets no other have its name."""
    by_name = f"experiments/get-by-name?experiment_name={urllib.parse.quote(name)}"
    found = call(url, "GET", by_name)
    if not found:
        # of this kind, or the page takes it for one of agents and hides the runs
        kind = {"key": "mlflow.experimentKind", "value": "custom_model_development"}
        try:
            return call(url, "POST", "experiments/create", {"name": name, "tags": [kind]})["experiment_id"]
        except Refused:
            found = call(url, "GET", by_name)  # another process made it in this very moment
            if not found:
                raise
    experiment = found["experiment"]
    if experiment.get("lifecycle_stage") == "deleted":
        call(url, "POST", "experiments/restore", {"experiment_id": experiment["experiment_id"]})
    return experiment["experiment_id"]


def _ensure_run(url: str, run: dict[str, Any]) -> str:
    """The MLflow run of this spool: found by its uuid (an earlier life may have made it), or made."""
    experiment = _experiment_id(url, run["experiment"])
    found = _of_uuid(url, experiment, run["uuid"])
    if found:
        run_id = found[0]
    else:
        tags = {**run["tags"], "lmworks.run_uuid": run["uuid"], "mlflow.runName": run["name"], "mlflow.source.name": "lmworks", "mlflow.user": _user()}
        made = call(url, "POST", "runs/create", {"experiment_id": experiment, "start_time": run["started_ms"], "run_name": run["name"],
                                                 "tags": [{"key": key, "value": value} for key, value in tags.items()]})
        run_id = made["run"]["info"]["run_id"]
    # a found run too: its maker may have died before this call, and the same values again are no error
    call(url, "POST", "runs/log-batch", {"run_id": run_id, "params": [{"key": key, "value": value[:6000]} for key, value in run["params"].items()]})
    return run_id


def _of_uuid(url: str, experiment: str, uuid: str) -> list[str]:
    """The runs of one training. More than one: a server that was slow made the first after it was given up on."""
    found = call(url, "POST", "runs/search", {"experiment_ids": [experiment], "filter": f"tags.`lmworks.run_uuid` = '{uuid}'", "max_results": 20})
    return [one["info"]["run_id"] for one in (found or {}).get("runs", [])]


def _forget_twins(url: str, run: dict[str, Any], run_id: str) -> None:
    """The run has all points; one that was made beside it holds none and would be RUNNING for ever."""
    for twin in _of_uuid(url, _experiment_id(url, run["experiment"]), run["uuid"]):
        if twin != run_id:
            call(url, "POST", "runs/delete", {"run_id": twin})


def _user() -> str:
    import getpass

    with contextlib.suppress(KeyError, OSError):
        return getpass.getuser()
    return "unknown"
