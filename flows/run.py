"""`lmworks run` in this process: servers, lock, the flow, its result. Prefect is imported inside, after its settings are made."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components import files, storage
from components.errors import UserError
from components.layout import Layout
from components.operations import contention, environment, processes, services, unclean
from flows.records import RunResult

if TYPE_CHECKING:
    from flows.tasks import Listener

DELIVER_S = 10
NOT_REPORTED = 5  # exit code of a run that finished, while Prefect's server was away


def execute(layout: Layout, *, from_stage: str | None = None, to_stage: str | None = None, release: bool = True,
            listener: Listener | Any = None, say: Callable[[str], None] = services.quiet) -> RunResult:
    """Run the chain through Prefect and return what happened; nothing of Prefect reaches the terminal.

    `listener` has stage_started(stage, why), line(stage, line) and stage_ended(record); what release says
    comes as lines of the stage 'release'. Where `result.reported` is False (exit code 5 if all was done), end with os._exit:
    Prefect's threads would try to deliver for minutes. Ctrl-C, SIGTERM or a closed terminal: the stage saves its work, the
    flow run ends, and the result says *Stopped*, exit code 130 (143 after SIGTERM). Raises Busy (75) if another run goes on, and
    UserError for what is wrong before the flow begins.
    """
    result = RunResult()
    started_s = time.monotonic()
    storage.check_open_files()
    storage.check_room(layout.root, services.ROOM_BYTES, "a run, for its databases and logs,")
    with files.lock(layout.run_lock, what="lmworks run"):
        addresses = services.ensure(layout, say=say)
        result.seconds["servers"] = time.monotonic() - started_s
        environment.apply(layout, PREFECT_API_URL=addresses["prefect"]["api"], PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL="CRITICAL",
                          PREFECT_INTERNAL_LOGGING_LEVEL="CRITICAL")
        before_s = time.monotonic()
        from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

        from flows import chain, reconciler, tasks

        result.seconds["prefect"] = time.monotonic() - before_s
        result.reconciled = reconciler.reconcile(layout)
        unclean.mark(layout)  # the flow writes its id into it; a kill before that leaves a run of no known id
        with _silence(), _signals() as asked, chain.handed_in(result), tasks.watched_by(listener):
            # no heartbeats: this process marks its own end, and joining their thread costs a second
            with temporary_settings(updates={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
                try:
                    state = chain.chain(from_stage=from_stage, to_stage=to_stage, release=release, return_state=True)
                except KeyboardInterrupt:
                    result.verdict, result.message, result.exit_code = "Stopped", "stopped; the next run goes on from here", asked.exit_code
                except Exception as error:  # noqa: BLE001 - the engine raises httpx's, anyio's and its own when its server goes away
                    not_reported(result, error, layout)
                else:
                    result.flow_run = f"{addresses['prefect']['url']}/runs/flow-run/{state.state_details.flow_run_id}"
                    if not state.is_completed() and not result.message:  # an error of our own: its name is what we know
                        result.verdict, result.message = "Failed", state.message or state.name
    result.seconds["total"] = time.monotonic() - started_s
    result.seconds["stages"] = sum(record.work_s for record in result.stages)  # their own work, without DVC and process starts
    result.seconds["platform"] = max(0.0, result.seconds["total"] - sum(result.seconds.get(part, 0.0) for part in ("stages", "release", "sources")))
    return result


def deliver() -> None:
    """Wait (bounded) until Prefect's server has every log line and event of this process."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=DELIVER_S)


def not_reported(result: RunResult, error: Exception, layout: Layout) -> None:
    """The flow could not end in Prefect. What the stages and the release did stands; the next start tells Prefect (F3)."""
    finished = result.exit_code == 0
    why = (contention.advice(layout, processes.PREFECT) or
           f"Prefect's server went away or refused a call ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
    if full := storage.tight(layout.root):
        why = f"{why}; {full}"
    if finished:
        with contextlib.suppress(UserError):  # for the reconciler, which would take the run for a crashed one
            for path in layout.unclean.glob(f"run-{os.getpid()}.json"):
                unclean.mark(layout, flow_run_id=unclean.read(path).get("flow_run_id"), verdict=result.verdict, message=result.message)
        result.message = f"{result.message}; finished, not reported: {why}. The next `lmworks up` or `lmworks run` tells Prefect"
        result.exit_code = NOT_REPORTED
    elif result.message:  # why it failed was known by then
        result.message = f"{result.message}; not reported: {why}"
    else:
        result.verdict = "Failed"
        result.message = f"{why}. Finished stages stay. See `lmworks status`, then run again: lmworks run"
    result.reported = False


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Log lines that Prefect cannot deliver (its server was stopped) are no news for the terminal."""
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = before


@dataclass
class Asked:
    """Which signal asked the run to stop."""

    exit_code: int = 130  # Ctrl-C, a closed terminal; 143 after SIGTERM


@contextlib.contextmanager
def _signals() -> Iterator[Asked]:
    """SIGTERM and a closed terminal (unless under nohup) end the run as Ctrl-C does: the stage saves, the flow run is closed."""
    asked = Asked()

    def stop(signum: int, _frame: object) -> None:
        asked.exit_code = 143 if signum == signal.SIGTERM else 130
        raise KeyboardInterrupt

    wanted = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in wanted}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
