"""What decides whether a server is ours, where it listens, and what its children inherit."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from components import files
from components.errors import Busy, UserError
from components.layout import Layout
from components.operations import (
    addresses,
    environment,
    liveness,
    processes,
    rest,
    restoration,
    running,
    services,
    unclean,
)

pytestmark = pytest.mark.code


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    for variable in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(variable, raising=False)
    return Layout(root=tmp_path)


@pytest.fixture
def listener():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def record(layout: Layout, **change: object) -> None:
    entry = {**liveness.entry(os.getpid()), "root": str(layout.root), "url": "http://127.0.0.1:1"} | change
    files.write_json(layout.services, {"mlflow": entry})


def test_an_entry_counts_only_if_pid_start_time_and_folder_match(layout: Layout):
    record(layout)
    assert services.address(layout, processes.MLFLOW) == "http://127.0.0.1:1"
    for change in ({"started": "another boot"}, {"started": 1.0}, {"root": "/elsewhere"}, {"pid": 2**22 + 1}, {"pid": None}):
        record(layout, **change)
        assert services.address(layout, processes.MLFLOW) is None, change
    layout.services.write_text("{ cut")
    assert services.read(layout) == {}


def test_F7_an_address_of_the_environment_is_used_past_any_proxy_and_nothing_is_started(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = HTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    monkeypatch.setenv("PREFECT_API_URL", f"{url}/api")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # nobody listens there
    assert services.ensure(layout) == {"mlflow": {"outside": True, "url": url}, "prefect": {"outside": True, "url": url, "api": f"{url}/api"}}
    assert not layout.services.exists() and services.down(layout) == []
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        monkeypatch.setattr(services.rest, "healthy", lambda *_args, **_named: False)
        services.ensure(layout)


def test_F8_an_asked_port_that_is_taken_names_who_holds_it(layout: Layout, listener: int):
    with pytest.raises(UserError, match=rf"port {listener}.*mlflow.*pid {os.getpid()}"):
        processes.choose_port(processes.MLFLOW, listener, None, set())


def test_ports_are_sticky_else_the_next_free_one(listener: int):
    assert processes.choose_port(processes.MLFLOW, None, listener, set()) != listener
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    assert processes.choose_port(processes.MLFLOW, None, free, set()) == free
    assert processes.choose_port(processes.MLFLOW, None, free, {free}) != free


def test_down_is_refused_during_a_run_unless_forced(layout: Layout):
    with files.lock(layout.run_lock, what="a run"):
        assert str(os.getpid()) in (files.lock_holder(layout.run_lock) or "")
        with pytest.raises(Busy, match="--force"):
            services.down(layout)
        assert services.down(layout, force=True) == []
    assert files.lock_holder(layout.run_lock) is None


def test_a_server_that_dies_at_once_is_one_clear_error_and_leaves_no_entry(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    def spawn(layout: Layout, name: str, port: int) -> subprocess.Popen:
        layout.logs.mkdir(parents=True, exist_ok=True)
        processes.log_path(layout, name).write_text("sqlite3.DatabaseError: file is not a database\n")
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])

    monkeypatch.setattr(services, "spawn", spawn)
    log = re.escape(str(processes.log_path(layout, "mlflow")))
    with pytest.raises(UserError, match=f"^mlflow did not start. The end of {log}:\n  sqlite3.DatabaseError: file is not a database$"):
        services.ensure(layout, prefect=False)
    assert "mlflow" not in services.read(layout)
    monkeypatch.setattr(services.storage, "TIGHT_BYTES", 2**62)  # so that this disk has too little room
    with pytest.raises(UserError, match=f"^mlflow did not start. no space in .*, then run again. The end of {log}:"):
        services.ensure(layout, prefect=False)


def test_a_port_that_was_taken_at_an_earlier_start_is_no_reason_for_another_try(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    log = processes.log_path(layout, "mlflow")
    log.parent.mkdir(parents=True)
    log.write_text("[Errno 98] address already in use\n")

    def spawn(layout: Layout, name: str, port: int) -> subprocess.Popen:
        with open(log, "a") as said:
            said.write("sqlite3.DatabaseError: file is not a database\n")
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])

    monkeypatch.setattr(services, "spawn", spawn)
    with pytest.raises(UserError, match="^mlflow did not start. The end of .*\n.*\n  sqlite3.DatabaseError"):
        services.ensure(layout, prefect=False)
    assert log.read_text().count("sqlite3") == 1


def test_what_a_log_says_since_a_start(layout: Layout):
    log = processes.log_path(layout, "mlflow")
    assert processes.log_size(layout, "mlflow") == 0
    log.parent.mkdir(parents=True)
    log.write_text("before: 以前\n")
    begin = processes.log_size(layout, "mlflow")
    with open(log, "a") as said:
        said.write("since: 之后\n")
    assert processes.log_since(layout, "mlflow", begin) == "since: 之后\n"
    log.write_text("anew\n")  # the start moved a long log aside
    assert processes.log_since(layout, "mlflow", begin) == "anew\n"


def test_an_asked_port_that_is_taken_leaves_no_server_behind_that_was_begun_before(layout: Layout, listener: int, monkeypatch: pytest.MonkeyPatch):
    begun: list[subprocess.Popen] = []

    def spawn(layout: Layout, name: str, port: int) -> subprocess.Popen:
        begun.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return begun[-1]

    monkeypatch.setattr(services, "spawn", spawn)
    with pytest.raises(UserError, match=f"port {listener}, asked for prefect, is taken"):
        services.ensure(layout, ports={"prefect": listener})
    assert len(begun) == 1 and not psutil.pid_exists(begun[0].pid) and "mlflow" not in services.read(layout)


@pytest.mark.parametrize("keeps_it", [True, False], ids=["for good", "for a moment"])  # as who only looks whether it is free
def test_F8_a_port_that_another_checkout_takes_before_our_server_binds_it_is_left_to_it(
        keeps_it: bool, layout: Layout, monkeypatch: pytest.MonkeyPatch):
    taken, ports = socket.socket(), []

    def spawn(layout: Layout, name: str, port: int) -> subprocess.Popen:
        ports.append(port)
        layout.logs.mkdir(parents=True, exist_ok=True)
        if len(ports) == 1:  # a slow start on a fresh database; meanwhile somebody binds
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", port))
            taken.listen()
            # Prefect's, after that line: its shutdown fails, 22 lines
            processes.log_path(layout, name).write_text("[Errno 98] address already in use\n" + "a line of a traceback\n" * 22)
            if not keeps_it:
                taken.close()
        return subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({0 if len(ports) == 1 else 60})"])

    monkeypatch.setattr(services, "spawn", spawn)
    monkeypatch.setattr(services, "listens", lambda *_: len(ports) > 1)
    monkeypatch.setattr(services.rest, "healthy", lambda *_args, **_named: True)
    try:
        found = services.ensure(layout, prefect=False)["mlflow"]
        assert len(ports) == 2 and ports[0] != ports[1] and found["url"].endswith(f":{ports[1]}")
    finally:
        taken.close()
        services.down(layout, force=True)


def test_E1_who_sees_a_server_that_another_process_is_starting_waits_for_it(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    """Its entry stands before it answers: seven of eight commands that start at once look in that moment."""
    record(layout)
    answers = threading.Event()
    monkeypatch.setattr(services.rest, "healthy", lambda *_args, **_named: answers.is_set())
    monkeypatch.setattr(services, "spawn", lambda *_: pytest.fail("one pair of servers is enough"))
    found: list[object] = []

    def second() -> None:
        try:
            found.append(services.ensure(layout, prefect=False)["mlflow"]["url"])
        except UserError as error:
            found.append(error)

    with files.lock(layout.startup_lock, what="the start of the servers"):
        other = threading.Thread(target=second)
        other.start()
        other.join(0.5)
        assert found == [] and other.is_alive(), "it waits at the lock of who starts the server"
        answers.set()
    other.join(10)
    assert found == ["http://127.0.0.1:1"]


def test_F8_another_port_for_a_server_that_runs_is_refused(layout: Layout):
    record(layout)
    with pytest.raises(UserError, match="mlflow runs already, at http://127.0.0.1:1; port 5999"):
        services.ensure(layout, prefect=False, ports={"mlflow": 5999})


def test_B6_a_password_in_an_address_is_refused_and_not_repeated(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:topsecret@example.org")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        services.ensure(layout, prefect=False)
    assert "topsecret" not in str(caught.value)


def test_C14_the_mark_of_a_process_does_not_follow_the_wall_clock(monkeypatch: pytest.MonkeyPatch):
    before = liveness.entry(os.getpid())
    monkeypatch.setattr(psutil.Process, "create_time", lambda _self: 1.0)  # what a clock set back by hours would give
    assert liveness.entry(os.getpid()) == before and liveness.process_of(before) is not None
    child = subprocess.Popen(["sleep", "0"])
    entry = liveness.entry(child.pid)
    child.wait()
    assert liveness.process_of(entry) is None


def test_C14_a_worker_that_reports_is_known_though_the_clock_was_set_back(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    heard = [{"name": processes.POOL, "status": "ONLINE", "last_heartbeat_time": "2026-01-02T12:00:00Z"}]
    child = subprocess.Popen(["sleep", "60"])

    def spawn(*_: object, **_named: object) -> subprocess.Popen:
        heard[0]["last_heartbeat_time"] = "2026-01-02T11:00:00Z"
        return child

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(404, None)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(200, heard)

        def answer(self, status: int, body: object) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = HTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/api")
    monkeypatch.setattr(services, "spawn", spawn)
    try:
        services._start_worker(layout)
        assert services.read(layout)["worker"]["pid"] == child.pid
    finally:
        child.kill()
        child.wait()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("leader", ["lives", "has ended", "has ended, another boot"])
def test_G2_only_a_dead_servers_own_session_is_searched_for_what_it_left(layout: Layout, leader: str):
    """The leader stands for a server; or, where its start is not the recorded one, for a shell that has its number now."""
    shell = subprocess.Popen([sys.executable, "-c", "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); sys.stdin.read()"],
                             cwd=layout.root, start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(shell.stdout.readline()))
    entry = liveness.entry(shell.pid)
    boot, _, ticks = entry["started"].partition("-")
    try:
        if leader == "lives":
            entry["started"] = f"{boot}-{int(ticks) - 1}"
        else:
            shell.kill()
            shell.wait()
            entry["started"] = f"{'00000000' if 'another' in leader else boot}-{ticks}"
        processes.end_orphans(layout, entry)
        ended = not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
        assert ended == (leader == "has ended")
    finally:
        child.kill() if child.is_running() else None
        shell.kill()
        shell.communicate()


STAND_INS = {"mlflow": "mlflow/__main__.py", "prefect": "flows/prefect_server.py", "worker": "prefect/__main__.py"}


@pytest.fixture
def live(layout: Layout):
    """Live processes of a checkout below `layout`, with the command lines of the servers and the worker; their Layout and {name: process}."""
    checkout = Layout(root=layout.root / "检 出")
    for path in STAND_INS.values():
        files.write_atomic(checkout.root / path, "import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
        files.write_atomic(checkout.root / path.replace(Path(path).name, "__init__.py"), "")
    started = {name: subprocess.Popen([sys.executable, *processes.command(checkout, name, 5999)[1:]], cwd=checkout.root, text=True, start_new_session=True,
                                      stdout=subprocess.PIPE, env=processes.environment_of(checkout, name, 5999, "http://127.0.0.1:1/api"))
               for name in STAND_INS}
    for name, process in started.items():
        assert process.stdout.readline() == "ready\n"
        running.record(checkout, name, running.entry_of(checkout, process.pid, None if name == "worker" else "http://127.0.0.1:1"))
    yield checkout, started
    for process in started.values():
        process.kill()
        process.wait()
        process.stdout.close()


def test_D3_servers_whose_services_json_was_deleted_are_found_and_get_no_second_pair(live, monkeypatch: pytest.MonkeyPatch):
    checkout, started = live
    monkeypatch.setattr(services, "spawn", lambda *_args, **_named: pytest.fail("they run already"))
    monkeypatch.setattr(services.rest, "healthy", lambda *_args, **_named: True)
    checkout.services.unlink()
    assert services.read(checkout) == {}, "asked often, so no process is looked at"
    with pytest.raises(Busy, match="mlflow and prefect and worker of this checkout run; a restore needs them down"):
        restoration.check_servers_down(checkout)
    with pytest.raises(UserError, match="mlflow runs already, at http://127.0.0.1:5999; port 6001"):
        services.ensure(checkout, ports={"mlflow": 6001})
    checkout.services.unlink()
    found = services.ensure(checkout, worker=True)
    assert {name: services.read(checkout)[name]["pid"] for name in started} == {name: process.pid for name, process in started.items()}
    assert found["mlflow"]["url"] == "http://127.0.0.1:5999"
    checkout.services.unlink()
    assert services.down(checkout) == ["worker", "prefect", "mlflow"]
    assert all(process.wait(20) is not None for process in started.values())


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "services.json gone"])
def test_servers_of_a_checkout_that_was_moved_are_known_and_stopped(live, recorded: bool):
    checkout, started = live
    if not recorded:
        checkout.services.unlink()
    moved = Layout(root=checkout.root.rename(checkout.root.with_name("moved")))
    with pytest.raises(Busy, match="mlflow and prefect and worker of this checkout run"):
        restoration.check_servers_down(moved)
    assert services.down(moved) == ["worker", "prefect", "mlflow"]
    assert all(process.wait(20) is not None for process in started.values()) and running.alive(moved) == []


@pytest.fixture
def pinged(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(addresses.PING_URL, "https://monitor.example/x")
    return addresses.PING_URL


def test_after_a_move_the_worker_is_started_anew_with_the_servers(pinged: str, live, monkeypatch: pytest.MonkeyPatch):
    checkout, started = live
    monkeypatch.delenv(pinged)  # the shell of today does not know it
    moved = Layout(root=checkout.root.rename(checkout.root.with_name("moved")))
    begun: list[str] = []

    def spawn(layout: Layout, name: str, *_: object, **_named: object) -> subprocess.Popen:
        begun.append(name)
        assert os.environ[pinged] == "https://monitor.example/x", "nights would ping nobody"
        started[f"new {name}"] = process = subprocess.Popen(["sleep", "60"], cwd=layout.root, stdout=subprocess.PIPE)
        return process

    monkeypatch.setattr(services, "spawn", spawn)
    monkeypatch.setattr(services, "listens", lambda *_: True)
    monkeypatch.setattr(services.rest, "healthy", lambda *_args, **_named: True)
    monkeypatch.setattr(services, "_heartbeats", lambda *_: {"lmworks": str(len(begun))})
    told: list[str] = []
    services.ensure(moved, say=told.append)  # no worker was asked for, but one was there
    assert begun == ["mlflow", "prefect", "worker"] and "worker was started before this checkout was moved: starting it again" in told
    assert all(started[name].wait(20) is not None for name in STAND_INS) and running.alive(moved) == ["mlflow", "prefect", "worker"]


def test_stop_tree_ends_children_too():
    parent = subprocess.Popen([sys.executable, "-c", "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"],
                              stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    processes.stop_tree(parent.pid, patience_s=5)
    parent.wait()
    parent.stdout.close()
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_children_are_quiet_offline_and_use_the_checkouts_python(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SHELL", "/usr/sbin/nologin")
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.delenv("HOME", raising=False)  # B9
    (layout.venv / "bin").mkdir(parents=True)
    env = environment.child(layout)
    assert env["SHELL"] == "/bin/sh" and env["PATH"].split(os.pathsep)[0] == str(layout.venv / "bin")
    assert env["DVC_SITE_CACHE_DIR"] == str(layout.root / ".dvc" / "site") and env["PREFECT_HOME"] == str(layout.root / ".prefect")
    assert env["NO_PROXY"] == "example.org,127.0.0.1,localhost,::1"
    assert env["MLFLOW_DISABLE_TELEMETRY"] == "true" and env["HF_HUB_OFFLINE"] == "1" and env["OMP_WAIT_POLICY"] == "passive"


def test_a_tarball_without_git_is_told_to_dvc(layout: Layout):
    environment.allow_no_git(layout)
    config = layout.root / ".dvc" / "config.local"
    assert "no_scm = true" in config.read_text()
    config.unlink()
    (layout.root / ".git").mkdir()
    environment.allow_no_git(layout)
    assert not config.exists()


def test_G2_a_marker_of_a_dead_or_reused_pid_is_dead(layout: Layout):
    own = unclean.mark(layout, flow_run_id="x")
    assert unclean.alive(own) and unclean.dead(layout) == []
    files.write_json(own, {"pid": os.getpid(), "started": 1.0})
    stage = layout.unclean / "stage-1.json"
    files.write_json(stage, {"pid": os.getpid(), "stage": "clean"})  # lives, but is no stage
    cut = layout.unclean / "run-2.json"
    cut.write_text("{")
    assert set(unclean.dead(layout)) == {own, stage, cut}


def test_a_server_that_is_away_is_unreachable_within_seconds():
    with pytest.raises(rest.Unreachable, match="does not answer"):
        rest.call("http://127.0.0.1:9/health")
