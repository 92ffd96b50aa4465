"""The servers of one checkout: MLflow, Prefect and its worker, on loopback, in the background.

`.lmworks/services.json` says what runs: {"mlflow": {"url", "pid", "started", "root"}, "prefect": …,
"worker": …, "ports": {…}}. An entry counts only if pid, start time and folder match, so a reused pid
or a copied checkout is never taken for a server of ours.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from components import files
from components.errors import Busy, UserError
from components.layout import Layout
from components.operations import environment, rest

HOST = "127.0.0.1"
POOL = "lmworks"  # Prefect's work pool, and the worker's name
START_S = 120  # the first start of all migrates a database, on a slow disk too
MAX_LOG_BYTES = 20 * 2**20


@dataclass(frozen=True)
class Service:
    """One server: where it is looked for first, how its health is asked, who may stand in for it."""

    name: str
    first_port: int
    health: str
    variable: str  # with an address in it, that server is used and none is started


MLFLOW = Service("mlflow", 5311, "/health", "MLFLOW_TRACKING_URI")
PREFECT = Service("prefect", 4311, "/api/health", "PREFECT_API_URL")
SERVERS = (MLFLOW, PREFECT)


def quiet(_text: str) -> None:
    """The default for `say`."""


# --- what is recorded ----------------------------------------------------------------------------

def read(layout: Layout) -> dict[str, Any]:
    """services.json, or {} (a damaged file is worth no more than none: the servers are asked anyway)."""
    try:
        recorded = files.read_json(layout.services)
    except (FileNotFoundError, UserError):
        return {}
    return recorded if isinstance(recorded, dict) else {}


def process_of(entry: Any, layout: Layout) -> psutil.Process | None:
    """The live process that `entry` describes, if it is this checkout's."""
    process = _same_process(entry)
    return process if process and entry.get("root") == str(layout.root) else None


def _same_process(entry: Any) -> psutil.Process | None:
    try:
        process = psutil.Process(int(entry["pid"]))
        same = abs(process.create_time() - float(entry["started"])) < 0.05
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, KeyError, TypeError, ValueError):
        return None


def _moved(entry: Any, layout: Layout) -> psutil.Process | None:
    """A server that was started before this checkout was moved: it still writes to the old path."""
    process = _same_process(entry)
    try:
        return process if process and entry.get("root") != str(layout.root) and process.cwd() == str(layout.root) else None
    except psutil.Error:
        return None


def outside(service: Service) -> str | None:
    """The address that the environment gives, without Prefect's /api."""
    url = os.environ.get(service.variable, "").strip().rstrip("/")
    return url.removesuffix("/api") if url.startswith(("http://", "https://")) else None


def address(layout: Layout, service: Service) -> str | None:
    """Where `service` answers: the environment's, else our own if it runs."""
    entry = read(layout).get(service.name)
    return outside(service) or (entry["url"] if process_of(entry, layout) else None)


# --- ports ---------------------------------------------------------------------------------------

def _free(port: int) -> bool:
    """Decided by binding; SO_REUSEADDR as the servers set it, so a port just left counts as free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def holder_of_port(port: int) -> str:
    """Who listens there, in words."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                process = psutil.Process(connection.pid)
                return f"{process.name()} (pid {process.pid}: {' '.join(process.cmdline())[:80]})"
    except psutil.Error:
        pass
    return "a process of another user"


def _choose_port(service: Service, asked: int | None, sticky: int | None, tried: set[int]) -> int:
    if asked is not None:
        if asked in tried or not _free(asked):
            raise UserError(f"port {asked}, asked for {service.name}, is taken by {holder_of_port(asked)}. "
                            f"Stop it, or ask for another port")
        return asked
    for port in [*([sticky] if sticky else []), *range(service.first_port, service.first_port + 200)]:
        if port not in tried and _free(port):
            return port
    raise UserError(f"no free port for {service.name} between {service.first_port} and {service.first_port + 199}. Close some programs, then run again")


# --- starting ------------------------------------------------------------------------------------

def _command(layout: Layout, name: str, port: int) -> list[str]:
    python = [environment.python(layout), "-m"]  # not bin/mlflow: a moved or deep checkout breaks its first line
    if name == "mlflow":
        return [*python, "mlflow", "server", "--backend-store-uri", "sqlite:///mlruns/mlflow.db", "--artifacts-destination", "mlruns/artifacts",
                "--host", HOST, "--port", str(port), "--workers", "1", "--allowed-hosts", f"localhost:{port},{HOST}:{port}",
                "--uvicorn-opts", "--log-level warning --no-access-log"]
    if name == "prefect":
        return [*python, "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    return [*python, "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", POOL]


def _environment(layout: Layout, name: str, port: int) -> dict[str, str]:
    env = environment.child(layout)
    if name == "mlflow":
        env["PYTHONWARNINGS"] = "ignore:starlette.middleware.wsgi is deprecated"
        env.pop("MLFLOW_TRACKING_URI", None)
    if name == "prefect":
        origins = f"http://{HOST}:{port},http://localhost:{port}"
        env |= {"PREFECT_API_URL": f"http://{HOST}:{port}/api", "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": origins,
                "PREFECT_SERVER_LOGGING_LEVEL": "WARNING"}
    if name == "worker":
        env |= {"PREFECT_API_URL": f"{address(layout, PREFECT)}/api", "PREFECT_WORKER_QUERY_SECONDS": "2"}
    return env


def log_path(layout: Layout, name: str) -> Path:
    return layout.logs / f"{name}.log"


def _spawn(layout: Layout, name: str, port: int) -> subprocess.Popen:
    """A session of its own: it outlives the caller, its Ctrl-C and its terminal."""
    path = log_path(layout, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    with open(path, "ab") as log:
        return subprocess.Popen(_command(layout, name, port), cwd=layout.root, env=_environment(layout, name, port), stdin=subprocess.DEVNULL,
                                stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def _last_lines(layout: Layout, name: str, count: int = 6) -> str:
    lines = [line for line in log_path(layout, name).read_text(errors="replace").splitlines() if line.strip()]
    return "\n  ".join(lines[-count:])


def _entry(layout: Layout, pid: int, url: str | None) -> dict[str, Any]:
    entry = {"pid": pid, "started": psutil.Process(pid).create_time(), "root": str(layout.root)}
    return entry | ({"url": url} if url else {})


def _record(layout: Layout, name: str, entry: dict[str, Any] | None, port: int | None = None) -> None:
    recorded = read(layout)
    recorded.pop(name, None)
    if entry:
        recorded[name] = entry
    if port:
        recorded.setdefault("ports", {})[name] = port
    files.write_json(layout.services, recorded)


@dataclass
class _Start:
    service: Service
    process: subprocess.Popen
    port: int
    tried: set[int]

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"


def _start_servers(layout: Layout, wanted: list[Service], asked: dict[str, int]) -> None:
    """All at once, then wait for each. Raises UserError with the end of the log of one that did not come."""
    layout.mlruns.mkdir(parents=True, exist_ok=True)
    layout.prefect_home.mkdir(parents=True, exist_ok=True)
    sticky = read(layout).get("ports", {})

    def spawn(service: Service, tried: set[int]) -> _Start:
        port = _choose_port(service, asked.get(service.name), sticky.get(service.name), tried)
        return _Start(service, _spawn(layout, service.name, port), port, {*tried, port})

    starts = []
    try:
        starts = [spawn(service, set()) for service in wanted]
        for start in starts:  # recorded before they answer: an interrupted start leaves nothing unknown behind
            _record(layout, start.service.name, _entry(layout, start.process.pid, start.url), start.port)
        deadline = time.monotonic() + START_S
        waiting = list(starts)
        while waiting:
            for start in list(waiting):
                name = start.service.name
                if start.process.poll() is not None:
                    if "already in use" not in _last_lines(layout, name, 20) or len(start.tried) > 5:
                        raise UserError(f"{name} did not start; the end of {log_path(layout, name)}:\n  {_last_lines(layout, name)}")
                    again = spawn(start.service, start.tried)  # somebody took the port between our look and its bind
                    start.process, start.port, start.tried = again.process, again.port, again.tried
                    _record(layout, name, _entry(layout, start.process.pid, start.url), start.port)
                elif rest.healthy(start.url + start.service.health):
                    waiting.remove(start)
                elif time.monotonic() > deadline:
                    raise UserError(f"{name} (pid {start.process.pid}) does not answer at {start.url} after {START_S} s; see {log_path(layout, name)}")
            time.sleep(0.1)
    except BaseException:
        for start in starts:
            _stop_tree(start.process.pid, patience_s=5)
            _record(layout, start.service.name, None)
        raise


def _start_worker(layout: Layout) -> None:
    process = _spawn(layout, "worker", 0)
    _record(layout, "worker", _entry(layout, process.pid, None))
    api = rest.Prefect(f"{address(layout, PREFECT)}/api")
    started_s, deadline = time.time(), time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            _record(layout, "worker", None)
            raise UserError(f"the worker did not start; the end of {log_path(layout, 'worker')}:\n  {_last_lines(layout, 'worker')}")
        workers = api.send(f"/work_pools/{POOL}/workers/filter", {"limit": 20})
        if any(worker["status"] == "ONLINE" and _heard_since(worker, started_s) for worker in workers):
            return
        time.sleep(0.2)
    raise UserError(f"the worker (pid {process.pid}) did not report to Prefect within 60 s; see {log_path(layout, 'worker')}")


def _heard_since(worker: dict[str, Any], moment_s: float) -> bool:
    from datetime import datetime

    return datetime.fromisoformat(worker["last_heartbeat_time"].replace("Z", "+00:00")).timestamp() >= moment_s - 0.5


def ensure(layout: Layout, *, prefect: bool = True, mlflow: bool = True, worker: bool = False,
           say: Callable[[str], None] = quiet, ports: dict[str, int] | None = None) -> dict[str, Any]:
    """Start what is wanted and does not run; return {"mlflow": {"url", …}, "prefect": {"url", "api", …}}.

    The worker needs its pool first: flows.deployments makes it. Raises UserError: a server that does not
    start or answer, an asked port that is taken.
    """
    wanted = [service for service in SERVERS if {"mlflow": mlflow, "prefect": prefect}[service.name]]
    if not _all_run(layout, wanted, worker):
        with files.lock(layout.startup_lock, what="the start of the servers", wait_s=START_S):
            missing = []
            for service in wanted:
                entry = read(layout).get(service.name)
                if (old := _moved(entry, layout)) is not None:
                    say(f"{service.name} was started before this checkout was moved: starting it again")
                    _stop_tree(old.pid)
                if not outside(service) and process_of(entry, layout) is None:
                    missing.append(service)
            if missing:
                say(f"starting {' and '.join(service.name for service in missing)} …")
                _start_servers(layout, missing, ports or {})
            if worker and process_of(read(layout).get("worker"), layout) is None:
                _start_worker(layout)
    addresses: dict[str, Any] = {}
    for service in wanted:
        url = address(layout, service)
        if url is None or not any(rest.healthy(url + service.health, timeout_s=wait_s) for wait_s in (2, 5, 15)):
            remedy = f"Check {service.variable}" if outside(service) else f"See {log_path(layout, service.name)}; lmworks down --force; lmworks up"
            raise UserError(f"{service.name} does not answer at {url}. {remedy}")
        entry = read(layout).get(service.name, {}) if not outside(service) else {"outside": True}
        addresses[service.name] = {**entry, "url": url}
    if prefect:
        addresses["prefect"]["api"] = addresses["prefect"]["url"] + "/api"
    return addresses


def _all_run(layout: Layout, wanted: list[Service], worker: bool) -> bool:
    recorded = read(layout)
    return all(outside(s) or process_of(recorded.get(s.name), layout) for s in wanted) and (
        not worker or process_of(recorded.get("worker"), layout) is not None)


def prepare(layout: Layout, say: Callable[[str], None] = quiet) -> None:
    """Once, in set-up: one start of both servers makes and migrates their databases, and proves that they start."""
    environment.allow_no_git(layout)
    ran = _all_run(layout, list(SERVERS), worker=False)
    ensure(layout, say=say)
    if not ran:
        down(layout, say=say)


# --- stopping ------------------------------------------------------------------------------------

def _stop_tree(pid: int, patience_s: float = 10) -> None:
    """TERM to the process and everything below it, KILL to what is left after `patience_s`."""
    try:
        parent = psutil.Process(pid)
        tree = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for action, wait_s in ((psutil.Process.terminate, patience_s), (psutil.Process.kill, 5)):
        for process in tree:
            try:
                action(process)
            except psutil.NoSuchProcess:
                pass
        tree = psutil.wait_procs(tree, timeout=wait_s)[1]
        if not tree:
            return


def holder(path: Path) -> str | None:
    """Who holds a lock of ours, as the holder wrote it; None if nobody does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
    finally:
        os.close(fd)


def down(layout: Layout, force: bool = False, say: Callable[[str], None] = quiet) -> list[str]:
    """Stop the worker and the servers of this checkout; return what was stopped.

    First what is spooled is sent and Prefect has taken in its task runs. Raises Busy during a run, unless forced.
    """
    with files.lock(layout.startup_lock, what="the start of the servers", wait_s=START_S):
        running = holder(layout.run_lock)
        if running and not force:
            raise Busy(f"a run goes on in this checkout ({running}). Wait for it, or: lmworks down --force")
        recorded, stopped = read(layout), []
        if process_of(recorded.get("mlflow"), layout) and layout.spool.exists():
            from components import tracking

            tracking.drain(layout)
        if process_of(recorded.get("prefect"), layout):
            _drain_prefect(f"{recorded['prefect']['url']}/api")
        for name, patience_s in (("worker", 5), ("prefect", 10), ("mlflow", 10)):
            process = process_of(recorded.get(name), layout)
            if process is not None:
                say(f"stopping {name} …")
                _stop_tree(process.pid, patience_s)
                stopped.append(name)
            _record(layout, name, None)
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


# --- telling -------------------------------------------------------------------------------------

def state(layout: Layout) -> dict[str, Any]:
    """What runs here, for people and machines: {"services": {name: {...}}, "run": holder or None, "unclean": n, "unsent": n}."""
    recorded, told = read(layout), {}
    for name, service in (("mlflow", MLFLOW), ("prefect", PREFECT), ("worker", None)):
        url = outside(service) if service else None
        process = process_of(recorded.get(name), layout)
        if url:
            told[name] = {"state": "up" if rest.healthy(url + service.health) else "not answering", "url": url, "outside": True}
        elif process is None:
            told[name] = {"state": "down"}
        else:
            own = recorded[name].get("url")
            answers = service is None or rest.healthy(own + service.health)
            told[name] = {"state": "up" if answers else "not answering", "pid": process.pid, "memory_mb": _memory_mb(process),
                          "since_s": round(time.time() - process.create_time()), "log": str(log_path(layout, name).relative_to(layout.root))}
            told[name] |= {"url": own} if own else {}
    spooled = [path for path in layout.spool.rglob("*") if path.is_file()] if layout.spool.exists() else []
    unclean = [path for path in layout.unclean.glob("*.json") if _marker_is_dead(path)] if layout.unclean.exists() else []
    return {"services": told, "run": holder(layout.run_lock), "stage": holder(layout.stage_lock), "unclean": len(unclean), "unsent": len(spooled)}


def _marker_is_dead(path: Path) -> bool:
    from components.operations import unclean

    return not unclean.alive(path)


def _memory_mb(process: psutil.Process) -> int:
    """Proportional memory (PSS) of the process and its children."""
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            total += getattr(one.memory_full_info(), "pss", 0)
    except psutil.Error:
        pass
    return round(total / 2**20)
