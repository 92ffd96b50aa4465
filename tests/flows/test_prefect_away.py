"""Prefect's server killed in mid-run, its database locked, everything killed at once: the run ends, and the next start puts things right."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from components import files
from components.layout import Layout
from components.operations import processes, rest, services, unclean
from flows import reconciler
from flows.records import RunResult

pytestmark = [pytest.mark.e2e]


@pytest.fixture
def waiting(checkout: Any, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen]:
    """A run whose second stage works until the file `go` is there. Afterwards the servers run again, whatever the test did to them."""
    (checkout.root / "asleep").unlink(missing_ok=True)
    (checkout.root / "go").unlink(missing_ok=True)
    checkout.wish("second", f"wait {request.node.name}")
    running = checkout.start()
    checkout.wait_for((checkout.root / "asleep").exists, "the stage works")
    yield running
    if running.poll() is None:
        running.kill()
    checkout.wish("second", "1")
    services.ensure(checkout.layout)


def kill_9(layout: Layout, name: str) -> None:
    """The server and what it started, as a machine that is short of memory does it."""
    process = services.process_of(services.read(layout)[name], layout)
    assert process is not None
    for one in [*process.children(recursive=True), process]:
        one.kill()
    process.wait(20)


def go_on(checkout: Any, running: subprocess.Popen) -> tuple[int, dict[str, Any], str]:
    (checkout.root / "go").write_text("")
    out, err = running.communicate(timeout=240)
    return running.returncode, json.loads(out) if out.strip() else {}, err


@pytest.mark.parametrize(("ended", "expected"), [("COMPLETED", "COMPLETED"), ("FAILED", "CRASHED"), ("RUNNING", "RUNNING")])
def test_F2_a_task_whose_last_state_was_lost_ends_as_its_flow_run_did_at_the_next_start(ended: str, expected: str, checkout: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reconciler, "RESTARTED_S", 1)
    api = checkout.api()
    flow = api.send("/flow_runs/", {"flow_id": api.send("/flows/", {"name": "lmworks-test"})["id"], "state": {"type": "RUNNING"}})["id"]
    task = api.send("/task_runs/", {"flow_run_id": flow, "task_key": "stage", "dynamic_key": "0", "name": "stage-0", "state": {"type": "RUNNING"}})["id"]
    try:
        api.send(f"/flow_runs/{flow}/set_state", {"force": True, "state": {"type": ended}})
        assert reconciler.settle(checkout.layout) == [], "the server knows all that it was told: what is missing is only late"
        server = services.process_of(services.read(checkout.layout)["prefect"], checkout.layout)
        monkeypatch.setattr(type(server), "create_time", lambda _server: time.time())  # as if it had been killed and started meanwhile
        said = reconciler.settle(checkout.layout)
        monkeypatch.undo()
        assert api.get(f"/task_runs/{task}")["state_type"] == expected
        assert any("'stage-0' was left Running" in line and line.endswith(f"is {expected.title()} now") for line in said) == (ended != "RUNNING")
        assert reconciler.settle(checkout.layout) == []
    finally:
        api.send(f"/flow_runs/{flow}", method="DELETE")


def test_F2_killed_while_a_stage_works_and_back_after_it_the_server_hears_how_the_run_ended(checkout: Any, waiting: subprocess.Popen):
    run = checkout.last_flow_run()
    kill_9(checkout.layout, "prefect")
    (checkout.root / "go").write_text("")
    checkout.wait_for((checkout.root / "data" / "second" / "manifest.json").exists, "the stage ends without a server")
    address = services.ensure(checkout.layout)["prefect"]["url"]
    assert run["id"] == checkout.last_flow_run()["id"] and address.endswith(f":{services.read(checkout.layout)['ports']['prefect']}"), "at the same port"
    code, told, err = go_on(checkout, waiting)
    assert (code, told["verdict"], told["reported"], err) == (0, "Ready", True, "")
    ended = checkout.api().get(f"/flow_runs/{run['id']}")
    assert (ended["state_type"], ended["state_name"]) == ("COMPLETED", "Ready")
    assert not list(checkout.layout.unclean.glob("run-*.json"))
    reconciler.reconcile(checkout.layout)  # events that went with the server are made up for
    tasks = checkout.task_runs(run)
    assert {tasks[name][0] for name in ("first", "second")} == {"COMPLETED"}, tasks


@pytest.mark.slow
def test_F3_gone_for_good_the_run_finishes_says_so_and_the_next_start_tells_prefect(checkout: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "1")  # instead of a minute for each call
    waiting = request.getfixturevalue("waiting")
    run = checkout.last_flow_run()
    kill_9(checkout.layout, "prefect")
    code, told, err = go_on(checkout, waiting)
    assert (code, told["verdict"], told["reported"], err) == (5, "Ready", False, "")
    assert [stage["state"] for stage in told["stages"]] == ["cached", "ran"] and (checkout.root / "data" / "second" / "manifest.json").exists()
    assert "finished, not reported: Prefect's server went away" in told["message"] and "The next `lmworks up` or `lmworks run` tells Prefect" in told["message"]
    assert "Traceback" not in told["message"]

    services.ensure(checkout.layout)
    assert checkout.api().get(f"/flow_runs/{run['id']}")["state_type"] == "RUNNING"
    code, told, _ = checkout.run()
    assert (code, told["verdict"]) == (0, "Nothing changed")
    assert any("is Ready now" in line for line in told["reconciled"]), told["reconciled"]
    ended = checkout.api().get(f"/flow_runs/{run['id']}")
    assert (ended["state_type"], ended["state_name"]) == ("COMPLETED", "Ready")
    assert {kind for kind, _ in checkout.task_runs(run).values()} == {"COMPLETED"}
    assert unclean.dead(checkout.layout) == []


@pytest.mark.slow
def test_F3_C15_gone_for_good_and_then_the_run_is_killed_too(checkout: Any, waiting: subprocess.Popen):
    """A reboot: the run, its stage, both servers, all by -9. One command brings it back, and no lock is removed by hand."""
    run = checkout.last_flow_run()
    mlflow = f"{services.address(checkout.layout, processes.MLFLOW)}/api/2.0/mlflow"
    experiment = rest.call(f"{mlflow}/experiments/get-by-name?experiment_name=Default")["experiment"]["experiment_id"]
    tags = [{"key": "lmworks.stage", "value": "pretrain"}]
    training = rest.call(f"{mlflow}/runs/create", {"experiment_id": experiment, "tags": tags})["run"]["info"]["run_id"]
    entries = services.read(checkout.layout)
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(checkout.root) and process.pid != os.getpid():
                os.kill(process.pid, signal.SIGKILL)
        except (psutil.Error, ProcessLookupError):
            continue
    waiting.communicate()
    checkout.wait_for(lambda: not any(services.process_of(entries[name], checkout.layout) for name in ("mlflow", "prefect")), "all is dead")
    checkout.wish("second", "1")

    code, told, err = checkout.run()
    assert (code, told["verdict"], err) == (0, "Ready", "")
    assert any(f"run {run['name']!r} was left Running; it is Crashed now" in line for line in told["reconciled"]), told["reconciled"]
    assert checkout.api().get(f"/flow_runs/{run['id']}")["state_type"] == "CRASHED"
    assert {kind for kind, _ in checkout.task_runs(run).values()} <= {"CRASHED", "COMPLETED"}
    mlflow = f"{services.address(checkout.layout, processes.MLFLOW)}/api/2.0/mlflow"
    assert rest.call(f"{mlflow}/runs/get?run_id={training}")["run"]["info"]["status"] == "KILLED"
    rest.call(f"{mlflow}/runs/delete", {"run_id": training})
    assert unclean.dead(checkout.layout) == []


def test_E2_prefects_database_held_by_another_program_delays_a_run_and_harms_it_not(checkout: Any, waiting: subprocess.Popen):
    holder = sqlite3.connect(checkout.layout.prefect_database, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        (checkout.root / "go").write_text("")
        checkout.wait_for((checkout.root / "data" / "second" / "manifest.json").exists, "the stage ends while nobody can write to the database")
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    code, told, err = go_on(checkout, waiting)
    assert (code, told["verdict"], told["reported"], err) == (0, "Ready", True, "")
    assert {kind for kind, _ in checkout.task_runs(checkout.last_flow_run()).values()} == {"COMPLETED"}


@pytest.mark.slow
def test_E2_a_database_that_stays_locked_is_named_with_who_holds_it(checkout: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(reconciler, "DATABASE_WAIT_S", 1)
    marker = checkout.layout.unclean / "run-1.json"
    files.write_sealed(marker, {"pid": 1, "started": "another boot", "flow_run_id": checkout.last_flow_run()["id"], "verdict": "Ready", "message": "m"})
    flow_run = checkout.last_flow_run()["id"]
    checkout.api().close("flow_runs", flow_run, state="RUNNING", message="as a crash leaves it")
    holder = sqlite3.connect(checkout.layout.prefect_database, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(rest.Unreachable, match=rf"database prefect.db is locked by .*\(pid {os.getpid()}: .*Close that program"):
            reconciler.reconcile(checkout.layout)
        assert marker.exists(), "the next start begins again"
        from flows.run import not_reported

        done = RunResult("Promoted", "version 1 is champion", 0)
        not_reported(done, TimeoutError("timed out"), checkout.layout)
        assert done.exit_code == 5 and f"finished, not reported: database prefect.db is locked by python (pid {os.getpid()}:" in done.message.replace("python3.11", "python")
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    assert any("is Ready now" in line for line in reconciler.reconcile(checkout.layout))
    assert checkout.api().get(f"/flow_runs/{flow_run}")["state_name"] == "Ready" and not marker.exists()


def test_F7_a_run_with_proxy_variables_set_reports_as_always(checkout: Any, monkeypatch: pytest.MonkeyPatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        for variable in (name, name.lower()):
            monkeypatch.setenv(variable, "http://127.0.0.1:1")  # nobody listens there
    checkout.wish("second", "2 past the proxy")
    code, told, err = checkout.run()
    assert (code, told["verdict"], told["reported"], err) == (0, "Ready", True, "")
    run = checkout.last_flow_run()
    assert (run["state_type"], run["state_name"]) == ("COMPLETED", "Ready")
    assert {kind for kind, _ in checkout.task_runs(run).values()} == {"COMPLETED"}
    checkout.wait_for(lambda: "second says 你好" in checkout.logs(run), "the log arrives")
    checkout.wish("second", "1")
