"""Training runs in MLflow, through a spool: tracking never stops training and no point is lost.

A training appends what it logs to a folder of .lmworks/spool/ (components/spool.py says how it looks). A thread of its process,
or any later command, sends what is new to the MLflow server.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from components import failpoints, markdown, masking, provenance, spool
from components.config import Config
from components.errors import UserError
from components.layout import Layout
from components.mlflow_rest import REQUEST_TIMEOUT_S, server_url
from components.reporting import say
from components.system_metrics import Machine

SEND_INTERVAL_S = 2.0
MAX_SEND_INTERVAL_S = 30.0  # while no server answers
SAMPLE_INTERVAL_S = 10.0
BEST = ("val/loss", "val/bits_per_byte")  # lower is better; each has its minimum so far beside it
ERROR = "lmworks.error"
MAX_ERROR_CHARS = 500
SO_FAR = {
    "RUNNING": "**In training.** The verdict and the scores come with the release.",
    "FINISHED": "**Trained.** The release judges the weights and writes its verdict here, or to an earlier run that trained the very same ones.",
    "KILLED": "**Stopped before its end.** The next run of the chain goes on from the last checkpoint, in this same row.",
}


def now_ms() -> int:
    return int(time.time() * 1000)


def run_name(stage: str, config: Config, parameters: int, languages: list[str]) -> str:
    """A name that a person can say: `pretrain tiny 13.9M zh+en seed 1`; the release adds the version (` v3`)."""
    return f"{stage} {config.name} {provenance.size_in_words(parameters)} {'+'.join(sorted(languages, reverse=True))} seed {config.seed}"


def description(about: dict[str, Any], status: str, error: str = "") -> str:
    """What the page says of the run until the release judges it (Markdown)."""
    tags = about["tags"]
    state = f"**Failed.** {markdown.escape(error)}" if status == "FAILED" else SO_FAR[status]
    facts = {"Preset": tags.get("lmworks.preset"), "corpus": tags.get("lmworks.corpus_digest"), "branch": tags.get("lmworks.git_branch"),
             "commit": tags.get("mlflow.source.git.commit", "")[:10], "on": tags.get("lmworks.processor")}
    lines = [state, ", ".join(f"{what} {markdown.code(value)}" for what, value in facts.items() if value)]
    if address := tags.get(provenance.PREFECT_RUN):
        lines.append(markdown.link("The run in Prefect", address))
    return "\n\n".join(lines)


class Run:
    """One model's training run; `log` appends to the spool, a thread sends and looks at the machine now and then."""

    def __init__(self, folder: Path, layout: Layout, about: dict[str, Any], earlier: list[dict[str, Any]]):
        """`earlier`: the events that killed lives of this run have spooled."""
        self.folder, self.layout, self.about = folder, layout, about
        self.tags: dict[str, str] = {}  # what the run gets when it ends well
        known = [*earlier, spool.sent(folder)]  # the server may have points that a cut events.jsonl lost
        self.last_step, self._samples = spool.last("step", known), spool.last("sample", known) + 1
        self._last_ms = max((event["t"] for event in earlier if "t" in event), default=0)
        self._best: dict[str, float] = {}
        for event in earlier:
            self._note_best(event.get("metrics", {}))
        # unbuffered: a buffer of Python's takes 8 kB while the disk is full, and drops what comes after them
        self._file, self._pending = open(folder / "events.jsonl", "ab", buffering=0), bytearray()  # noqa: SIM115 - closed in finish
        self._lock, self._sampling = threading.Lock(), threading.Lock()
        self._machine, self._closing = Machine(), False
        self._trouble = ""  # why the server has not all yet, by its last answer
        self._ended = threading.Event()
        self._sender = threading.Thread(target=self._send_loop, daemon=True, name="tracking")
        self._sender.start()

    def _append(self, event: dict[str, Any]) -> None:
        with self._lock:
            self._last_ms = max(self._last_ms, now_ms())  # a clock that is set back must not turn the curve round
            self._pending += spool.line_of({"t": self._last_ms, **event})
            self._write()

    def _write(self) -> None:
        """What is pending onto the disk. One that is full or away keeps nobody from training: the next write tries again."""
        with contextlib.suppress(OSError):
            failpoints.hit("spool.write")
            while self._pending:
                del self._pending[: self._file.write(self._pending)]

    def _note_best(self, metrics: dict[str, float]) -> dict[str, float]:
        """{`KEY_best`: the lowest value of KEY up to now} for what is in `metrics`."""
        noted = {}
        for key in BEST:
            value = metrics.get(key, math.nan)
            if not math.isnan(value):
                noted[f"{key}_best"] = self._best[key] = min(value, self._best.get(key, math.inf))
        return noted

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Points of one step, and the best values beside the last. A step that is spooled or sent already, by an earlier life, is skipped."""
        values = {key: float(value) for key, value in metrics.items()}
        best = self._note_best(values)
        if step > self.last_step:
            self.last_step = step
            self._append({"step": step, "metrics": values | best})

    def flush(self) -> None:
        """What was logged is on disk when this returns."""
        with self._lock, contextlib.suppress(OSError):
            self._write()
            os.fsync(self._file.fileno())

    def finish(self, status: str, error: str = "") -> None:
        """FINISHED (with `tags`), FAILED (with its `error`) or KILLED; sends what it can within a few seconds, leaves the rest spooled."""
        with self._sampling:
            self._sample()
            self._closing = True  # the state is the last event
        tags = {spool.NOTE: description(self.about, status, error)}
        if error:
            tags[ERROR] = error
        self._append({"status": status, "tags": tags | (self.tags if status == "FINISHED" else {})})
        self.flush()
        self._ended.set()
        self._sender.join(timeout=2 * REQUEST_TIMEOUT_S)
        with contextlib.suppress(OSError):
            self._file.close()
        trouble = "no answer yet" if self._sender.is_alive() else self._trouble
        if trouble:
            say(f"{self.about['name']}: MLflow does not have all of this run yet ({trouble}). Nothing is lost: it waits in "
                f"{self.layout.spool.relative_to(self.layout.root)}/{self.folder.name}, the next `lmworks up` or `lmworks run` sends it")

    def _sample(self) -> None:
        """What the machine does now, on an axis of its own: samples count on after a resume. The caller holds `_sampling`."""
        if self._closing:
            return
        try:
            metrics = self._machine.read()
        except Exception:  # noqa: BLE001 - a driver that fails is no reason to stop sending points
            return
        if metrics:
            self._append({"sample": self._samples, "metrics": metrics})
            self._samples += 1

    def _in_words(self, error: Exception) -> str:
        """What keeps the points from being sent; a database that another program holds is named, a server that waits for it does not say so."""
        from components.operations import contention

        return contention.held(self.layout.mlflow_database) or " ".join(str(error).split())[:MAX_ERROR_CHARS] or type(error).__name__

    def _send_loop(self) -> None:
        pause_s = SEND_INTERVAL_S
        send_at_s = sample_at_s = time.monotonic() + pause_s
        while True:
            ended = self._ended.wait(max(0.0, min(send_at_s, sample_at_s) - time.monotonic()))
            if time.monotonic() >= sample_at_s:
                with self._sampling:
                    self._sample()
                sample_at_s = time.monotonic() + SAMPLE_INTERVAL_S
            if ended or time.monotonic() >= send_at_s:
                try:
                    if url := server_url(self.layout):  # asked each time: servers come and go during a long training
                        spool.send(self.folder, url, keep=_may_go_on(self.layout))
                    pause_s, self._trouble = SEND_INTERVAL_S, ""
                except Exception as error:  # noqa: BLE001 - whatever keeps points from being sent keeps nobody from training
                    pause_s = min(2 * pause_s, MAX_SEND_INTERVAL_S)
                    self._trouble = self._in_words(error)
                send_at_s = time.monotonic() + pause_s
            if ended:
                return


def _may_go_on(layout: Layout) -> bool:
    """Whether the training of this layout has a work folder: it goes when DVC has recorded its result (components/operations/recorded.py)."""
    return layout.work is not None and layout.work.exists()


def _take_up(folder: Path, goes_on: bool) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """(what it is, events) of the run that a killed life left in `folder`; (None, []) where a new one begins."""
    if not folder.exists():
        return None, []
    events, about = list(spool.events(folder)), spool.about(folder)
    if about is None or (_last_status(events) == "FINISHED" and not goes_on):
        # a forced run of the same KEY is another run, one that was killed after its end is not; one that cannot say what it is cannot go on
        folder.rename(folder.with_name(f"{folder.name}-{uuid.uuid4().hex[:8]}"))
        return None, []
    spool.cut_torn_end(folder)
    return about, events


def _last_status(events: list[dict[str, Any]]) -> str | None:
    return next((event["status"] for event in reversed(events) if "status" in event), None)


def open_run(config: Config, layout: Layout, *, stage: str, parameters: int, languages: list[str], params: dict[str, Any]) -> Run:
    """The run of this stage and KEY: the one that a killed life left, or a new one."""
    from components.operations import liveness

    assert layout.work is not None
    key = layout.work.name
    folder = layout.spool / f"{stage}-{key}-{config.name}"
    about, earlier = _take_up(folder, _may_go_on(layout))
    changes: dict[str, str | None] = {}
    if about is None:
        tags = provenance.tags(config, layout, parameters=parameters, languages=languages)
        about = {"uuid": uuid.uuid4().hex, "experiment": config.name, "name": run_name(stage, config, parameters, languages),
                 "started_ms": now_ms(), "params": {name: str(value) for name, value in params.items()},
                 "tags": tags | {"lmworks.stage": stage, "lmworks.key": key}}
    else:
        changes = {ERROR: None, **provenance.prefect_tags()}
        about["tags"] = {name: value for name, value in (about["tags"] | changes).items() if value is not None}
    changes[spool.NOTE] = about["tags"][spool.NOTE] = description(about, "RUNNING")
    spool.write_about(folder, {**about, "process": {**liveness.entry(os.getpid()), "host": socket.gethostname()}})
    run = Run(folder, layout, about, earlier)
    run._append({"status": "RUNNING", "tags": changes})
    return run


@contextlib.contextmanager
def tracked(config: Config, layout: Layout, *, stage: str, parameters: int, languages: list[str], params: dict[str, Any]) -> Iterator[Run]:
    """The run of a training: FINISHED with its `tags`, KILLED after a signal, FAILED after any error, with its one line."""
    run = open_run(config, layout, stage=stage, parameters=parameters, languages=languages, params=params)
    try:
        yield run
    except KeyboardInterrupt:
        run.finish("KILLED")
        raise
    except BaseException as error:
        words = " ".join(masking.masked(str(error)).split())
        run.finish("FAILED", (words if isinstance(error, UserError) and words else f"{type(error).__name__}: {words}")[:MAX_ERROR_CHARS])
        raise
    run.finish("FINISHED")


# --- runs of other processes ---------------------------------------------------------------------

def _work_of(folder: Path, layout: Layout) -> Path | None:
    """The work folder of a spooled run's training; None where its run.json cannot be read."""
    tags = (spool.about(folder) or {}).get("tags", {})
    return layout.work_root / tags["lmworks.stage"] / tags["lmworks.key"] if {"lmworks.stage", "lmworks.key"} <= tags.keys() else None


def unsent(layout: Layout) -> int:
    """How many spooled runs hold points that no server has yet."""
    paths = [folder / "events.jsonl" for folder in spool.folders(layout.spool)]
    return sum(1 for path in paths if path.exists() and path.stat().st_size > spool.sent(path.parent)["offset"])


def drain(layout: Layout) -> int:
    """Send every spooled run to the server. Returns how many still hold unsent points."""
    url = server_url(layout)
    for folder in spool.folders(layout.spool) if url else []:
        with contextlib.suppress(*spool.NOT_NOW):
            spool.send(folder, url, keep=_may_go_on(replace(layout, work=_work_of(folder, layout))))
    return unsent(layout)


def close_dead(layout: Layout) -> list[str]:
    """Mark spooled runs whose process is gone as KILLED (a resume sets them RUNNING again). Returns their names."""
    from components.operations import liveness

    closed = []
    for folder in spool.folders(layout.spool):
        about = spool.about(folder)
        if about is None or _last_status(list(spool.events(folder))) != "RUNNING":  # damaged: nobody can say whose points these are
            continue
        if about["process"]["host"] == socket.gethostname() and liveness.process_of(about["process"]) is None:
            spool.cut_torn_end(folder)
            with open(folder / "events.jsonl", "ab") as f:
                f.write(spool.line_of({"t": now_ms(), "status": "KILLED", "tags": {spool.NOTE: description(about, "KILLED")}}))
            closed.append(about["name"])
    return closed
