"""The servers of one checkout: MLflow, Prefect and its worker, on loopback, in the background. What runs: running.py."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from components import files, storage
from components.errors import Busy, UserError
from components.layout import Layout
from components.operations import addresses, environment, half_restored, migrations, rest
from components.operations.processes import (
    HOST,
    POOL,
    PREFECT,
    SERVERS,
    Service,
    choose_port,
    end_orphans,
    free,
    is_command,
    last_lines,
    listens,
    living,
    log_path,
    log_since,
    log_size,
    spawn,
    stop_tree,
)
from components.operations.running import entry_of, mend, ours, process_of, read, record, stop_moved, whole

ROOM_BYTES = 16 * 2**20  # what databases and logs take before anybody can free something
PATIENCE_S = 22  # with one that runs, but has much to do
IN_USE = "address already in use"  # what a server's log says that found its port taken; a long traceback may follow
START_S = 120  # the first start of all migrates a database, on a slow disk too


def quiet(_text: str) -> None:
    """The default for `say`."""


# --- where they are ------------------------------------------------------------------------------

def outside(service: Service, layout: Layout) -> str | None:
    """The address that the environment gives, without Prefect's /api; None if it is that of our own server.

    Raises UserError for one with a password in it: addresses are printed, and stand in model cards. And for one that is no address of
    a server: a database or a folder named there would be made, empty, where it does not exist.
    """
    url = os.environ.get(service.variable, "").strip().rstrip("/")
    if not url:
        return None
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{service.variable} names no server (it is not shown, it may hold a password): an http or https address was expected. lmworks "
                        f"opens no database or folder by a path. Unset {service.variable}, then lmworks uses its own server, or give an address")
    url = url.removesuffix("/api")
    if any(sign in url for sign in "@?#"):
        raise UserError(f"{service.variable} holds a user name, a password or a query. Give the address alone, and the rest in {service.secrets}")
    if service.name == "mlflow" and os.environ.get("MLFLOW_TRACKING_USERNAME") and not os.environ.get("MLFLOW_TRACKING_PASSWORD"):
        raise UserError("MLFLOW_TRACKING_USERNAME is set, MLFLOW_TRACKING_PASSWORD is not, or is empty. Set it, or unset both")
    if reason := addresses.refusal(url):
        raise UserError(f"{service.variable} holds {reason}. Give the address of your {service.name} server, or unset it: lmworks then uses its own")
    own = read(layout).get(service.name)
    return None if own and own.get("url") == url and process_of(own, layout) else url


def address(layout: Layout, service: Service) -> str | None:
    """Where `service` answers: the environment's, else our own if it runs."""
    entry = read(layout).get(service.name)
    return outside(service, layout) or (entry["url"] if process_of(entry, layout) else None)


# --- starting ------------------------------------------------------------------------------------

@dataclass
class _Start:
    service: Service
    process: subprocess.Popen
    port: int
    tried: set[int]
    log_begin: int  # the size of the log before this start, bytes

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"


def _start_servers(layout: Layout, wanted: list[Service], asked: dict[str, int], say: Callable[[str], None]) -> None:
    """All at once, then wait for each. Raises UserError with the end of the log of one that did not come, and Damaged for its database."""
    storage.check_open_files()
    storage.check_room(layout.root, ROOM_BYTES, "a start of the servers, for their databases and logs,")
    for service in wanted:
        migrations.ready(layout, service, say)
    layout.mlruns.mkdir(parents=True, exist_ok=True)
    environment.make_private(layout)
    sticky = read(layout).get("ports", {})

    def begin(service: Service, tried: set[int]) -> _Start:
        port = choose_port(service, asked.get(service.name), sticky.get(service.name), tried)
        log_begin = log_size(layout, service.name)
        return _Start(service, spawn(layout, service.name, port), port, {*tried, port}, log_begin)

    starts: list[_Start] = []
    try:
        for service in wanted:
            starts.append(start := begin(service, set()))
            # recorded before it answers: an interrupted start leaves nothing unknown behind
            record(layout, service.name, entry_of(layout, start.process.pid, start.url), start.port)
        deadline = time.monotonic() + START_S
        waiting = list(starts)
        while waiting:
            for start in list(waiting):
                name = start.service.name
                if start.process.poll() is not None:
                    # who looks whether a port is free holds it for a moment, too: then it is free again, but our server is gone
                    taken = not free(start.port) or IN_USE in log_since(layout, name, start.log_begin)
                    if not taken or len(start.tried) > 5:
                        tight = f" {full}." if (full := storage.tight(layout.root)) else ""
                        raise UserError(f"{name} did not start.{migrations.note(layout, start.service)}{tight} The end of "
                                        f"{log_path(layout, name)}:\n  {last_lines(layout, name)}")
                    again = begin(start.service, start.tried)  # somebody took the port between our look and its bind
                    starts[starts.index(start)] = waiting[waiting.index(start)] = again
                    record(layout, name, entry_of(layout, again.process.pid, again.url), again.port)
                elif rest.healthy(start.url + start.service.health) and listens(start.process.pid, start.port):
                    waiting.remove(start)
                    migrations.done(layout, start.service)
                elif time.monotonic() > deadline:
                    raise UserError(f"{name} (pid {start.process.pid}) does not answer at {start.url} after {START_S} s; see {log_path(layout, name)}")
            time.sleep(0.1)
    except BaseException:
        for start in starts:
            stop_tree(start.process.pid, patience_s=5)
            record(layout, start.service.name, None)
        raise


def _start_worker(layout: Layout) -> None:
    api = rest.Prefect(f"{address(layout, PREFECT)}/api")
    before = _heartbeats(api)
    process = spawn(layout, "worker", prefect_api=api.api)
    record(layout, "worker", entry_of(layout, process.pid, None))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            record(layout, "worker", None)
            raise UserError(f"the worker did not start; the end of {log_path(layout, 'worker')}:\n  {last_lines(layout, 'worker')}")
        if any(heard != before.get(name) for name, heard in _heartbeats(api).items()):
            return
        time.sleep(0.2)
    raise UserError(f"the worker (pid {process.pid}) did not report to Prefect within 60 s; see {log_path(layout, 'worker')}")


def _heartbeats(api: rest.Prefect) -> dict[str, str]:
    """{worker: when it was heard last} of those that are there. Only whether it changes says something: the clock may be set meanwhile (C14)."""
    workers = api.send(f"/work_pools/{POOL}/workers/filter", {"limit": 20})
    return {worker["name"]: worker["last_heartbeat_time"] for worker in workers if worker["status"] == "ONLINE"}


def ensure(layout: Layout, *, prefect: bool = True, mlflow: bool = True, worker: bool = False,
           say: Callable[[str], None] = quiet, ports: dict[str, int] | None = None) -> dict[str, Any]:
    """Start what is wanted and does not run; return {"mlflow": {"url", …}, "prefect": {"url", "api", …}}.

    The worker needs its pool first: flows.deployments makes it. Raises UserError: a server that does not
    start or answer, an asked port that is taken.
    """
    half_restored.refuse(layout)
    if not whole(layout):
        with files.lock(layout.startup_lock, what="the start of the servers", wait_s=START_S):
            mend(layout)
    wanted = [service for service in SERVERS if {"mlflow": mlflow, "prefect": prefect}[service.name]]
    for service in wanted:
        url = address(layout, service) if service.name in (ports or {}) else None
        if url and not url.endswith(f":{ports[service.name]}"):
            raise UserError(f"{service.name} runs already, at {url}; port {ports[service.name]} was asked for. Stop it first: lmworks down")
    # an entry stands before its server answers: who sees one in that time waits at the lock for the process that starts it
    if not _all_run(layout, wanted, worker) or not all(_answers(layout, service) for service in wanted):
        with files.lock(layout.startup_lock, what="the start of the servers", wait_s=START_S):
            worker = "worker" in stop_moved(layout, [*(service.name for service in wanted), *(["worker"] if prefect else [])], say) or worker
            _start_missing(layout, wanted, worker, ports or {}, say)
    addresses: dict[str, Any] = {}
    for service in wanted:
        url = address(layout, service)
        if url is None or not _comes_to_answer(layout, service, url):
            remedy = f"Check {service.variable}" if outside(service, layout) else f"See {log_path(layout, service.name)}; lmworks down --force; lmworks up"
            raise UserError(f"{service.name} {f'does not answer at {url}' if url else 'is gone'}. {remedy}")
        if outside(service, layout):
            addresses[service.name] = {"outside": True, "url": url}
        else:
            _end_migration(layout, service)
            addresses[service.name] = {**read(layout).get(service.name, {}), "url": url}
    if prefect:
        addresses["prefect"]["api"] = addresses["prefect"]["url"] + "/api"
    return addresses


def _start_missing(layout: Layout, wanted: list[Service], worker: bool, ports: dict[str, int], say: Callable[[str], None]) -> None:
    missing = []
    for service in wanted:
        entry = read(layout).get(service.name)
        if not outside(service, layout) and process_of(entry, layout) is None:
            end_orphans(layout, entry)
            missing.append(service)
    names = [service.name for service in missing] + (["worker"] if worker and process_of(read(layout).get("worker"), layout) is None else [])
    for name, unknown in living(layout).items() if names else []:
        if name in names and is_command(unknown, layout, name):  # its starter was killed before it could write it down
            say(f"ending {name} (pid {unknown.pid}): a start of this checkout that was killed left it behind …")
            stop_tree(unknown.pid)
    if missing:
        say(f"starting {' and '.join(service.name for service in missing)} …")
        _start_servers(layout, missing, ports, say)
    if "worker" in names:
        say("starting the worker …")
        _start_worker(layout)


def _end_migration(layout: Layout, service: Service) -> None:
    """For who started the server and was killed before it answered: a copy that stays would be taken for that of a migration that did not end."""
    if migrations.copy_of(layout, service).exists():
        with files.lock(layout.startup_lock, what="the start of the servers", wait_s=START_S):
            if _answers(layout, service):
                migrations.done(layout, service)


def _comes_to_answer(layout: Layout, service: Service, url: str) -> bool:
    """Whether a server answers: soon, or, where the process that started ours did not live to see it, within the time of a start."""
    process = process_of(read(layout).get(service.name), layout)
    if process is None or outside(service, layout):
        return any(rest.healthy(url + service.health, timeout_s=wait_s) for wait_s in (2, 5, 15))
    age_s = time.time() - process.create_time()
    deadline = time.monotonic() + min(START_S, max(PATIENCE_S, START_S - age_s))
    while not rest.healthy(url + service.health, timeout_s=5):
        if time.monotonic() > deadline or process_of(read(layout).get(service.name), layout) is None:
            return False
        time.sleep(0.1)
    return True


def _all_run(layout: Layout, wanted: list[Service], worker: bool) -> bool:
    recorded = read(layout)
    return all(outside(s, layout) or process_of(recorded.get(s.name), layout) for s in wanted) and (
        not worker or process_of(recorded.get("worker"), layout) is not None)


def _answers(layout: Layout, service: Service) -> bool:
    url = address(layout, service)
    return url is not None and rest.healthy(url + service.health)


def prepare(layout: Layout, say: Callable[[str], None] = quiet) -> None:
    """Once, in set-up: one start of both servers makes and migrates their databases, and proves that they start."""
    environment.allow_no_git(layout)
    ran = _all_run(layout, list(SERVERS), worker=False)
    ensure(layout, say=say)
    if not ran:
        down(layout, say=say)


# --- stopping ------------------------------------------------------------------------------------

def down(layout: Layout, force: bool = False, say: Callable[[str], None] = quiet) -> list[str]:
    """Stop the worker and the servers of this checkout; return what was stopped.

    First what is spooled is sent and Prefect has taken in its task runs. Raises Busy during a run, unless forced.
    """
    with files.lock(layout.startup_lock, what="the start of the servers", wait_s=START_S):
        running = files.lock_holder(layout.run_lock)
        if running and not force:
            raise Busy(f"a run goes on in this checkout ({running}). Wait for it, or: lmworks down --force")
        mend(layout)
        recorded, stopped = read(layout), []
        if process_of(recorded.get("mlflow"), layout) and layout.spool.exists():
            from components import tracking

            tracking.drain(layout)
        if process_of(recorded.get("prefect"), layout):
            _drain_prefect(f"{recorded['prefect']['url']}/api")
        for name, patience_s in (("worker", 5), ("prefect", 10), ("mlflow", 10)):
            process = ours(recorded.get(name), layout)
            if process is not None:
                say(f"stopping {name} …")
                stop_tree(process.pid, patience_s)
                stopped.append(name)
            elif name != "worker":  # what a dead worker left is a run that goes on
                end_orphans(layout, recorded.get(name))
            record(layout, name, None)
        return stopped


def _drain_prefect(api_url: str, patience_s: float = 5) -> None:
    """Task runs are events over a websocket: wait until those of ended flow runs have ended too."""
    api, deadline = rest.Prefect(api_url), time.monotonic() + patience_s
    ended = {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}}}
    open_tasks = {"state": {"type": {"any_": ["RUNNING", "PENDING", "SCHEDULED", "CANCELLING"]}}}
    while time.monotonic() < deadline:
        try:
            if api.send("/task_runs/count", {"flow_runs": ended, "task_runs": open_tasks}) == 0:
                return
        except rest.Unreachable:
            return  # it is going away already
        time.sleep(0.2)


if __name__ == "__main__":  # infra/setup.sh: python -m components.operations.services prepare
    import sys

    try:
        prepare(Layout(), say=print)
    except UserError as error:
        sys.exit(f"lmworks: {error}")
