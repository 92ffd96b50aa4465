"""A checkout that is killed again and again: one chain after another in it, each from nothing, each in several lives."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks import workspace
from components import chain, failpoints, files
from components.layout import Layout

NOTED = ("stage.start", "stage.published", "train.step")
TRAININGS = ("pretrain", "finetune")
SERVERS = ("mlflow", "prefect")
POLL_S = 0.01
LIFE_S = 900  # a life that takes longer hangs
NAME = "smoke"
HOMES = (".lmworks", "mlruns", ".prefect")  # as they are before the first run: what a reset brings back


@dataclass(frozen=True)
class Note:
    """One line of the fail-points' notes."""

    name: str
    where: str
    pid: int
    at_s: float


@dataclass
class Life:
    """One `lmworks run`, from its start to its end, however that came."""

    process: subprocess.Popen
    output: Path
    notes_before: int
    started_s: float = field(default_factory=time.time)

    def members(self) -> list[psutil.Process]:
        """The live processes of this run: its own session, which the servers are not in."""
        return _session(self.process.pid)

    def end(self) -> int:
        """Its exit code, once it has ended. Raises TimeoutExpired for one that hangs, and ends it."""
        try:
            return self.process.wait(LIFE_S)
        except subprocess.TimeoutExpired:
            for member in self.members():
                member.kill()
            raise

    def told(self) -> str:
        return self.output.read_text(errors="replace")


class Drilled:
    """The checkout at `root`, which has not run yet, and what the fail-points have noted."""

    def __init__(self, root: Path, scratch: Path):
        self.root, self.layout, self.scratch = root, Layout(root=root), scratch
        self.notes_file = scratch / "notes"
        self.lives = 0
        (scratch / "home").mkdir(parents=True, exist_ok=True)

    def environment(self, *points: str) -> dict[str, str]:
        """An empty home, nothing of the developer's own servers; `points` beside the notes."""
        noted = [f"{name}=note:{self.notes_file}" for name in NOTED if not any(point.startswith(f"{name}=") for point in points)]
        return {**workspace.clean_env(self.root, self.scratch / "home"), failpoints.VARIABLE: ",".join([*points, *noted])}

    def lmworks(self, *arguments: str) -> str:
        """One command that must succeed; what it printed."""
        return workspace.lmworks(self.root, *arguments, env=workspace.clean_env(self.root, self.scratch / "home")).stdout

    def start(self, *points: str) -> Life:
        """`lmworks run`, in a session of its own."""
        self.lives += 1
        output = self.scratch / f"life-{self.lives}.txt"
        before = len(self.notes())
        with open(output, "wb") as out:
            process = subprocess.Popen([str(self.layout.venv / "bin" / "python"), "-m", "commands", "run", "--json"], cwd=self.root, stdin=subprocess.DEVNULL,
                                       env=self.environment(*points), stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        return Life(process, output, before)

    def reset(self) -> None:
        """From nothing again: no outs, no checkpoints, no cache, and servers that know of no run."""
        self.lmworks("down", "--force")
        pristine = self.scratch / "pristine"
        if not pristine.exists():
            self.lmworks("use", NAME)
            self.lmworks("up")  # makes the databases
            self.lmworks("down")
            for home in HOMES:
                shutil.copytree(self.root / home, pristine / home)
        for folder in ("work", ".dvc/cache", *HOMES):
            shutil.rmtree(self.root / folder, ignore_errors=True)
        for home in HOMES:
            shutil.copytree(pristine / home, self.root / home)
        for path in [*(self.root / "data").iterdir(), self.layout.dvc_lock]:
            if not path.is_symlink():  # data/packages is borrowed
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.notes_file.write_text("")
        self.lmworks("up")

    # --- what the notes and the files say ---

    def notes(self) -> list[Note]:
        found = []
        for line in self.notes_file.read_text().splitlines() if self.notes_file.exists() else []:
            place, pid, at_s = line.split()
            name, _, where = place.partition("@")
            found.append(Note(name, where, int(pid), float(at_s)))
        return found

    def done_stages(self) -> set[str]:
        """The stages that DVC has recorded."""
        try:
            return set((yaml.safe_load(self.layout.dvc_lock.read_text()) or {}).get("stages") or {})
        except (OSError, yaml.YAMLError):  # DVC is writing it, or was killed there
            return set()

    def newest_checkpoint(self, stage: str) -> int:
        """The step of the newest checkpoint of a training; 0 without one."""
        return max((int(path.name.removeprefix("step-")) for path in (self.layout.work_root / stage).glob("*/checkpoints/step-*")), default=0)

    def position(self, life: Life) -> tuple[str, int | None]:
        """(stage, step) where a life is: 'start' before its first stage, 'after STAGE' between two, 'release' after the last."""
        where, step = "start", None
        for note in self.notes()[life.notes_before:]:
            if note.name == "stage.start":
                where, step = note.where, None
            elif note.name == "train.step" and where in TRAININGS:
                step = int(note.where)
            elif note.name == "stage.published":
                where, step = "release" if note.where == chain.STAGES[-1].name else f"after {note.where}", None
        return where, step

    def steps(self) -> dict[str, list[int]]:
        """{training: how many steps each of its lives began}, over all lives of this chain."""
        stage_of: dict[int, str] = {}
        counted: dict[str, dict[int, int]] = {stage: {} for stage in TRAININGS}
        for note in self.notes():
            if note.name == "stage.start":
                stage_of[note.pid] = note.where
                if note.where in TRAININGS:
                    counted[note.where][note.pid] = 0
            elif note.name == "train.step":
                counted[stage_of[note.pid]][note.pid] += 1
        return {stage: list(lives.values()) for stage, lives in counted.items()}

    def wait(self, life: Life, reached: Callable[[], bool]) -> bool:
        """Whether `reached` came true before the life ended. Raises TimeoutError for one that hangs."""
        while not reached():
            if life.process.poll() is not None:
                return False
            if time.time() - life.started_s > LIFE_S:
                _kill_all(life.members(), "what hangs")
                raise TimeoutError(f"life {self.lives} hangs; the end of what it said:\n{life.told()[-2000:]}")
            time.sleep(POLL_S)
        return True


# --- killing ---------------------------------------------------------------------------------------

def kill(drilled: Drilled, life: Life, kind: str) -> str:
    """Kill -9 what `kind` says, or what stands in for it; what was killed, in words."""
    members = life.members()
    stage = next((one for one in members if _is_stage(one)), None)
    recorded = {name: entry["pid"] for name, entry in files.read_sealed(drilled.layout.services).items() if name in SERVERS}
    if kind in SERVERS and _lives(recorded.get(kind, -1)):  # at the start of a run it may still be dead from the last kill
        return _kill_all([psutil.Process(recorded[kind])], kind)
    if kind == "stage" and stage is not None:
        return _kill_all([stage], "the stage")
    if kind in ("group", "everything"):
        servers = [one for leader in recorded.values() for one in _session(leader)] if kind == "everything" else []
        return _kill_all([*members, *servers], "the whole run" + (" and both servers" if servers else ""))
    instead = "" if kind == "top" else f" ({kind} did not run)"
    return _kill_all([one for one in members if one.pid == life.process.pid], f"the top process{instead}")


def _lives(pid: int) -> bool:
    with contextlib.suppress(psutil.Error, ValueError):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def _is_stage(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "components.chain" in process.cmdline()
    return False


def _session(leader: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _kill_all(processes: list[psutil.Process], words: str) -> str:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    return words


# --- what is left ------------------------------------------------------------------------------------

def strays(drilled: Drilled) -> list[str]:
    """Processes that work in the checkout and that neither services.json nor one of its servers knows."""
    recorded = files.read_sealed(drilled.layout.services)
    known = {entry["pid"] for entry in recorded.values() if isinstance(entry, dict) and "pid" in entry}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            at_home = process.cwd() == str(drilled.root) or process.cwd().startswith(f"{drilled.root}/")
            if at_home and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE and os.getsid(process.pid) not in known:
                found.append(" ".join(process.cmdline())[:120].replace(str(drilled.root), "CHECKOUT"))
    return found


def hashes(drilled: Drilled) -> dict[str, str]:
    """{file: sha256} of everything below data/ that the chain made, and of dvc.lock."""
    data = drilled.root / "data"
    made = [path for path in sorted(data.rglob("*")) if path.is_file() and not path.is_symlink() and path.relative_to(data).parts[0] != "packages"]
    return {path.relative_to(drilled.root).as_posix(): files.sha256_file(path) for path in [*made, drilled.layout.dvc_lock]}


def leftovers(drilled: Drilled) -> list[str]:
    """Half-written files and markers that the last run should have put away."""
    found: list[Any] = [*drilled.layout.partial.glob("*"), *drilled.layout.unclean.glob("*")]
    for folder in (drilled.root / "data", drilled.layout.state, drilled.layout.work_root):
        found += folder.rglob(".*.partial") if folder.exists() else []
    return sorted({path.relative_to(drilled.root).as_posix() for path in found})
