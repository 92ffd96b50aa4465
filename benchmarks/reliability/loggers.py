"""Sixteen processes that log to one MLflow server at the same time, each as a training does."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.reliability import curves
from benchmarks.workspace import clean_env
from components import tracking
from components.layout import ROOT, Layout
from components.operations import processes, services

GOAL = "16 loggers x 500 points at once: 0 errors, 0 points lost or doubled"
COUNT = 16  # loggers
POINTS = 500
NAME = "loggers"
KEY = "train/loss"
# what one of them does: points in bursts, as different as the seed says, so that they meet at the server in ever new ways
LOGGER = """
import os, random, sys, time
from pathlib import Path
from components import tracking
from components.config import Config
from components.layout import Layout

root, number, points, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
tracking.SEND_INTERVAL_S = 0.3
rng = random.Random(seed * 1000 + number)
layout = Layout(root=root, work=root / "work" / "pretrain" / f"k{number}")
with tracking.tracked(Config(name="loggers"), layout, stage="pretrain", parameters=1_000_000, languages=["en"], params={"number": number}) as run:
    for step in range(points):
        run.log(step, {"train/loss": number + step / points})
        if rng.random() < 0.05:
            time.sleep(rng.random() * 0.2)
"""


@contextlib.contextmanager
def server(root: Path) -> Iterator[str]:
    """A real MLflow server on a fresh database, ours alone; its address."""
    layout = Layout(root=root)
    try:
        yield services.ensure(layout, prefect=False)["mlflow"]["url"]
    finally:
        services.down(layout, force=True)


def log(root: Path, url: str, loggers: int, points: int, seed: int) -> list[dict[str, Any]]:
    """All at once, to the server at `url`; how each ended."""
    env = clean_env(ROOT, root) | {"MLFLOW_TRACKING_URI": url}
    running = [subprocess.Popen([sys.executable, "-c", LOGGER, str(root), str(number), str(points), str(seed)], env=env, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE) for number in range(loggers)]
    ended = []
    for number, process in enumerate(running):
        try:
            out, err = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:  # counted as what it is: an error
            process.kill()
            out, err = process.communicate()
        # that some points wait for the next start is said, and is no error
        words = [line for line in (out + err).splitlines() if "Nothing is lost" not in line]
        ended.append({"logger": number, "exit_code": process.returncode, "words": "\n".join(words)[-500:]})
    return ended


def counted(url: str, points: int) -> dict[int, dict[str, Any]]:
    """{logger: {"status", "lost", "doubled", "wrong"}} as the server has it."""
    experiment = curves.call(url, "GET", f"experiments/get-by-name?experiment_name={NAME}")["experiment"]["experiment_id"]
    found: dict[int, dict[str, Any]] = {}
    for run in curves.call(url, "POST", "runs/search", {"experiment_ids": [experiment], "max_results": 1000}).get("runs", []):
        number = int(next(param["value"] for param in run["data"]["params"] if param["key"] == "number"))
        history = [(int(m["step"]), float(m["value"])) for m in curves.history(url, run["info"]["run_id"], KEY)]
        times = Counter(step for step, _ in history)
        found[number] = {"runs": found.get(number, {}).get("runs", 0) + 1, "status": run["info"]["status"],
                         "lost": len(set(range(points)) - set(times)), "doubled": sum(n - 1 for n in times.values()),
                         "wrong": sum(value != number + step / points for step, value in history)}
    return found


def once(root: Path, loggers: int, points: int, seed: int) -> dict[str, Any]:
    """Log, send what is left as the next start would, and count. MLflow's server must run."""
    layout = Layout(root=root)
    url = services.address(layout, processes.MLFLOW)
    assert url is not None
    ended = log(root, url, loggers, points, seed)
    left = tracking.drain(layout)
    found = counted(url, points)
    nothing = {"runs": 0, "status": "none", "lost": points, "doubled": 0, "wrong": 0}
    repeats = [row | found.get(row["logger"], nothing) for row in ended]
    counts = {"loggers": loggers, "points": loggers * points, "errors": sum(1 for row in ended if row["exit_code"] or row["words"]),
              "lost": sum(row["lost"] for row in repeats), "doubled": sum(row["doubled"] for row in repeats), "wrong": sum(row["wrong"] for row in repeats),
              "unsent": left, "not_finished": sum(1 for row in repeats if row["status"] != "FINISHED" or row["runs"] != 1)}
    met = not any(counts[key] for key in ("errors", "lost", "doubled", "wrong", "unsent", "not_finished"))
    return {"counts": counts, "repeats": repeats, "met": met}


def measure(count: int, seed: int) -> dict[str, Any]:
    """`count` loggers of POINTS points each."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        root = Path(scratch)
        with server(root):
            found = once(root, count, POINTS, seed)
        return json.loads(json.dumps(found).replace(scratch, "."))
