"""A disk that is full at each write: of the named files one by one, and of the whole checkout at random moments of a run.

Named: FAILPOINTS lets one write find no space; the stage, the release or the command must end with "no space in …", leave every published
folder as it was, and do its work when it is called again. At random moments: the whole checkout, servers included, lies on a small disk of its own
(a tmpfs in a mount namespace: no root is needed), a neighbour fills it to the last byte while `lmworks run` works, and
takes its file away when the run has ended; then the same command is called once more and must go on to the end. What comes out
must be what a run that nobody disturbed made: the same dvc.lock, the same bytes.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import workspace
from components import chain, files
from components.errors import UserError
from components.layout import ROOT, Layout
from components.operations import databases

GOAL = "Disk full at each write: a clear message each time, 0 good files damaged, goes on when space is back"
SIZE_MB = 700  # of the disk: two checkouts with their servers
RUN_LIMIT_S = 900  # a busy machine needs minutes for what a quiet one does in 50 s
LATEST_S = 45  # after the start of a run the disk is full: a whole `smoke` chain takes about as long
NO_SPACE = "no space in "

# the writes of small files, by the stage that makes them; tables, tensors and shards are met by the disk that fills up
STAGE_WRITES = {
    "fetch": ("origin.json", "summary.json", "manifest.json"), "ingest": ("validation.json", "validation.html"), "clean": ("validation.json", "summary.json"),
    "tokenizer": ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"), "shards": ("index.json", "manifest.json"),
    "pretrain": ("run.json", "config.json", "generation_config.json", "metrics.json", "training.json", "manifest.json"),
    "finetune": ("metrics.json", "summary.json"), "evaluate": ("evaluation.json", "samples.json", "report.html", "manifest.json")}
CHECKPOINT_PLACES = ("train.ckpt.before_write", "train.ckpt.mid_write", "train.ckpt.before_rename")
RELEASE_WRITES = ("release.json", "promotion.json")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One full disk: what is called, with which fail-point, and whether it goes on all the same."""

    what: str
    points: str
    command: tuple[str, ...]
    continues: bool = False


def named() -> list[Case]:
    """One case a write that has a name."""
    stage = lambda name: ("components.chain", name)  # noqa: E731
    cases = [Case(what=f"{name}: {file}", points=f"files.write@{file}=enospc", command=stage(name)) for name, files_ in STAGE_WRITES.items() for file in files_]
    cases += [Case(what=f"{name}: a checkpoint, {place}", points=f"{place}=enospc", command=stage(name)) for name in ("pretrain", "finetune") for place in CHECKPOINT_PLACES]
    cases += [Case(what="pretrain: points of its run", points="spool.write=enospc", command=stage("pretrain"), continues=True)]
    cases += [Case(what=f"release: {file}", points=f"files.write@{file}=enospc", command=("commands", "run")) for file in RELEASE_WRITES]
    cases += [Case(what="use: params.yaml", points="files.write@params.yaml=enospc", command=("commands", "use", "smoke", "--name", "disk"))]
    return cases


COUNT = len(named()) + 26  # each named write, then moments


def measure(count: int, seed: int) -> dict[str, Any]:
    """Each named write once, the rest at random moments of a chain; of a smaller count each has its share."""
    with tempfile.TemporaryDirectory() as scratch:
        disk = Path(scratch) / "disk"
        disk.mkdir()
        mounted = f'mount -t tmpfs -o size={SIZE_MB}m tmpfs "$1" && exec "$0" -m benchmarks.reliability.disk "$1" "$2" "$3" "$4"'
        told = Path(scratch) / "told.json"
        subprocess.run(["unshare", "-rm", "sh", "-c", mounted, sys.executable, str(disk), str(count), str(seed), str(told)], cwd=ROOT, check=True,
                       env={**os.environ, "PYTHONPATH": str(ROOT)})
        repeats = json.loads(told.read_text().replace(str(disk), "DISK"))
    events = [row for row in repeats if "clear" in row]
    damaged = [problem for row in repeats for problem in row["damaged"]]
    counts = {"full_disks": len(events), "named_writes": sum(row["kind"] == "named" for row in events), "random_moments": sum(row["kind"] == "moment" for row in events),
              "clear_messages_or_went_on": sum(row["clear"] for row in events), "good_files_damaged": len(damaged),
              "went_on_when_space_was_back": sum(row["went_on"] for row in events), "same_result": all(row["same"] for row in repeats if "same" in row)}
    met = (len(events) >= count and counts["clear_messages_or_went_on"] == counts["went_on_when_space_was_back"] == len(events)
           and not damaged and bool(counts["same_result"]))
    return {"counts": counts, "repeats": repeats, "met": met}


# --- within the mount namespace ------------------------------------------------------------------

def call(root: Path, *words: str, **env: str) -> tuple[int, str]:
    """(exit code, all that it printed) of `python -m WORDS` in that checkout."""
    home = root.parent / "home"
    home.mkdir(exist_ok=True)
    clean = workspace.clean_env(root, home)
    try:
        done = subprocess.run([str(root / ".venv/bin/python"), "-m", *words], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=RUN_LIMIT_S,
                              env={**clean, "PATH": f"{root / '.venv/bin'}:{clean['PATH']}", **env})
        return done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        return -1, f"{(error.stdout or b'').decode(errors='replace')}\nit did not end within {RUN_LIMIT_S} s"


def outs(root: Path) -> dict[str, str]:
    """{out: the hash of its files} of every published folder, each file hashed. Raises Damaged."""
    layout = Layout(root=root)
    found = {}
    for out in (out for stage in chain.STAGES for out in stage.outs):
        if layout.out(out).exists():
            files.verify_manifest(layout.out(out))
            found[out] = files.manifest_hash(layout.out(out))
    return found


def damaged(root: Path) -> list[str]:
    """What is not whole: published folders, both databases."""
    layout, wrong = Layout(root=root), []
    try:
        outs(root)
    except UserError as error:
        wrong.append(str(error))
    for path in (layout.mlflow_database, layout.prefect_database):
        if path.exists():
            try:
                wrong += [f"{path.name}: {line}" for line in databases.integrity(path)]
            except UserError as error:
                wrong.append(str(error))
    return wrong


def last(text: str) -> str:
    """The line that a person reads: the one that names the disk, else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("fail-point ")]
    return next((line for line in reversed(lines) if NO_SPACE in line), lines[-1] if lines else "")[:400]


def one_write(root: Path, case: Case, reference: dict[str, str]) -> dict[str, Any]:
    """One named write that finds no space, in a finished checkout."""
    if case.command == ("commands", "run"):
        Layout(root=root).receipt.unlink(missing_ok=True)  # or nothing would be released
    code, said = call(root, *case.command, FAILPOINTS=case.points)
    row = {"kind": "named", "what": case.what, "exit_code": code, "said": last(said), "hit": "fail-point " in said, "damaged": damaged(root)}
    row["clear"] = row["hit"] and "Traceback" not in said and (code == 0 if case.continues else code > 0 and NO_SPACE in said)
    again, words = call(root, *case.command)
    row["went_on"] = again == 0
    row["damaged"] += [line for line in damaged(root) if line not in row["damaged"]]
    row["same"] = not row["damaged"] and outs(root) == reference
    return row if again == 0 else row | {"again": last(words)}


class Neighbour(threading.Thread):
    """Fills the disk to the last byte some seconds after its start, and keeps it full until `leave`."""

    def __init__(self, disk: Path, after_s: float):
        super().__init__(daemon=True)
        self.path, self.after_s, self.left, self.filled = disk / "neighbour", after_s, threading.Event(), False

    def run(self) -> None:
        if self.left.wait(self.after_s):
            return
        block = bytes(2**20)
        with open(self.path, "wb", buffering=0) as f:
            while not self.left.is_set():
                try:
                    f.write(block)
                except OSError:  # full; what others free is taken again
                    self.filled = True
                    block = block[: max(4096, len(block) // 2)]
                    time.sleep(0.02)

    def leave(self) -> None:
        self.left.set()
        self.join()
        self.path.unlink(missing_ok=True)


def moments(root: Path, count: int, pick: random.Random, reference: dict[str, str], lock: str) -> list[dict[str, Any]]:
    """`count` chains from nothing that find their disk full, each at a moment of its own, and are called again when there is space."""
    rows: list[dict[str, Any]] = []
    for _ in range(3 * count):
        if sum(row["kind"] == "moment" for row in rows) == count:
            break
        neighbour = Neighbour(root.parent, pick.uniform(1, LATEST_S))
        neighbour.start()
        code, said = call(root, "commands", "run")
        neighbour.leave()
        row: dict[str, Any] = {"kind": "moment", "what": f"after {neighbour.after_s:.1f} s", "exit_code": code, "said": last(said), "damaged": damaged(root),
                               "clear": "Traceback" not in said and (code == 0 or (code > 0 and NO_SPACE in said))}
        if neighbour.filled:
            again, words = call(root, "commands", "run")
            row |= {"went_on": again == 0, "again": last(words) if again else None, "damaged": [*row["damaged"], *damaged(root)]}
        else:  # it was over before
            again, row = code, {"kind": "undisturbed", "said": row["said"], "damaged": row["damaged"]}
        rows.append(row | {"same": again == 0 and not row["damaged"] and outs(root) == reference and files.sha256_file(root / "dvc.lock") == lock})
        tell(rows[-1])
        fresh(root)
    return rows


def fresh(root: Path) -> None:
    """The next run of the chain begins at its beginning."""
    call(root, "commands", "down", "--force")
    keep = {"packages"}
    for path in [*(path for path in (root / "data").iterdir() if path.name not in keep), root / "work", root / "dvc.lock", root / ".dvc/cache"]:
        subprocess.run(["rm", "-rf", str(path)], check=True)


def inside(disk: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """All rows. Both checkouts lie on the small disk."""
    pick = random.Random(seed)
    cases = named()
    cases = pick.sample(cases, min(len(cases), max(1, count * len(cases) // COUNT)))
    roots = [workspace.clone(disk / name) for name in ("finished", "walked")]
    rows: list[dict[str, Any]] = []
    try:
        for root in roots:
            call(root, "commands", "use", "smoke", "--name", "disk")
        code, said = call(roots[0], "commands", "run")
        if code:
            raise RuntimeError(f"the undisturbed run failed:\n{said[-3000:]}")
        reference, lock = outs(roots[0]), files.sha256_file(roots[0] / "dvc.lock")
        for case in cases:
            rows.append(one_write(roots[0], case, reference))
            tell(rows[-1])
        call(roots[0], "commands", "down", "--force")
        rows += moments(roots[1], count - len(cases), pick, reference, lock)
    finally:
        for root in roots:
            call(root, "commands", "down", "--force")
    return rows


def tell(row: dict[str, Any]) -> None:
    print(json.dumps({key: value for key, value in row.items() if value not in ([], None)}, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    Path(sys.argv[4]).write_text(json.dumps(inside(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])), ensure_ascii=False))
