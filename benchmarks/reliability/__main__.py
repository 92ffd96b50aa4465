"""Kill it, flip its bytes, fill its disk, take its servers away, and count what was lost.

    python -m benchmarks.reliability                        every figure at its full count (hours, on a machine that does nothing else)
    python -m benchmarks.reliability kills --count 6        one figure, a few repeats
    python -m benchmarks.reliability flips --seed 7         other places, other bytes
    python -m benchmarks.reliability table                  nothing is measured: the table of what is known, into both READMEs

Each figure writes its own section of benchmarks/reliability.json: command, commit, versions, host, counts and all repeats.
Exit code 1: a figure was missed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import signal
import sys
import time
import traceback
from typing import Any

from benchmarks import workspace
from benchmarks.reliability import table
from components import files
from components.layout import ROOT

RESULT = ROOT / "benchmarks" / "reliability.json"
FIGURES = ("kills", "checkpoints", "flips", "disk", "outages", "starts", "loggers", "promoters", "planted_secrets", "hostile")


def measured(name: str, count: int | None, seed: int) -> dict[str, Any]:
    """One figure as a section of the JSON. Without `count`, the full one."""
    module = importlib.import_module(f"benchmarks.reliability.{name}")
    asked, started_s, commit = count or module.COUNT, time.perf_counter(), workspace.commit()
    found = module.measure(asked, seed)
    return {"goal": module.GOAL, "command": f"python -m benchmarks.reliability {name} --count {asked} --seed {seed}", "commit": commit,
            "date": datetime.date.today().isoformat(), "host": workspace.host(), "elapsed_s": round(time.perf_counter() - started_s, 1),
            "full": asked >= module.COUNT, **found}


def known() -> dict[str, Any]:
    return json.loads(RESULT.read_text()) if RESULT.exists() else {}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"{', '.join(FIGURES)}, or table; all by default")
    parser.add_argument("--count", type=int, help="kills, flips, rounds …: each figure has its own full count")
    parser.add_argument("--seed", type=int, default=1, help="of the moments, places and bytes")
    asked = parser.parse_args()
    wanted = [name for name in asked.figures if name != "table"] if asked.figures else list(FIGURES)
    if unknown := sorted(set(wanted) - set(FIGURES)):
        parser.error(f"no figure {', '.join(unknown)}; there are: {', '.join(FIGURES)}, and table")
    if asked.count is not None and asked.count < 1:
        parser.error(f"--count {asked.count}: at least 1 is needed")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what a figure started and made goes with it
    missed = []
    for name in wanted:
        try:
            section = measured(name, asked.count, asked.seed)
        except Exception:  # noqa: BLE001 - the figures after it are still to be measured
            print(f"{name}: ended by an error", flush=True)
            traceback.print_exc()
            missed.append(name)
            continue
        files.write_json(RESULT, {key: {**known(), name: section}[key] for key in FIGURES if key in {**known(), name: section}})
        print(f"{name}: {'met' if section['met'] else 'MISSED'} in {section['elapsed_s']:.0f} s. {json.dumps(section['counts'], ensure_ascii=False)}", flush=True)
        missed += [] if section["met"] else [name]
    if "table" in asked.figures:
        table.write(known())
    print(table.table(known()))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
