"""One Prefect task a stage: ask DVC whether it is stale; if so run it as a child and pass its words on."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shlex
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
from prefect import task
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed, State

from components import config as settings
from components import files, masking, storage, tracking
from components.errors import UserError
from components.layout import Layout
from components.operations import addresses, environment, healing, liveness, lock_file, recorded, staleness
from flows import naming
from flows.records import StageRecord, in_words

KILL_AFTER_S = 20  # between TERM and KILL: a stage saves a checkpoint
LOG_PROGRESS_EVERY_S = 10
LAST_LINES = 20
# what DVC says about itself; the stage's own lines are what people came for
NOISE = re.compile(r"^(Running stage '|> |Generating lock file|Updating lock file|Use `dvc push`|To track the changes|\s*git add |"
                   r"Stage '.*' didn't change|Data and pipelines are up to date|To enable auto staging|\s*dvc config core\.autostage|"
                   r"ERROR: failed to reproduce '.*': failed to run: |Verifying data sources|WARNING: '.*' is empty\.$|Having any troubles\?|\s*$)")
RESTORED = re.compile(r"^Stage '.*' is cached - skipping run")
EXITED = re.compile(r"^ERROR: failed to reproduce '.*exited with (-?\d+)$")
DISK = (*storage.FULL, errno.EROFS)  # what is true of the whole disk, whichever file it was
PROGRESS = re.compile(r"^\S+ (\d+)/(\d+)\b")
# looked up before any fork: between fork and exec nothing may be imported or loaded, other threads may hold those locks
_PRCTL = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
PR_SET_PDEATHSIG = 1


class Listener:
    """Who watches the run in this process: the terminal of `lmworks run`; nobody (this class) in a worker."""

    def stage_started(self, stage: str, why: list[str]) -> None:
        """A stale stage is about to run."""

    def line(self, stage: str, line: str) -> None:
        """One line of its output."""

    def stage_ended(self, record: StageRecord) -> None:
        """It ended, or was found fresh."""


_listener = Listener()


def listener() -> Listener:
    return _listener


@contextlib.contextmanager
def watched_by(watcher: Listener | None) -> Iterator[None]:
    """Send lines and records of the stages run inside to `watcher`."""
    global _listener
    before, _listener = _listener, watcher or Listener()
    try:
        yield
    finally:
        _listener = before


def _die_with_parent() -> None:
    """In the child, before exec: TERM when the flow's process dies, kill -9 included (Linux)."""
    if _PRCTL is not None:
        _PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)


def _members(group: int) -> list[psutil.Process]:
    """Live (not zombie) processes of a process group. A group can outlive its first process."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, ProcessLookupError):
            continue
    return found


def end_group(group: int, patience_s: float = KILL_AFTER_S) -> None:
    """TERM, wait until no live process of the group is left, KILL after `patience_s` (a second Ctrl-C: at once)."""
    if not _members(group):
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    try:
        while _members(group) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        if _members(group):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


def command(layout: Layout, name: str) -> list[str]:
    return [environment.python(layout), "-m", "dvc", "--wait-for-lock", "repro", "--single-item", name]


@dataclass
class Ended:
    """How the child ended."""

    dvc_code: int = 0
    stage_code: int | None = None  # as DVC names it; negative: by a signal
    last: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    restored: bool = False  # DVC had the result and ran nothing


def run_child(layout: Layout, name: str, log: Callable[[str], None]) -> Ended:
    """Run one stage through DVC, every line to the listener and to `log`.

    Whatever ends this call early — Ctrl-C, a time-out, a cancelled run — ends the whole group first.
    """
    ended, logged_s = Ended(), 0.0
    env = {key: value for key, value in environment.child(layout).items() if key not in addresses.SECRETS} | naming.told_to_stages(layout)
    env[liveness.RUN] = f"{os.getpid()}:{liveness.started(os.getpid())}"
    child = subprocess.Popen(command(layout, name), cwd=layout.root, env=env, stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace",
                             process_group=0, preexec_fn=_die_with_parent)
    assert child.stdout is not None
    try:
        for raw in child.stdout:
            line = masking.masked(raw.rstrip())  # Prefect keeps it
            ended.restored = ended.restored or RESTORED.match(line) is not None
            if exited := EXITED.match(line):
                ended.stage_code = int(exited[1])
            if NOISE.match(line) or RESTORED.match(line):
                continue
            _listener.line(name, line)
            progress = PROGRESS.match(line)
            if progress:
                # the terminal draws every one; the stored log keeps one each ten seconds, and the last
                if progress[1] != progress[2] and time.monotonic() - logged_s < LOG_PROGRESS_EVERY_S:
                    continue
                logged_s = time.monotonic()
            else:
                ended.last.append(line)
            log(line)
        ended.dvc_code = child.wait()
        return ended
    finally:
        end_group(child.pid)
        child.stdout.close()
        child.wait()


def outcome(layout: Layout, name: str) -> dict[str, Any]:
    """What the stage's own process wrote when it ended ({} if it never got there)."""
    try:
        return files.read_sealed(layout.outcomes / f"{name}.json")
    except (FileNotFoundError, UserError):
        return {}


def summary_of(layout: Layout, name: str) -> dict[str, Any]:
    """The report that the stage published with its first out."""
    entry = (files.load_yaml(layout.dvc_yaml) or {})["stages"][name]
    for out in entry.get("outs", []):
        path = layout.root / (out if isinstance(out, str) else next(iter(out))) / "summary.json"
        if path.exists():
            return files.read_json(path)
    return {}


def _words(ended: Ended, told: dict[str, Any]) -> str:
    """Why the stage failed: its own words, else how it died, else the last it said."""
    if told.get("message"):
        return str(told["message"])
    if ended.stage_code is not None and ended.stage_code < 0:
        name = signal.Signals(-ended.stage_code).name
        return f"it was ended by {name}" + ("; mostly that is the kernel, out of memory: use smaller batches, or free memory" if name == "SIGKILL" else "")
    root = Layout().root
    disk = (storage.said(line, root) for line in ended.last if storage.number_in(line) in DISK)
    if full := next((line for line in ended.last if "no space in " in line), None) or next(disk, None) or storage.tight(root):
        return full  # a disk that took no outcome either, or DVC's own word for it
    if named := next((line for line in ended.last if storage.number_in(line)), None):
        return named  # it says of which file; we do not know
    return ended.last[-1] if ended.last else f"DVC ended with exit code {ended.dvc_code} and without a word"


def _failed(record: StageRecord, ended: Ended, told: dict[str, Any], log: Callable[[str], None]) -> State:
    record.state, record.exit_code, record.message = "failed", int(told.get("exit_code") or 1), _words(ended, told)
    record.last_lines = list(ended.last)
    log(f"{record.stage}: {record.message}")
    _listener.stage_ended(record)
    return Failed(name="Blocked" if record.exit_code == 3 else "Failed", message=in_words(record), data=record)


def carried(state: State) -> Any:
    """The value or the exception that a state holds; Prefect wraps it on the way."""
    return getattr(state.data, "result", state.data)


def _only_where_it_helps(_task: Any, _run: Any, state: State) -> bool:
    """Bad input, blocked data and damaged bytes are the same at the next try."""
    record = carried(state)
    return not (isinstance(record, StageRecord) and record.exit_code in (2, 3, 4, 75, 130, 143))


def _run(record: StageRecord, layout: Layout, log: Callable[[str], None]) -> tuple[Ended, dict[str, Any]]:
    """The stage as a child. Returns how it ended, and what it wrote of that itself."""
    log(f"$ {shlex.join(command(layout, record.stage)[1:])}")
    (layout.outcomes / f"{record.stage}.json").unlink(missing_ok=True)  # of an earlier run
    ended = run_child(layout, record.stage, log)
    with contextlib.suppress(OSError):  # a full disk, too: what the stage says of itself is the news
        if tracking.close_dead(layout):  # a training that was killed could not say so itself
            tracking.drain(layout)
    if not ended.dvc_code:
        recorded.drop_recorded(layout)
    told = outcome(layout, record.stage)
    record.work_s += told.get("elapsed_s", 0.0)
    return ended, told


def _dvc_failed(ended: Ended, told: dict[str, Any]) -> bool:
    """Whether DVC itself ended with an error, before its stage or behind it: mostly its memory or its run cache is damaged. Not by a full disk."""
    return bool(ended.dvc_code) and not told.get("exit_code") and not ended.stage_code and not any(storage.number_in(line) for line in ended.last)


def _heal(record: StageRecord, layout: Layout, damaged: list[str], log: Callable[[str], None]) -> bool:
    """Bring damaged outs back from the cache. Returns whether that was enough, or the stage must run again."""
    record.state, record.why = "healed", damaged
    for line in damaged:
        log(f"{record.stage}: {line}; healing")
    return healing.mend(layout, record.stage) and not staleness.why(layout, record.stage)


def _done(record: StageRecord, layout: Layout, name: str | None, message: str) -> State:
    record.summary = summary_of(layout, record.stage)
    _listener.stage_ended(record)
    return Completed(name=name, message=message, data=record)


@task(task_run_name="{name}", persist_result=False, retry_condition_fn=_only_where_it_helps)
def run_stage_task(name: str) -> State:
    """One stage. Its state: *Cached* if fresh, *Restored* if DVC had it, *Healed* if its damaged outs are whole again, else
    Completed; Failed (*Blocked*)."""
    layout, logger = Layout(), get_run_logger()
    record = StageRecord(name, why=staleness.why(layout, name))
    # a stage that must run makes its outs anew; of any other every byte is hashed before something leans on it
    damaged = healing.damage(layout, name) if staleness.outputs_alone(record.why) else []
    if record.why and not damaged and staleness.outputs_changed(record.why):  # DVC says so of whole outputs: its memory of them may be wrong
        staleness.forget(layout)
        record.why = staleness.why(layout, name)
    if not record.why and not damaged and (wrong := lock_file.wrong(layout, [name])):
        logger.warning("%s: %s; healing", name, wrong)
        lock_file.record_again(layout, name)
        record.state, record.why = "healed", [wrong]
        return _done(record, layout, "Healed", f"dvc.lock was written anew: {wrong}")
    if not record.why and not damaged:
        record.state = "cached"
        logger.info("%s is fresh: DVC finds its code, inputs and settings unchanged", name)
        return _done(record, layout, "Cached", "code, inputs and settings are unchanged")
    _listener.stage_started(name, damaged or record.why)
    started_s = time.monotonic()
    try:
        if damaged and _heal(record, layout, damaged, logger.warning):
            return _done(record, layout, "Healed", f"brought back from DVC's cache: {damaged[0]}")
        for reason in record.why:
            logger.info("%s runs: %s", name, reason)
        ended, told = _run(record, layout, logger.info)
        if _dvc_failed(ended, told):
            logger.warning("%s: DVC failed, not the stage (%s). What it remembers is dropped, then it is asked once more", name, _words(ended, told))
            staleness.drop_damaged_runs(healing.objects_folder(layout).parent.parent)
            staleness.forget(layout)
            ended, told = _run(record, layout, logger.info)
        if ended.restored and (bad := healing.damage(layout, name)):  # DVC does not look at what its cache holds
            _heal(record, layout, bad, logger.warning)
            ended, told = _run(record, layout, logger.info)
        if ended.restored and not ended.dvc_code and (wrong := lock_file.wrong(layout, [name], ("outs",))):  # its run cache said so
            logger.warning("%s: %s; written anew", name, wrong)
            lock_file.record_again(layout, name)
    finally:
        record.elapsed_s = round(time.monotonic() - started_s, 3)
    if ended.dvc_code or told.get("exit_code"):
        return _failed(record, ended, told, logger.error)
    if record.state == "healed":
        return _done(record, layout, "Healed", f"made again: {record.why[0]}")
    if ended.restored:
        record.state = "restored"
        return _done(record, layout, "Restored", "DVC's run cache held this result")
    record.state = "ran"
    return _done(record, layout, None, f"{record.elapsed_s:.1f} s; {record.why[0]}")


def run_stage(name: str, config: settings.Config) -> StageRecord:
    """The task with the retries and the time-out of the configuration, called from a flow."""
    retries = config.operations.fetch_retries if name == "fetch" else 0
    configured = run_stage_task.with_options(retries=retries, retry_delay_seconds=[5, 20, 60], retry_jitter_factor=0.5,
                                             timeout_seconds=config.operations.stage_timeout_s)
    started_s = time.monotonic()
    state = configured(name, return_state=True)
    record = carried(state)
    if not isinstance(record, StageRecord):  # a time-out or an error of our own: Prefect made the state
        message = state.message or state.name or "it failed"
        if state.name == "TimedOut":
            message = f"longer than operations.stage_timeout_s={config.operations.stage_timeout_s} s, so it was ended. Raise that, or make the stage smaller"
        exit_code = record.exit_code if isinstance(record, UserError) else 1
        record = StageRecord(name, "failed", elapsed_s=round(time.monotonic() - started_s, 3), message=str(record) if exit_code > 1 else message, exit_code=exit_code)
        _listener.stage_ended(record)
    return record
