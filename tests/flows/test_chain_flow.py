"""The chain's flow against real servers, with two trivial stages."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
from typing import Any

import psutil
import pytest

from commands import imports
from components import files, spool
from components.errors import Busy
from components.operations import (
    addresses,
    environment,
    liveness,
    lock_file,
    processes,
    rest,
    services,
    staleness,
    unclean,
)
from flows import reconciler

pytestmark = [pytest.mark.e2e]


def test_a_run_then_an_unchanged_one_then_one_restored(checkout: Any):
    code, told, err = checkout.run()
    assert code == 0, err
    assert err == "", "nothing of Prefect, DVC or a warning on the terminal"
    assert told["verdict"] == "Ready"
    assert [(s["stage"], s["state"], s["why"]) for s in told["stages"]] == [("first", "ran", ["it never ran"]), ("second", "ran", ["it never ran"])]
    assert told["stages"][0]["summary"]["documents_out"] == 2
    assert told["seconds"]["stages"] == 0.5 and all(s["elapsed_s"] > s["work_s"] for s in told["stages"]), "work by the stage's own account"
    assert told["events"] == ["start first", "ran first", "start second", "ran second"]
    assert told["lines"] == [f"{s}|{line}" for s in ("first", "second") for line in (*(f"{s} {n}/5 loss 3.21" for n in range(1, 6)), f"{s} says 你好")]
    run = checkout.last_flow_run()
    assert re.fullmatch(r"mini \d{4}-\d\d-\d\d \d\d:\d\d UTC corpus 语料 [0-9a-f]{6}", run["name"]), run["name"]
    assert run["tags"] == ["lmworks", "mini", "tiny"]
    told_to_stage = json.loads((checkout.root / "told.json").read_text())
    assert told_to_stage["LMWORKS_FLOW_RUN"] == f"{services.address(checkout.layout, processes.PREFECT)}/runs/flow-run/{run['id']}"
    assert not {"LMWORKS_DEPLOYMENT", *addresses.SECRETS} & set(told_to_stage), "no deployment, and no secret for a stage"
    assert run["state_type"] == "COMPLETED" and run["state_name"] == "Ready"
    checkout.wait_for(lambda: "second says 你好" in checkout.logs(run), "the child's output is in the run's log")
    stored = checkout.logs(run)
    assert "first 5/5 loss 3.21" in stored and "first 3/5 loss 3.21" not in stored, "progress is thinned in the stored log"
    assert not any("Running stage" in line or line.startswith("> ") for line in stored)

    code, told, _ = checkout.run()
    assert code == 0 and told["verdict"] == "Nothing changed"
    assert [s["state"] for s in told["stages"]] == ["cached", "cached"]
    states = checkout.task_runs(checkout.last_flow_run())
    assert states["first"] == ("COMPLETED", "Cached") and states["second"] == ("COMPLETED", "Cached")
    shown = checkout.api().send("/artifacts/filter", {"artifacts": {"key": {"any_": ["lmworks-run"]}}, "sort": "CREATED_DESC", "limit": 1})[0]
    assert "| second | cached |" in shown["data"]

    checkout.wish("second", "2")
    assert checkout.run()[1]["stages"][1]["why"] == ["input second.txt changed"]
    checkout.wish("second", "1")
    code, told, _ = checkout.run()
    assert told["stages"][1]["state"] == "restored", "DVC had this result: nothing ran"

    # D3: a flipped byte behind DVC's back (the time kept), with a good cache, then with a bad one
    for word in ("brought back", "made again"):
        path = checkout.root / "data" / "first" / "wish.txt"
        if word == "made again":
            for found in (checkout.root / ".dvc" / "cache" / "files" / "md5").rglob("*"):
                if found.is_file() and found.read_bytes() == path.read_bytes():
                    found.unlink()
        before = path.stat()
        path.write_text("2")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        code, told, err = checkout.run()
        assert (code, told["verdict"], err) == (0, "Healed", "")
        assert [s["state"] for s in told["stages"]] == ["healed", "cached"]
        assert told["stages"][0]["why"][0].startswith("data/first/wish.txt is damaged: sha256 ") and "first was healed" in told["message"]
        run = checkout.last_flow_run()
        assert (run["state_type"], run["state_name"]) == ("COMPLETED", "Healed")
        assert checkout.task_runs(run)["first"] == ("COMPLETED", "Healed") and path.read_text() == "1"
    assert checkout.run()[1]["verdict"] == "Nothing changed"
    assert unclean.dead(checkout.layout) == [] and not list(checkout.layout.unclean.glob("run-*.json"))


def test_a_failure_carries_the_childs_words_and_stops_the_chain(checkout: Any):
    checkout.wish("first", "fail")
    code, told, _ = checkout.run()
    assert code == 2 and told["verdict"] == "Failed"
    assert [s["state"] for s in told["stages"]] == ["failed", "skipped"]
    assert told["message"] == "row 7 of first.txt has no text; mend it"
    run = checkout.last_flow_run()
    assert run["state_type"] == "FAILED" and run["state"]["message"].startswith("first: row 7 of first.txt has no text; mend it\nIts last lines:\n")
    assert "the line before the end" in run["state"]["message"], "the reason and what came before it, on the run's own page"
    checkout.wait_for(lambda: "the line before the end" in checkout.logs(run), "and everything in the log")
    task = checkout.api().send("/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}, "task_runs": {"name": {"any_": ["first"]}}})[0]
    assert "the line before the end" in task["state"]["message"]

    checkout.wish("first", "fail block")
    code, told, _ = checkout.run()
    assert code == 3 and told["verdict"] == "Blocked" and checkout.last_flow_run()["state_name"] == "Blocked"
    checkout.wish("first", "1")


def test_bad_stage_name_is_one_clear_error(checkout: Any):
    code, told, err = checkout.run(from_stage="secnd")
    assert code == 2 and "did you mean 'second'?" in told["message"] and err == ""


def test_D3_a_hash_in_dvcs_memory_that_is_another_runs_no_stage(checkout: Any):
    assert checkout.run()[0] == 0
    (path,) = (checkout.root / ".dvc" / "site").rglob("hashes/local/cache.db")
    with contextlib.closing(sqlite3.connect(path)) as database:
        for key, value in database.execute("SELECT key, value FROM Cache WHERE key LIKE '%/data/first%'").fetchall():
            database.execute("UPDATE Cache SET value = ? WHERE key = ?", (re.sub(r'("md5": ?")(.)', lambda m: m[1] + ("0" if m[2] != "0" else "1"), value), key))
        database.commit()
    assert staleness.outputs_changed(staleness.why(checkout.layout, "first"))
    code, told, _ = checkout.run()
    assert (code, told["verdict"]) == (0, "Nothing changed") and told["stages"][0]["why"] == []


@pytest.mark.parametrize("damage", ["an empty entry of the run cache", "its memory of links"])
def test_D3_D4_where_dvc_itself_fails_it_is_asked_again_without_what_it_remembers(checkout: Any, damage: str):
    assert checkout.run()[0] == 0
    if damage == "its memory of links":
        (memory,) = (checkout.root / ".dvc" / "site").rglob("links/cache.db")
        with contextlib.closing(sqlite3.connect(memory)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        data = bytearray(memory.read_bytes())
        data[5 * 4096] ^= 0xFF  # a page that is read only where something is written
        memory.write_bytes(data)
    else:  # an entry that was deleted by hand, or by a DVC that was killed before it wrote the next
        for entry in (checkout.root / ".dvc" / "cache" / "runs").glob("*/*/*"):
            entry.unlink()
    checkout.layout.dvc_lock.unlink()
    shutil.rmtree(checkout.root / "data" / "first")
    code, told, err = checkout.run()
    assert (code, told["verdict"], err) == (0, "Ready", ""), told["message"]
    assert any("DVC failed, not the stage (" in line for line in checkout.logs(checkout.last_flow_run()))
    assert checkout.run()[1]["verdict"] == "Nothing changed"


def test_D3_a_size_that_a_damaged_run_cache_brought_into_dvc_lock_is_put_right(checkout: Any):
    assert checkout.run()[0] == 0
    whole = checkout.layout.dvc_lock.read_text()
    for entry in lock_file.runs(checkout.root / ".dvc" / "cache"):
        entry.write_text(re.sub(r"(?s)(outs:.* size: )(\d+)", r"\g<1>1\2", entry.read_text()))
    checkout.layout.dvc_lock.unlink()
    shutil.rmtree(checkout.root / "data" / "first")
    code, told, err = checkout.run()
    assert (code, told["stages"][0]["state"], err) == (0, "restored", "") and checkout.layout.dvc_lock.read_text() == whole


def test_D4_a_dvc_yaml_that_was_emptied_or_cut_fails_the_run_before_a_stage_or_a_release(checkout: Any):
    assert checkout.run()[0] == 0
    path = checkout.layout.dvc_yaml
    whole = path.read_text()
    try:
        for text in ("", whole[:whole.index("  second:")]):
            path.write_text(text)
            code, told, err = checkout.run()
            assert (code, told["verdict"], told["stages"], err) == (4, "Failed", [], "")
            assert "dvc.yaml is not what the stage table" in told["message"] and "-m components.chain --generate" in told["message"]
            assert checkout.last_flow_run()["state_name"] == "Failed"
    finally:
        path.write_text(whole)


def test_from_a_stage_whose_input_was_never_made_is_one_clear_error(checkout: Any):
    assert checkout.run()[0] == 0
    shutil.move(checkout.root / "data" / "first", checkout.root / "away")
    try:
        code, told, err = checkout.run(from_stage="second")
        assert code == 2 and told["message"] == "second reads data/first, which first has not made yet. Run: lmworks run (or --from first)" and err == ""
    finally:
        shutil.move(checkout.root / "away", checkout.root / "data" / "first")


def test_C10_a_stage_that_the_kernel_kills_is_named(checkout: Any):
    checkout.wish("second", "sleep till killed")
    (checkout.root / "asleep").unlink(missing_ok=True)
    running = checkout.start()
    checkout.wait_for((checkout.root / "asleep").exists, "the stage works")
    stage = next(p for p in psutil.Process(running.pid).children(recursive=True) if "fake_stage.py" in p.cmdline())
    training = checkout.layout.spool / "second-k1-tiny"  # its run in MLflow, as tracking spools it
    files.write_json(training / "run.json", {"name": "second tiny", "tags": {}, "process": {**liveness.entry(stage.pid), "host": socket.gethostname()}})
    (training / "events.jsonl").write_text('{"t": 1, "status": "RUNNING", "tags": {}}\n')
    stage.kill()
    out, err = running.communicate(timeout=60)
    assert [event.get("status") for event in spool.events(training)] == ["RUNNING", "KILLED"], "not only at the next start"
    shutil.rmtree(training)
    assert running.returncode == 1 and err == ""
    assert "ended by SIGKILL" in json.loads(out)["message"] and "memory" in json.loads(out)["message"]
    assert reconciler.reconcile(checkout.layout) == []


def test_G1_two_runs_at_once_and_ctrl_c(checkout: Any):
    checkout.wish("second", "sleep")
    (checkout.root / "asleep").unlink(missing_ok=True)
    running = checkout.start()
    checkout.wait_for((checkout.root / "asleep").exists, "the stage works")
    code, _, err = checkout.run()
    assert code == 75 and "already running in this checkout" in err and str(running.pid) in err
    with pytest.raises(services.Busy):
        services.down(checkout.layout)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130 and "Traceback" not in err and err == ""
    assert checkout.processes_in() == []
    assert checkout.last_flow_run()["state_type"] in ("CRASHED", "CANCELLED")
    assert not list(checkout.layout.unclean.glob("run-*.json")), "a clean stop leaves no marker"


def test_G1_settings_that_change_while_a_run_goes_on_end_it_before_its_next_stage(checkout: Any, monkeypatch: pytest.MonkeyPatch):
    """Else one model would have the name, gates and origins of another."""
    before = checkout.layout.params.read_text()
    for file in ("asleep", "go"):
        (checkout.root / file).unlink(missing_ok=True)
    checkout.wish("first", "wait for other settings")
    running = checkout.start()
    try:
        checkout.wait_for((checkout.root / "asleep").exists, "the stage works")
        monkeypatch.setattr(imports, "Layout", lambda: checkout.layout)
        with pytest.raises(Busy, match=f"is already running in this checkout .*{running.pid}"):
            imports.import_model("none")
        checkout.layout.params.write_text(before.replace("name: mini", "name: other"))  # an editor asks nobody
        (checkout.root / "go").write_text("")
        out, err = running.communicate(timeout=120)
        told = json.loads(out)
        assert (running.returncode, told["verdict"], err) == (2, "Failed", "") and [stage["state"] for stage in told["stages"]] == ["ran"]
        assert told["message"].startswith("params.yaml changed while this run went on: ") and told["message"].endswith("run again: lmworks run")
    finally:
        checkout.layout.params.write_text(before)
    code, told, _ = checkout.run()
    assert (code, [stage["state"] for stage in told["stages"]][0]) == (0, "cached")


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 130)])
def test_C8_sigterm_and_a_closed_terminal_end_the_stage_and_the_flow_run(checkout: Any, number: int, exit_code: int):
    checkout.wish("second", f"sleep again {number}")
    (checkout.root / "asleep").unlink(missing_ok=True)
    before = signal.signal(number, signal.SIG_DFL)  # under nohup a child would ignore SIGHUP, too
    running = checkout.start()
    signal.signal(number, before)
    checkout.wait_for((checkout.root / "asleep").exists, "the stage works")
    running.send_signal(number)
    out, err = running.communicate(timeout=30)
    assert running.returncode == exit_code and err == ""
    assert json.loads(out)["verdict"] == "Stopped"
    assert files.read_json(checkout.layout.outcomes / "second.json")["message"] == "stopped by a signal", "the stage could end by itself"
    assert checkout.processes_in() == []
    assert checkout.last_flow_run()["state_type"] in ("CRASHED", "CANCELLED")


def test_C8_a_second_ctrl_c_ends_a_stage_that_takes_its_time(checkout: Any):
    """A stage may take 20 s to save its work; who presses Ctrl-C again does not wait for it."""
    checkout.wish("second", "sleep stubborn")
    (checkout.root / "asleep").unlink(missing_ok=True)
    running = checkout.start()
    checkout.wait_for((checkout.root / "asleep").exists, "the stage works")
    running.send_signal(signal.SIGINT)
    checkout.wait_for((checkout.root / "asked").exists, "the stage was asked to stop, and goes on")
    assert running.poll() is None
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=15)
    assert running.returncode == 130 and err == "" and json.loads(out)["verdict"] == "Stopped"
    assert checkout.processes_in() == []
    assert checkout.last_flow_run()["state_type"] in ("CRASHED", "CANCELLED")


def test_C17_an_error_in_a_hook_stands_behind_the_one_that_ended_the_run(checkout: Any, monkeypatch: pytest.MonkeyPatch):
    checkout.wish("first", "fail once more")
    monkeypatch.setenv("FAILPOINTS", "flow.hook=raise")
    code, told, err = checkout.run()
    assert code == 2 and told["verdict"] == "Failed" and told["message"] == "row 7 of first.txt has no text; mend it"
    assert err.splitlines() == ["fail-point flow.hook: raise"], "no traceback of the hook on the terminal"
    run = checkout.last_flow_run()
    assert run["state_type"] == "FAILED" and run["state"]["message"].startswith("first: row 7 of first.txt has no text; mend it")
    checkout.wait_for(lambda: any("raised by a fail-point" in line for line in checkout.logs(run)), "the hook's own error is in the log")
    said = checkout.logs(run)
    assert [n for n, line in enumerate(said) if "row 7 of first.txt" in line][0] < [n for n, line in enumerate(said) if "raised by a fail-point" in line][0]
    checkout.wish("first", "1")


def test_C15_a_run_that_was_killed_before_it_knew_its_flow_run_is_closed_too(checkout: Any):
    api = checkout.api()
    flow = next(one for one in api.send("/flows/filter", {"limit": 50}) if one["name"] == "lmworks-chain")
    lost = api.send("/flow_runs/", {"flow_id": flow["id"], "name": "lost", "state": {"type": "RUNNING"}})["id"]
    dead = files.sha256_bytes(b"another boot")[:8]
    files.write_sealed(checkout.layout.unclean / "run-2.json", {"pid": 2, "started": f"{dead}-1"})
    done = reconciler.reconcile(checkout.layout)
    assert [line for line in done if "'lost'" in line] == ["Prefect: flow run 'lost' was left Running; it is Crashed now"]
    assert api.get(f"/flow_runs/{lost}")["state_type"] == "CRASHED" and not list(checkout.layout.unclean.glob("run-*.json"))


@pytest.mark.slow
def test_C9_a_server_whose_starter_was_killed_is_waited_for(checkout: Any):
    before = services.read(checkout.layout)["prefect"]["pid"]
    processes.stop_tree(before)
    code = "from components.layout import Layout; from components.operations import services; services.ensure(Layout())"
    starter = subprocess.Popen([environment.python(checkout.layout), "-c", code], cwd=checkout.root, env=environment.child(checkout.layout))
    checkout.wait_for(lambda: services.read(checkout.layout).get("prefect", {}).get("pid", before) != before, "the new server is recorded")
    starter.kill()
    starter.wait()
    assert not rest.healthy(f"{services.read(checkout.layout)['prefect']['url']}/api/health"), "otherwise there is nothing to test"
    services.ensure(checkout.layout)
    assert checkout.run()[1]["verdict"] in ("Ready", "Nothing changed")


def test_C9_a_server_whose_starter_was_killed_before_it_wrote_it_down_is_ended(checkout: Any):
    services.ensure(checkout.layout)
    unknown = services.process_of(services.read(checkout.layout)["mlflow"], checkout.layout)
    assert unknown is not None
    services.record(checkout.layout, "mlflow", None)  # the entry of a start that a kill came before
    services.ensure(checkout.layout)
    known = services.read(checkout.layout)["mlflow"]["pid"]
    assert known != unknown.pid and not unknown.is_running() and processes.living(checkout.layout)["mlflow"].pid == known


@pytest.mark.slow
def test_C9_what_a_killed_mlflow_server_leaves_behind_is_ended_by_the_next_start(checkout: Any):
    """Its own process waits for one below it, which would go on with the port and the database."""
    server = psutil.Process(services.read(checkout.layout)["mlflow"]["pid"])
    below = server.children(recursive=True)
    assert below, "otherwise there is nothing to test"
    server.kill()
    server.wait(10)
    assert any(process.is_running() for process in below)
    services.ensure(checkout.layout)
    assert not [process for process in below if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert services.read(checkout.layout)["mlflow"]["pid"] != server.pid


def test_C9_C15_kill_9_leaves_no_process_and_the_next_start_closes_the_runs(checkout: Any):
    checkout.wish("second", "sleep once more")
    (checkout.root / "asleep").unlink(missing_ok=True)
    running = checkout.start()
    checkout.wait_for((checkout.root / "asleep").exists, "the stage works")
    os.kill(running.pid, signal.SIGKILL)
    running.communicate()
    checkout.wait_for(lambda: checkout.processes_in() == [], "kill -9 of the flow ends DVC and the stage")
    killed = checkout.last_flow_run()
    assert killed["state_type"] == "RUNNING"
    mlflow = f"{services.address(checkout.layout, processes.MLFLOW)}/api/2.0/mlflow"
    experiment = rest.call(f"{mlflow}/experiments/create", {"name": "mini"})["experiment_id"]
    open_run = rest.call(f"{mlflow}/runs/create", {"experiment_id": experiment, "tags": [{"key": "lmworks.stage", "value": "pretrain"}]})["run"]["info"]["run_id"]
    (checkout.root / "data" / ".partial" / "second").mkdir(parents=True)
    ours = checkout.root / f".params.yaml.{running.pid}.partial"
    ours.write_text("half")

    done = reconciler.reconcile(checkout.layout)
    assert checkout.api().get(f"/flow_runs/{killed['id']}")["state_type"] == "CRASHED"
    assert {kind for kind, _ in checkout.task_runs(killed).values()} <= {"CRASHED", "COMPLETED"}
    assert rest.call(f"{mlflow}/runs/get?run_id={open_run}")["run"]["info"]["status"] == "KILLED"
    rest.call(f"{mlflow}/runs/delete", {"run_id": open_run})  # later tests ask what was trained here
    assert not ours.exists() and not (checkout.root / "data" / ".partial").exists()
    assert any("Crashed now" in line for line in done)
    assert reconciler.reconcile(checkout.layout) == [], "once is enough"
    checkout.wish("second", "1")
    assert checkout.run()[1]["verdict"] == "Ready"
