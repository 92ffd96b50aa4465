"""The figures of the README, measured: one command, one JSON each in benchmarks/results/, one table.

    python -m benchmarks.figures                  everything (about an hour, on a machine that does nothing else)
    python -m benchmarks.figures smoke            some of: setup smoke tiny
    python -m benchmarks.figures table            only the table, from the JSON files that are there
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import workspace
from benchmarks.workspace import RESULTS, clean_env, clone, interval, lmworks
from components import chain, files

REPEATS = 3


def timed(*command: str, cwd: Path, env: dict[str, str]) -> tuple[float, str]:
    """(wall seconds, standard output). Raises RuntimeError with its last words when it fails."""
    started_s = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}")
    return time.perf_counter() - started_s, done.stdout


# --- set-up --------------------------------------------------------------------------------------

def setup(repeats: int) -> None:
    """`make setup` in a fresh clone with an empty home and no pip cache."""
    rows = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as scratch:
            root = clone(Path(scratch) / "lmworks", with_venv=False)
            (Path(scratch) / "home").mkdir()
            env = clean_env(root, Path(scratch) / "home") | {"PIP_NO_CACHE_DIR": "1"}
            env.pop("PYTHONPATH")
            wall_s, _ = timed("make", "setup", cwd=root, env=env)
            size = int(subprocess.run(["du", "-sb", "--apparent-size", str(root / ".venv")], capture_output=True, text=True).stdout.split()[0])
            blocks = int(subprocess.run(["du", "-sk", str(root / ".venv")], capture_output=True, text=True).stdout.split()[0]) * 1024
            rows.append({"wall_s": wall_s, "venv_gb": size / 1e9, "venv_on_disk_gb": blocks / 1e9})
            print(f"setup: {wall_s:.0f} s, .venv {size / 1e9:.2f} GB", flush=True)
    workspace.write("setup", command="make setup", conditions="fresh clone, empty home, no pip cache, package index reachable, CPU torch", repeats=rows,
                    figures={"wall_s": interval([r["wall_s"] for r in rows]), "venv_gb": interval([max(r["venv_gb"], r["venv_on_disk_gb"]) for r in rows])})


# --- the chain, beside a plain script ------------------------------------------------------------

def platform(preset: str, repeats: int) -> None:
    """`lmworks run` and a plain script of the same stages and release, in turn, from empty caches, servers up on both sides."""
    rows: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []
    for number in range(repeats):
        with tempfile.TemporaryDirectory() as scratch:
            row, proof = _pair(preset, number, Path(scratch))
            rows.append(row)
            kept.append(proof)
            print(f"{preset} {number + 1}/{repeats}: up {row['up_s']:.1f} s, lmworks run {row['run_s']:.1f} s, plain {row['plain_s']:.1f} s, "
                  f"platform {row['platform_s']:.1f} s, unchanged {min(row['unchanged_s']):.2f} s, peak {row['peak_pss_gib']:.2f} GiB", flush=True)
        _write(preset, rows, all(p == kept[0] for p in kept))


def _write(preset: str, rows: list[dict[str, Any]], same: bool) -> None:
    figures = {"run_s": interval([r["run_s"] for r in rows]), "make_run_s": interval([r["up_s"] + r["run_s"] for r in rows]),
               "platform_s": interval([r["platform_s"] for r in rows]), "platform_share": interval([r["platform_s"] / r["run_s"] for r in rows]),
               "peak_pss_gib": interval([r["peak_pss_gib"] for r in rows]), "unchanged_s": interval([s for r in rows for s in r["unchanged_s"]]),
               "identical_lock_and_weights": same}
    workspace.write(preset, command=f"python -m benchmarks.figures {preset}",
                    conditions="fresh clone, empty home, empty DVC cache and work/ each time; MLflow, Prefect server and worker up on both sides; "
                               "databases prepared; the two contestants in turn, the order changing", repeats=rows, figures=figures)


def _steps(root: Path, stage: str) -> int | None:
    """Optimizer updates that a stage says it made."""
    return files.read_json(root / "data" / chain.BY_NAME[stage].outs[0] / "summary.json").get("steps")


def _pair(preset: str, number: int, scratch: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """One repeat: (its timings, what must be equal in every repeat)."""
    ours, theirs = clone(scratch / f"platform-{number}"), clone(scratch / f"plain-{number}")
    home = scratch / "home"
    home.mkdir()
    python = str(ours / ".venv" / "bin" / "python")
    lmworks(ours, "use", preset, "--name", "figures-platform")
    lmworks(theirs, "use", preset, "--name", "figures-plain")
    timed(python, "-m", "components.operations.services", "prepare", cwd=ours, env=clean_env(ours, home))
    up_s, _ = timed(python, "-m", "commands", "up", cwd=ours, env=clean_env(ours, home))
    try:
        services = files.read_json(ours / ".lmworks" / "services.json")
        row: dict[str, Any] = {"up_s": up_s}

        def run_ours() -> None:
            with workspace.PeakPss(ours) as memory:
                row["run_s"], out = timed(python, "-m", "commands", "run", cwd=ours, env=clean_env(ours, home) | {"COLUMNS": "100"})
            row["peak_pss_gib"] = memory.peak_bytes / 2**30
            (RESULTS / f"{preset}-output.txt").write_text(out)  # what a person sees; the README shows it
            row["stages"] = {name: {"state": state, "elapsed_s": float(seconds), "steps": _steps(ours, name)}
                             for name, state, seconds in re.findall(r"^(\w+) +(ran|restored|healed|failed) +([\d.]+)", out, re.M)}
            assert set(row["stages"]) == set(chain.BY_NAME) and {s["state"] for s in row["stages"].values()} == {"ran"}, out

        def run_theirs() -> None:
            env = clean_env(theirs, home) | {"MLFLOW_TRACKING_URI": services["mlflow"]["url"]}
            row["plain_s"], out = timed(python, "-m", "benchmarks.plain", cwd=theirs, env=env)
            row["plain_seconds"] = json.loads(out.splitlines()[-1])["seconds"]

        for contestant in ((run_ours, run_theirs) if number % 2 == 0 else (run_theirs, run_ours)):
            contestant()
        row["platform_s"] = row["run_s"] - row["plain_s"]
        row["unchanged_s"] = [timed(python, "-m", "commands", "run", cwd=ours, env=clean_env(ours, home))[0] for _ in range(3)]
        weights = {out: files.read_json(ours / "data" / out / "metrics.json")["weights_sha256"] for out in ("pretrained", "finetuned")}
        plain = {out: files.read_json(theirs / "data" / out / "metrics.json")["weights_sha256"] for out in ("pretrained", "finetuned")}
        assert weights == plain, f"the plain script trained other weights: {weights} {plain}"
        row["weights_sha256"] = weights
        return row, {"weights": weights, "lock": files.sha256_file(ours / "dvc.lock"), "steps": {k: v["steps"] for k, v in row["stages"].items()}}
    finally:
        lmworks(ours, "down", "--force", check=False)


# --- the table -----------------------------------------------------------------------------------

def _rows() -> list[tuple[str, str, str, str, bool]]:
    """(figure, goal, reached, conditions, met). Met: the whole 95 % interval is on the right side."""
    found = []

    def add(name: str, key: str, what: str, goal: float, unit: str, digits: int = 1) -> None:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            return
        told = json.loads(path.read_text())
        value = told["figures"][key]
        runs = sum(len(r[key]) if isinstance(r.get(key), list) else 1 for r in told["repeats"])  # some figures are measured several times a repeat
        shown = f"{value['mean']:.{digits}f} {unit} ({value['low']:.{digits}f} to {value['high']:.{digits}f}, n = {runs})"
        found.append((what, f"at most {goal:g} {unit}", shown, f"{told['host']['processor']}, {told['host']['cores']} cores, {told['date']}", value["high"] <= goal))

    add("setup", "wall_s", "`make setup`, fresh machine", 240, "s", 0)
    add("setup", "venv_gb", "`.venv` without development extras", 2.5, "GB", 2)
    add("tiny", "make_run_s", "`make run` after set-up (`tiny`, caches empty, servers started)", 480, "s", 0)
    add("tiny", "peak_pss_gib", "peak memory of all processes, servers included (`tiny`)", 4, "GiB", 2)
    add("smoke", "run_s", "`lmworks run`, `smoke`, servers up, caches empty", 90, "s", 0)
    add("smoke", "unchanged_s", "second run, nothing changed, servers up", 5, "s", 2)
    add("smoke", "platform_s", "what the platform costs, `smoke`", 30, "s")
    add("tiny", "platform_s", "what the platform costs, `tiny`", 30, "s")
    add("tiny", "platform_share", "the same, as a share of `tiny`", 0.1, "of the run", 3)
    for name in ("smoke", "tiny"):
        path = RESULTS / f"{name}.json"
        if path.exists():
            told = json.loads(path.read_text())
            found.append((f"runs from scratch in {len(told['repeats'])} folders, `{name}`: `dvc.lock` and weights", "identical",
                          "identical" if told["figures"]["identical_lock_and_weights"] else "differ", told["host"]["processor"],
                          told["figures"]["identical_lock_and_weights"]))
    return found


def table() -> str:
    """The figures as Markdown; a miss stays, marked red."""
    lines = ["| figure | goal | reached (95 % interval) | where |", "|---|---|---|---|"]
    lines += [f"| {what} | {goal} | {'🟢' if met else '🔴'} {shown} | {where} |" for what, goal, shown, where, met in _rows()]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", choices=["setup", "smoke", "tiny", "table", []], help="which; all by default")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    asked = parser.parse_args()
    wanted = asked.figures or ["setup", "smoke", "tiny", "table"]
    if "setup" in wanted:
        setup(asked.repeats)
    for preset in ("smoke", "tiny"):
        if preset in wanted:
            platform(preset, asked.repeats)
    text = "# Figures\n\nWritten by `python -m benchmarks.figures`; every repeat, host and version is in `results/`.\n\n" + table()
    (RESULTS.parent / "README.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
