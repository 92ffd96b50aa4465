"""Both servers away for a minute in a real training: what that costs a step, and whether each point arrives once.

The servers stand behind proxies that refuse, hang, answer 500 or cut each answer, a minute each, several times in a training. Each
minute without servers is held against the time before it and after it in the same process: two processes that do the same differ by
several percent. A step's time is the mean over a window: from the last point before it to the first one after it, by the
training's own clock, so that one long stall counts as much as many short ones. Beside it stands how busy the training was (processor
seconds a second): what an outage costs shows there, what other guests of the same processor cost does not.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.reliability import curves
from benchmarks.reliability.proxy import CUT, ERROR, HANG, PASS, REFUSE, Proxy
from benchmarks.workspace import clean_env, clone, interval, lmworks
from components import config as settings
from components import files
from components.layout import Layout
from components.operations import processes, rest, services

GOAL = "tracking and orchestration server away for 60 s in a training: a step takes less than 5 % longer, 0 points lost"
COUNT = 12  # minutes without servers
A_TRAINING = 6  # of them
SETTLE_S = 5  # from the first point to the first window
CONTROL_S = 25  # with the servers there, before and after
AWAY_S = 60
CATCH_UP_S = 10  # until what waited is sent: no part of the control, told apart
EDGES_S = (-CONTROL_S, 0, AWAY_S, AWAY_S + CATCH_UP_S, AWAY_S + CATCH_UP_S + CONTROL_S)  # of the windows, from the moment when the servers went
WINDOWS = ("before", "away", "catching_up", "after")
KINDS = (REFUSE, HANG, ERROR, CUT)
LIMIT = 0.05


@dataclass(frozen=True)
class Bench:
    """A checkout whose data is ready, and the proxies before its servers."""

    root: Path
    home: Path
    mlflow: Proxy
    prefect: Proxy

    @property
    def layout(self) -> Layout:
        return Layout(root=self.root)

    @property
    def env(self) -> dict[str, str]:
        return clean_env(self.root, self.home) | {"MLFLOW_TRACKING_URI": self.mlflow.url, "PREFECT_API_URL": f"{self.prefect.url}/api"}

    def misbehave(self, kind: str) -> None:
        for proxy in (self.mlflow, self.prefect):
            proxy.misbehave(kind)

    def command(self, *arguments: str) -> list[str]:
        return [str(self.root / ".venv" / "bin" / "python"), "-m", "commands", *arguments]

    def events(self) -> list[Path]:
        return list(self.layout.spool.glob("pretrain-*/events.jsonl"))

    def lmworks(self, *arguments: str) -> None:
        """Raises RuntimeError with its last words."""
        lmworks(self.root, *arguments, env=self.env)


@dataclass
class Outage:
    """One minute without servers; `busy_s`: processor seconds of the training at each edge, from its begin."""

    kind: str
    began_ms: int
    busy_s: list[float]

    def told(self, points: list[tuple[int, int]]) -> dict[str, Any]:
        lengths = [later - earlier for earlier, later in itertools.pairwise(EDGES_S)]
        busy = {name: (later - earlier) / seconds for name, (earlier, later), seconds in zip(WINDOWS, itertools.pairwise(self.busy_s), lengths, strict=False)}
        return {"kind": self.kind, "busy": busy, **held_against(points, self.began_ms)}


def train(bench: Bench, number: int, steps: int, kinds: list[str]) -> dict[str, Any]:
    """One training of its own KEY (`number` changes its rate by a hair), whose servers are away once in each of these ways."""
    bench.lmworks("use", "smoke", "--set", f"training.steps={steps}", "--set", f"training.learning_rate={0.015 + number * 1e-6}",
                  "--set", f"training.validation_interval={steps}", "--set", f"training.checkpoint_interval={steps}")
    earlier = set(bench.events())  # of trainings before: their spools stay until something drains them
    running = subprocess.Popen(bench.command("run", "--to", "pretrain", "--json"), cwd=bench.root, env=bench.env, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        outages = _outages(bench, running, kinds, earlier)
        _, err = running.communicate(timeout=1800)
    finally:
        bench.misbehave(PASS)
        if running.poll() is None:
            running.terminate()
            running.communicate()
    return {"exit_code": running.returncode, "last_words": err.strip().replace(str(bench.root), ".")[-300:] if running.returncode else "",
            **_points(bench, outages)}


def _outages(bench: Bench, running: subprocess.Popen, kinds: list[str], earlier: set[Path]) -> list[Outage]:
    """Wait for the first point, then take the servers away once for each kind. What a training that ended before did not have is not in the answer."""
    while running.poll() is None and not any(b'"train/loss"' in path.read_bytes() for path in set(bench.events()) - earlier):
        time.sleep(0.2)
    _until(running, time.monotonic() + SETTLE_S)
    told: list[Outage] = []
    for kind in kinds:
        began = time.monotonic() + CONTROL_S
        outage = Outage(kind, int(time.time() * 1000) + 1000 * CONTROL_S, [])
        for edge_s, mode in zip(EDGES_S, (PASS, kind, PASS, PASS, PASS), strict=True):
            _until(running, began + edge_s)
            bench.misbehave(mode)
            if running.poll() is not None:
                return told
            outage.busy_s.append(_busy_s(running))
        told.append(outage)
    return told


def _until(running: subprocess.Popen, deadline: float) -> None:
    while running.poll() is None and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, 0.2))


def _busy_s(running: subprocess.Popen) -> float:
    """Processor seconds of the training below `running`; 0 where there is none (any more)."""
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(running.pid).children(recursive=True):
            if process.cmdline()[-1:] == ["pretrain"] and "components.chain" in process.cmdline():
                times = process.cpu_times()
                return times.user + times.system
    return 0.0


def _points(bench: Bench, outages: list[Outage]) -> dict[str, Any]:
    """The newest run as MLflow has it, held against its published curve."""
    url = bench.mlflow.url
    experiment = curves.call(url, "GET", "experiments/get-by-name?experiment_name=smoke")["experiment"]["experiment_id"]
    run = curves.call(url, "POST", "runs/search", {"experiment_ids": [experiment], "order_by": ["attributes.start_time DESC"], "max_results": 1})["runs"][0]
    losses = curves.history(url, run["info"]["run_id"], "train/loss")
    published = bench.layout.pretrained / "curve.csv"
    rows = csv.DictReader(published.read_text().splitlines()) if published.exists() else []
    curve = {int(row["step"]): float(row["train/loss"]) for row in rows}
    times = Counter(int(point["step"]) for point in losses)
    return {"status": run["info"]["status"], "points": len(curve), "lost": len(curve.keys() - times.keys()), "doubled": sum(n - 1 for n in times.values()),
            "wrong": sum(curve.get(int(point["step"])) != float(point["value"]) for point in losses),
            "outages": [outage.told([(int(point["step"]), int(point["timestamp"])) for point in losses]) for outage in outages]}


def held_against(points: list[tuple[int, int]], began_ms: int) -> dict[str, Any]:
    """What the outage that began at `began_ms` did to the time of a step: "slower" and "catching_up_slower" as shares of the control's mean, None
    where the points do not span all the windows."""
    edges = [began_ms + 1000 * second for second in EDGES_S]
    windows = dict(zip(WINDOWS, (of_window(points, *pair) for pair in itertools.pairwise(edges)), strict=True))
    steps_s = {name: window["step_s"] for name, window in windows.items()}
    told = {"step_s": steps_s, "longest_without_a_point_s": {name: window["longest_without_a_point_s"] for name, window in windows.items()}}
    if None in steps_s.values():
        return told | {"slower": None, "catching_up_slower": None}
    control = (steps_s["before"] + steps_s["after"]) / 2
    return told | {"slower": steps_s["away"] / control - 1, "catching_up_slower": steps_s["catching_up"] / control - 1}


def of_window(points: list[tuple[int, int]], began_ms: int, ended_ms: int) -> dict[str, Any]:
    """{"step_s": the mean time of a step, "longest_without_a_point_s"} of points (step, ms), over a window; None both where they do not span it."""
    points = sorted(points)
    first = max((number for number, (_, at_ms) in enumerate(points) if at_ms <= began_ms), default=None)
    last = min((number for number, (_, at_ms) in enumerate(points) if at_ms >= ended_ms), default=None)
    if first is None or last is None:
        return {"step_s": None, "longest_without_a_point_s": None}
    inside = points[first:last + 1]
    return {"step_s": (inside[-1][1] - inside[0][1]) / 1000 / (inside[-1][0] - inside[0][0]),
            "longest_without_a_point_s": max(later - earlier for (_, earlier), (_, later) in itertools.pairwise(inside)) / 1000}


def left_open(bench: Bench) -> int:
    """Flow and task runs that Prefect still takes for running, a while after the last one ended."""
    api, deadline = rest.Prefect(f"{bench.prefect.url}/api", timeout_s=60), time.monotonic() + 30
    still = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
    while True:
        found = api.send("/flow_runs/count", {"flow_runs": still}) + api.send("/task_runs/count", {"task_runs": still})
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(1)


def measure(count: int, seed: int) -> dict[str, Any]:
    """`count` minutes without servers; the kinds of outage by turns, A_TRAINING of them in a training."""
    repeats: list[dict[str, Any]] = []
    kinds = list(itertools.islice(itertools.cycle(random.Random(seed).sample(KINDS, len(KINDS))), count))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        root, home = clone(Path(scratch) / "checkout"), Path(scratch) / "home"
        home.mkdir()
        layout = Layout(root=root)
        for variable in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
            os.environ.pop(variable, None)
        try:
            services.ensure(layout)
            urls = [services.address(layout, service) or "" for service in (processes.MLFLOW, processes.PREFECT)]
            with Proxy(urls[0]) as mlflow, Proxy(urls[1]) as prefect:
                bench = Bench(root, home, mlflow, prefect)
                steps = _steps(bench, min(count, A_TRAINING))
                for number, first in enumerate(range(0, count, A_TRAINING), 1):
                    row = train(bench, number, steps, kinds[first:first + A_TRAINING])
                    repeats.append(row)
                    seen = ", ".join(f"{one['kind']} {'not comparable' if one['slower'] is None else format(one['slower'], '+.1%')}" for one in row["outages"])
                    print(f"outages, training {number}: a step {seen}; {row['lost']} points lost, {row['doubled']} doubled", flush=True)
                open_runs = left_open(bench)
        finally:
            services.down(layout, force=True)
    return _told(repeats, open_runs, count)


def _steps(bench: Bench, outages: int) -> int:
    """As many as keep a training at work from its first point to well after the last outage; the data is made ready on the way."""
    bench.lmworks("use", "smoke")
    bench.lmworks("run", "--to", "pretrain")
    training = settings.load(bench.layout.params).training
    report = files.read_json(bench.layout.pretrained / "summary.json")
    assert report["steps"] == training.steps
    experiment = curves.call(bench.mlflow.url, "GET", "experiments/get-by-name?experiment_name=smoke")["experiment"]["experiment_id"]
    run = curves.call(bench.mlflow.url, "POST", "runs/search", {"experiment_ids": [experiment], "max_results": 1})["runs"][0]
    speed = statistics.median(float(point["value"]) for point in curves.history(bench.mlflow.url, run["info"]["run_id"], "train/tokens_per_s"))
    wanted = (SETTLE_S + outages * (EDGES_S[-1] - EDGES_S[0])) * speed / (training.rows * training.row_tokens * training.accumulation)
    return 10 * round(wanted * 1.3 / 10)  # a machine that gets quicker meanwhile is no reason to end early


def _told(repeats: list[dict[str, Any]], open_runs: int, asked: int) -> dict[str, Any]:
    whole = [one for run in repeats for one in run["outages"] if one["slower"] is not None]
    counts: dict[str, Any] = {
        "outages": len(whole), "away_s": AWAY_S, "trainings": len(repeats), "points": sum(run["points"] for run in repeats), "runs_left_open": open_runs,
        "failed": sum(1 for run in repeats if run["exit_code"] or run["status"] != "FINISHED"), "not_comparable": asked - len(whole)}
    counts |= {key: sum(run[key] for run in repeats) for key in ("lost", "doubled", "wrong")}
    for turn, windows in (("away", ("away", "catching_up")), ("there", ("before", "after"))):
        counts[f"longest_without_a_point_{turn}_s"] = max((one["longest_without_a_point_s"][name] for one in whole for name in windows), default=0)
    reached = interval([one["slower"] for one in whole]) if whole else None
    if reached:
        counts |= {"step_slower_percent": round(100 * reached["mean"], 2), "low_percent": round(100 * reached["low"], 2), "high_percent": round(100 * reached["high"], 2),
                   "catching_up_slower_percent": round(100 * statistics.fmean(one["catching_up_slower"] for one in whole), 2),
                   "cores_busy_away": round(statistics.fmean(one["busy"]["away"] for one in whole), 3),
                   "cores_busy_there": round(statistics.fmean((one["busy"]["before"] + one["busy"]["after"]) / 2 for one in whole), 3)}
    clean = not any(counts[key] for key in ("failed", "not_comparable", "lost", "doubled", "wrong", "runs_left_open"))
    return {"counts": counts, "repeats": repeats, "met": clean and reached is not None and reached["high"] < LIMIT}
