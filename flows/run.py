"""`lmworks run` in this process: servers, lock, the flow, its result. Prefect is imported inside, after its settings are made."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from components import files
from components.layout import Layout
from components.operations import environment, services
from flows.records import RunResult

if TYPE_CHECKING:
    from flows.tasks import Listener

DELIVER_S = 10


def execute(layout: Layout, *, from_stage: str | None = None, to_stage: str | None = None, release: bool = True,
            listener: Listener | Any = None, say: Callable[[str], None] = services.quiet) -> RunResult:
    """Run the chain through Prefect and return what happened; nothing of Prefect reaches the terminal.

    `listener` has stage_started(stage, why), line(stage, line) and stage_ended(record); what release says
    comes as lines of the stage 'release'. Where `result.reported` is False, end with os._exit: Prefect's threads would try to
    deliver for minutes. Ctrl-C, SIGTERM or a closed terminal: the stage saves its work, the
    flow run ends, and the result says *Stopped*, exit code 130. Raises Busy (75) if another run goes on, and
    UserError for what is wrong before the flow begins.
    """
    result = RunResult()
    started_s = time.monotonic()
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
        with _silence(), _signals(), chain.handed_in(result), tasks.watched_by(listener):
            # no heartbeats: this process marks its own end, and joining their thread costs a second
            with temporary_settings(updates={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
                try:
                    state = chain.chain(from_stage=from_stage, to_stage=to_stage, release=release, return_state=True)
                except KeyboardInterrupt:
                    result.verdict, result.message, result.exit_code = "Stopped", "stopped; the next run goes on from here", 130
                except Exception as error:  # noqa: BLE001 - the engine raises httpx's, anyio's and its own when its server goes away
                    not_reported(result, error)
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


def not_reported(result: RunResult, error: Exception) -> None:
    """The flow could not end in Prefect. What the stages and the release did stands; the next start closes the flow run (F3)."""
    finished = f"{result.message}; but " if result.exit_code == 0 else ""
    result.verdict = result.verdict if result.exit_code == 0 else "Failed"
    result.message = (f"{finished}Prefect's server went away or refused a call ({type(error).__name__}: {' '.join(str(error).split())[:200]}). "
                      "Finished stages stay. See `lmworks status`, then run again: lmworks run")
    result.exit_code, result.reported = 1, False


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Log lines that Prefect cannot deliver (its server was stopped) are no news for the terminal."""
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = before


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and a closed terminal (unless under nohup) end the run as Ctrl-C does: the stage saves, the flow run is closed."""
    def stop(_signum: int, _frame: object) -> None:
        raise KeyboardInterrupt

    wanted = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
