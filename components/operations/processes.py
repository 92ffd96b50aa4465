"""How one server is started, found and ended: its port, command line, environment, log and process tree."""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from components.errors import UserError
from components.layout import Layout
from components.operations import environment, liveness

HOST = "127.0.0.1"
POOL = "lmworks"  # Prefect's work pool, and the worker's name
MAX_LOG_BYTES = 20 * 2**20
MLFLOW_STORES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_BACKEND_STORE_URI", "MLFLOW_REGISTRY_STORE_URI")
PREFECT_DATABASES = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")


@dataclass(frozen=True)
class Service:
    """One server: where it is looked for first, how its health is asked, who may stand in for it."""

    name: str
    first_port: int
    health: str
    variable: str  # with an address in it, that server is used and none is started
    secrets: str  # the variables of who may enter there


MLFLOW = Service("mlflow", 5311, "/health", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
PREFECT = Service("prefect", 4311, "/api/health", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING")
SERVERS = (MLFLOW, PREFECT)


def free(port: int) -> bool:
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


def listens(pid: int, port: int) -> bool:
    """Whether the process, or one below it, is the one that answers at `port` (two checkouts may start at once)."""
    try:
        parent = psutil.Process(pid)
        return any(connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
                   for process in (parent, *parent.children(recursive=True)) for connection in process.net_connections("tcp"))
    except psutil.Error:
        return False


def choose_port(service: Service, asked: int | None, sticky: int | None, tried: set[int]) -> int:
    if asked is not None:
        if asked in tried or not free(asked):
            raise UserError(f"port {asked}, asked for {service.name}, is taken by {holder_of_port(asked)}. "
                            f"Stop it, or ask for another port")
        return asked
    for port in [*([sticky] if sticky else []), *range(service.first_port, service.first_port + 200)]:
        if port not in tried and free(port):
            return port
    raise UserError(f"no free port for {service.name} between {service.first_port} and {service.first_port + 199}. Close some programs, then run again")


def command(layout: Layout, name: str, port: int) -> list[str]:
    python = [environment.python(layout), "-m"]  # not bin/mlflow: a moved or deep checkout breaks its first line
    if name == "mlflow":
        return [*python, "mlflow", "server", "--backend-store-uri", "sqlite:///mlruns/mlflow.db", "--artifacts-destination", "mlruns/artifacts",
                "--host", HOST, "--port", str(port), "--workers", "1", "--allowed-hosts", f"localhost:{port},{HOST}:{port}",
                "--uvicorn-opts", "--log-level warning --no-access-log"]
    if name == "prefect":
        return [*python, "flows.prefect_server", "--host", HOST, "--port", str(port)]
    return [*python, "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", POOL]


def environment_of(layout: Layout, name: str, port: int, prefect_api: str) -> dict[str, str]:
    env = environment.child(layout)
    if name == "mlflow":
        env["PYTHONWARNINGS"] = "ignore:starlette.middleware.wsgi is deprecated"
        for variable in MLFLOW_STORES:  # ours are named on the command line; MLflow makes an empty database where one of these leads nowhere
            env.pop(variable, None)
    if name == "prefect":
        for variable in PREFECT_DATABASES:
            if env.get(variable, "").startswith("sqlite"):
                raise UserError(f"{variable} names an SQLite file: where the path is wrong, Prefect would make an empty database there. lmworks "
                                f"keeps it in {layout.prefect_database}. Unset {variable}, or give a PostgreSQL address")
        origins = f"http://{HOST}:{port},http://localhost:{port}"
        env |= {"PREFECT_API_URL": f"http://{HOST}:{port}/api", "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": origins,
                "PREFECT_SERVER_LOGGING_LEVEL": "WARNING"}
    if name == "worker":
        env |= {"PREFECT_API_URL": prefect_api, "PREFECT_WORKER_QUERY_SECONDS": "2"}
    return env


def end_orphans(layout: Layout, entry: Any) -> None:
    """Stop what a dead server left behind: MLflow's process waits for one below it, which lives on and holds port and database.

    They are of the session that the server led; the number of a session is given to no new process while one of its members lives. So where
    a process has it now, whoever that is, none of them is left: the session may be that of a person's shell.
    """
    pid = entry.get("pid") if isinstance(entry, dict) else None
    if not isinstance(pid, int) or _lives(pid) or not liveness.of_this_boot(entry):
        return
    for process in psutil.process_iter():
        try:
            if process.pid != pid and os.getsid(process.pid) == pid and process.cwd() == str(layout.root):
                stop_tree(process.pid, patience_s=3)
        except (psutil.Error, ProcessLookupError, PermissionError):
            continue


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def living(layout: Layout) -> dict[str, psutil.Process]:
    """{name: process} of the servers and the worker that run for this checkout, told by their command lines and their folder: what is
    left to ask where services.json is damaged."""
    found: dict[str, psutil.Process] = {}
    wanted = {name: command(layout, name, 0) for name in ("mlflow", "prefect", "worker")}
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
            name = next((name for name, ours in wanted.items() if line[:4] == ours[:4] or line[1:4] == ours[1:4]), None)
            if name and process.cwd() == str(layout.root) and process.status() != psutil.STATUS_ZOMBIE:
                first = found.get(name)
                if first is None or process.create_time() < first.create_time():  # its own children have the same line
                    found[name] = process
        except psutil.Error:
            continue
    return found


def is_command(process: psutil.Process, layout: Layout, name: str) -> bool:
    """Whether a process was started with our very command, whatever its port and interpreter: a person may have a server of another kind in this folder."""
    try:
        return process.cmdline()[1:] == command(layout, name, port_of(process) or 0)[1:]
    except (psutil.Error, ValueError, IndexError):
        return False


def port_of(process: psutil.Process) -> int | None:
    """The port that a server of ours was started with, from its command line."""
    line = process.cmdline()
    return int(line[line.index("--port") + 1]) if "--port" in line else None


def log_path(layout: Layout, name: str) -> Path:
    return layout.logs / f"{name}.log"


def spawn(layout: Layout, name: str, port: int = 0, *, prefect_api: str = "") -> subprocess.Popen:
    """Start a server (at `port`) or the worker (of `prefect_api`). A session of its own: it outlives the caller, its Ctrl-C and its terminal."""
    path = log_path(layout, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    with open(path, "ab") as log:
        return subprocess.Popen(command(layout, name, port), cwd=layout.root, env=environment_of(layout, name, port, prefect_api), stdin=subprocess.DEVNULL,
                                stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def last_lines(layout: Layout, name: str, count: int = 6) -> str:
    lines = [line for line in log_path(layout, name).read_text(errors="replace").splitlines() if line.strip()]
    return "\n  ".join(lines[-count:])


def log_size(layout: Layout, name: str) -> int:
    """Bytes."""
    try:
        return log_path(layout, name).stat().st_size
    except FileNotFoundError:
        return 0


def log_since(layout: Layout, name: str, begin: int) -> str:
    """What its log got after it had `begin` bytes; all of it if it was begun anew since."""
    with open(log_path(layout, name), "rb") as log:
        log.seek(begin if begin <= log_size(layout, name) else 0)
        return log.read().decode(errors="replace")


def stop_tree(pid: int, patience_s: float = 10) -> None:
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


def memory_mb(process: psutil.Process) -> int:
    """Proportional memory (PSS) of the process and its children."""
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            total += getattr(one.memory_full_info(), "pss", 0)
    except psutil.Error:
        pass
    return round(total / 2**20)
