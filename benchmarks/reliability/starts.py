"""Eight commands at once in a fresh checkout, where no database and no server is there yet.

Every `up`, `status` and `models` must end well, and so must one `run`; the other `run` too, or it is told *Busy* (exit code 75),
which is the right answer in a checkout that works already. Afterwards there is one MLflow server, one Prefect server, one worker.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.workspace import clean_env, clone
from components.layout import Layout

GOAL = "8 processes starting on a fresh checkout at once: 8 of 8 end as they should, with one pair of servers"
COUNT = 6  # fresh checkouts
BUSY = 75
RUN = ("run", "--to", "fetch")
ALIKE = [("up",)] * 8
MIXED = [("up",), ("up",), ("up",), ("status",), ("status",), ("models", "--json"), RUN, RUN]
SERVERS = {"mlflow": ("mlflow", "server"), "prefect": ("flows.prefect_server", "--host"), "worker": ("prefect", "worker")}
TIMEOUT_S = 400


def started(root: Path) -> dict[str, int]:
    """How many servers of each kind work in this checkout; their own children do not count."""
    found: dict[str, set[int]] = {name: set() for name in SERVERS}
    parents: dict[int, int] = {}
    for process in psutil.process_iter():
        try:
            line, here = process.cmdline(), process.cwd() == str(root)
            parents[process.pid] = process.ppid()
        except psutil.Error:
            continue
        for name, words in SERVERS.items():
            if here and tuple(line[2:4]) == words:
                found[name].add(process.pid)
    return {name: sum(1 for pid in pids if parents[pid] not in pids) for name, pids in found.items()}


def at_once(root: Path, home: Path, commands: list[tuple[str, ...]]) -> dict[str, Any]:
    """All `commands` in this fresh checkout at the same moment: how each ended, and what runs afterwards."""
    python, env, began_s = str(root / ".venv" / "bin" / "python"), clean_env(root, home), time.monotonic()
    running = [(command, subprocess.Popen([python, "-m", "commands", *command], cwd=root, env=env, text=True, stdin=subprocess.DEVNULL,
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)) for command in commands]
    ended = []
    for command, process in running:
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:  # counted as what it is: not right
            process.kill()
            out, err = process.communicate()
        ended.append({"command": " ".join(command), "exit_code": process.returncode, "seconds": round(time.monotonic() - began_s, 1),
                      "last_words": (err or out).strip().replace(str(root), ".")[-300:] if process.returncode else "",
                      "traceback": "Traceback" in out + err})
    runs = [row["exit_code"] for row in ended if row["command"].startswith("run")]
    for row in ended:
        allowed = (0, BUSY) if row["command"].startswith("run") and 0 in runs else (0,)
        row["right"] = row["exit_code"] in allowed and not row["traceback"]
    servers = started(root)
    wanted = {"mlflow": 1, "prefect": 1, "worker": 1 if ("up",) in commands else 0}
    unclean = len(list(Layout(root=root).unclean.glob("*.json")))
    return {"ended": ended, "right": sum(row["right"] for row in ended), "servers": servers, "markers_left": unclean,
            "met": all(row["right"] for row in ended) and servers == wanted and not unclean}


def measure(count: int, seed: int) -> dict[str, Any]:
    """`count` fresh checkouts: by turns eight different commands, their order drawn by the seed, and eight times `up`."""
    rng = random.Random(seed)
    repeats = []
    for number in range(count):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            root, home = clone(Path(scratch) / "checkout"), Path(scratch) / "home"
            home.mkdir()
            env = clean_env(root, home)
            python = str(root / ".venv" / "bin" / "python")
            subprocess.run([python, "-m", "commands", "use", "smoke"], cwd=root, env=env, check=True, capture_output=True)
            commands = rng.sample(MIXED, len(MIXED)) if number % 2 == 0 else ALIKE
            try:
                row = at_once(root, home, commands)
            finally:
                subprocess.run([python, "-m", "commands", "down", "--force"], cwd=root, env=env, capture_output=True)
            row["servers_left"] = sum(started(root).values())
            row["met"] = row["met"] and not row["servers_left"]
            repeats.append(row)
            print(f"starts {number + 1}/{count}: {row['right']} of {len(commands)} right, {max(e['seconds'] for e in row['ended']):.0f} s", flush=True)
    counts = {"checkouts": count, "processes": sum(len(row["ended"]) for row in repeats), "right": sum(row["right"] for row in repeats),
              "checkouts_with_other_than_one_pair": sum(row["servers"]["mlflow"] != 1 or row["servers"]["prefect"] != 1 for row in repeats)}
    return {"counts": counts, "repeats": repeats, "met": all(row["met"] for row in repeats)}
