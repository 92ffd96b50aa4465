"""Fresh checkouts to measure in, what machine this is, and how much memory a checkout's processes take."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import threading
from pathlib import Path
from typing import Any

import psutil

from components import failpoints
from components.layout import ROOT

RESULTS = ROOT / "benchmarks" / "results"


def clone(target: Path, *, with_venv: bool = True) -> Path:
    """HEAD of this repository in an empty folder; `.venv` and the embedded packages are borrowed by symlink."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(target)], check=True)
    if with_venv:
        (target / ".venv").symlink_to(ROOT / ".venv")
        (target / "data").mkdir()
        (target / "data" / "packages").symlink_to(ROOT / "data" / "packages")
    return target


def clean_env(root: Path, home: Path | None = None) -> dict[str, str]:
    """Nothing of the caller's own servers and fail-points; with `home`, an empty home."""
    drop = ("MLFLOW_", "PREFECT_", "DVC_", "LMWORKS_", failpoints.VARIABLE)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    return {**kept, **({"HOME": str(home)} if home else {}), "PYTHONPATH": str(root)}


def lmworks(root: Path, *arguments: str, env: dict[str, str] | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """One `lmworks` command of that checkout, its output kept."""
    done = subprocess.run([str(root / ".venv" / "bin" / "python"), "-m", "commands", *arguments], cwd=root, text=True, capture_output=True,
                          env=env or {**os.environ, "PYTHONPATH": str(root)})
    if check and done.returncode:
        raise RuntimeError(f"lmworks {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return done


def host() -> dict[str, Any]:
    """Processor, memory and versions: named beside every figure."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    field = lambda name: next((line.split(":", 1)[1].strip() for line in cpu.splitlines() if line.startswith(name)), "")  # noqa: E731
    flags = set(field("flags").split())
    return {"processor": f"{field('model name') or platform.processor()} (family {field('cpu family')}, model {field('model')})",
            "cores": os.cpu_count(), "amx": "amx_tile" in flags, "avx512_bf16": "avx512_bf16" in flags,
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1), "python": platform.python_version(),
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "prefect", "mlflow", "dvc", "great-expectations")}}


def commit(*, cloned: bool = False) -> str:
    """HEAD; with a mark if the working tree differs from it, unless what was measured are clones of HEAD."""
    run = lambda *a: subprocess.run(["git", "-C", str(ROOT), *a], capture_output=True, text=True).stdout.strip()  # noqa: E731
    return run("rev-parse", "HEAD") + ("-dirty" if not cloned and run("status", "--porcelain", "--untracked-files=no") else "")


def interval(values: list[float]) -> dict[str, float]:
    """Mean with its 95 % interval (Student's t)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean, "low": mean, "high": mean}
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5  # float: JSON takes none of numpy's
    return {"mean": mean, "low": mean - half, "high": mean + half}


def write(name: str, *, command: str, conditions: str, repeats: list[dict[str, Any]], figures: dict[str, Any]) -> None:
    """benchmarks/results/NAME.json: command, commit, versions, host, all repeats, the figures drawn from them."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    value = {"name": name, "command": command, "commit": commit(cloned=True), "date": datetime.date.today().isoformat(), "conditions": conditions,
             "host": host(), "repeats": repeats, "figures": figures}
    (RESULTS / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


class PeakPss(threading.Thread):
    """Peak of the summed proportional set size of every process that works in a checkout, servers included (Linux)."""

    def __init__(self, root: Path, interval_s: float = 3.0):
        super().__init__(daemon=True)
        self.root, self.interval_s, self.peak_bytes, self.ended = str(root), interval_s, 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(self.interval_s):
            total = 0
            for process in psutil.process_iter():
                try:
                    if process.cwd().startswith(self.root):
                        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
                except (psutil.Error, OSError, StopIteration):
                    continue
            self.peak_bytes = max(self.peak_bytes, total)

    def __enter__(self) -> PeakPss:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()
