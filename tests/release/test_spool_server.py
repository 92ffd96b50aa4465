"""The spool against the real MLflow server: what the stand-in of test_tracking.py cannot promise."""

from __future__ import annotations

import functools
import math
import os
import signal
import sqlite3
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import checkout
import pytest
from mlflow_server import start_server
from mlflow_stand_in import killed

from benchmarks.reliability import loggers
from benchmarks.reliability.proxy import CUT, ERROR, HANG, PASS, REFUSE, Proxy
from components import files, mlflow_rest, spool, tracking
from components.config import Config
from components.errors import UserError
from components.layout import Layout
from components.mlflow_rest import call
from components.operations import rest, services
from components.release import registry
from components.release import release as releasing

pytestmark = [pytest.mark.e2e]


def open_run(layout: Layout, name: str) -> tracking.Run:
    return tracking.open_run(Config(name=name), layout, stage="pretrain", parameters=13_900_000, languages=["zh"], params={"a": 1})


def only_run(url: str, name: str, view: str = "ACTIVE_ONLY") -> dict:
    experiment = call(url, "GET", f"experiments/get-by-name?experiment_name={urllib.parse.quote(name)}")["experiment"]["experiment_id"]
    runs = call(url, "POST", "runs/search", {"experiment_ids": [experiment], "run_view_type": view})["runs"]
    assert len(runs) == 1
    return runs[0]


def test_nan_infinity_and_a_refused_point_do_not_hold_up_the_run(tmp_path: Path, mlflow_url: str):
    layout = Layout(root=tmp_path, work=tmp_path / "work" / "pretrain" / "k1")
    run = open_run(layout, "numbers")
    run.log(0, {"train/loss": 1.5, "val/loss": math.nan, "val/bits_per_byte": math.inf})
    run.log(1, {"no such: key?": 1.0, "train/loss": 1.25})
    run.tags["lmworks.weights_sha256"] = "00"
    run.finish("FINISHED")
    assert tracking.drain(layout) == 0 and not list(layout.spool.glob("*/"))
    found = only_run(mlflow_url, "numbers")
    assert found["info"]["status"] == "FINISHED"
    metrics = {m["key"]: m["value"] for m in found["data"]["metrics"]}
    assert metrics["train/loss"] == 1.25 and {"val/loss", "val/bits_per_byte"} <= set(metrics)
    tags = {t["key"]: t["value"] for t in found["data"]["tags"]}
    assert tags["lmworks.refused_points"] == "1" and tags["lmworks.weights_sha256"] == "00"


def test_a_run_that_a_person_deleted_is_let_go(tmp_path: Path, mlflow_url: str):
    layout = Layout(root=tmp_path, work=tmp_path / "work" / "pretrain" / "k1")
    run = open_run(layout, "deleted")
    run.log(0, {"train/loss": 1.5})
    run._ended.set()
    run._sender.join()
    run_id = only_run(mlflow_url, "deleted")["info"]["run_id"]
    call(mlflow_url, "POST", "runs/delete", {"run_id": run_id})
    run = open_run(layout, "deleted")
    run.log(1, {"train/loss": 1.0})
    run.finish("FINISHED")
    assert tracking.drain(layout) == 0 and not list(layout.spool.glob("*/"))
    assert only_run(mlflow_url, "deleted", "ALL")["info"]["lifecycle_stage"] == "deleted"


def test_a_server_that_does_not_know_the_run_gets_all_of_it(tmp_path: Path, mlflow_url: str):
    layout = Layout(root=tmp_path, work=tmp_path / "work" / "pretrain" / "k1")
    run = open_run(layout, "moved")
    run.log(0, {"train/loss": 1.5})
    run._ended.set()
    run._sender.join()
    sent = layout.spool / "pretrain-k1-moved" / "sent.json"
    sent.write_text(sent.read_text().replace(only_run(mlflow_url, "moved")["info"]["run_id"], "0" * 32))
    run = open_run(layout, "moved")
    run.log(1, {"train/loss": 1.0})
    run.finish("FINISHED")
    assert tracking.drain(layout) == 0
    run_id = only_run(mlflow_url, "moved")["info"]["run_id"]
    history = call(mlflow_url, "GET", f"metrics/get-history?run_id={run_id}&metric_key=train/loss")["metrics"]
    assert sorted((m["step"], m["value"]) for m in history) == [(0, 1.5), (1, 1.0)]


@pytest.mark.parametrize("left", [0, 0.3, 0.6])
def test_D4_a_cut_spool_goes_on_and_the_server_has_each_point_once(tmp_path: Path, mlflow_url: str, left: float):
    layout, name = Layout(root=tmp_path, work=tmp_path / "work" / "pretrain" / "k1"), f"cut-{int(100 * left)}"
    run = open_run(layout, name)
    for step in range(20):
        run.log(step, {"train/loss": step / 8, "val/loss": 3 - step / 8})
    with run._sampling:
        run._sample()
    samples = run._samples
    killed(run)
    events = run.folder / "events.jsonl"
    assert spool.sent(run.folder)["offset"] == events.stat().st_size
    os.truncate(events, int(events.stat().st_size * left))
    run = open_run(layout, name)
    assert run._samples == samples, "a sample that the server has is not counted again"
    for step in range(4, 40):  # from the checkpoint after step 3
        run.log(step, {"train/loss": step / 8, "val/loss": 3 - step / 8})
    run.finish("FINISHED")
    assert tracking.drain(layout) == 0 and not list(layout.spool.glob("*/"))
    assert curve_of(mlflow_url, name) == ("FINISHED", [(n, n / 8) for n in range(40)])
    metrics = {m["key"]: m["value"] for m in only_run(mlflow_url, name)["data"]["metrics"]}
    assert metrics["val/loss_best"] == 3 - 39 / 8


def test_D4_a_spool_that_is_cut_under_its_training_or_after_its_death_is_still_sent(tmp_path: Path, mlflow_url: str):
    layout = Layout(root=tmp_path, work=tmp_path / "work" / "pretrain" / "k1")
    run = open_run(layout, "cut-alive")
    killed(run)  # it sends nothing by itself; `drain` does
    events = run.folder / "events.jsonl"
    for step in range(20):
        run.log(step, {"train/loss": step / 8})
    assert tracking.drain(layout) == 0
    os.truncate(events, 0)
    run.log(20, {"train/loss": 20 / 8})  # in a file that is shorter than what was sent of it
    assert tracking.unsent(layout) == 1 and tracking.drain(layout) == 0
    assert curve_of(mlflow_url, "cut-alive") == ("RUNNING", [(n, n / 8) for n in range(21)])
    events.write_bytes(spool.line_of({"t": 1, "status": "RUNNING"}))  # shorter again
    about = files.read_sealed(run.folder / "run.json")
    about["process"]["started"] = "another boot-1"  # another process had this pid
    spool.write_about(run.folder, about)
    assert tracking.close_dead(layout) and tracking.drain(layout) == 0
    assert curve_of(mlflow_url, "cut-alive") == ("KILLED", [(n, n / 8) for n in range(21)])


def test_a_chinese_experiment_branch_and_reason_arrive_as_they_are(tmp_path: Path, mlflow_url: str):
    layout = Layout(root=tmp_path / "红楼梦", work=tmp_path / "work" / "pretrain" / "k1")
    (layout.root / ".git").mkdir(parents=True)
    (layout.root / ".git" / "HEAD").write_text("ref: refs/heads/语料\n")
    config = Config().model_copy(update={"name": "红楼梦"})
    with pytest.raises(UserError), tracking.tracked(config, layout, stage="pretrain", parameters=13_900_000, languages=["zh"], params={}) as run:
        run.log(0, {"train/loss": 1.5})
        raise UserError("第三步的损失不是数")
    assert tracking.drain(layout) == 0
    found = only_run(mlflow_url, "红楼梦")
    assert found["info"]["status"] == "FAILED" and found["info"]["run_name"] == "pretrain 红楼梦 13.9M zh seed 1"
    tags = {t["key"]: t["value"] for t in found["data"]["tags"]}
    assert (tags["lmworks.git_branch"], tags[tracking.ERROR]) == ("语料", "第三步的损失不是数") and "第三步" in tags[spool.NOTE]
    with tracking.tracked(config, layout, stage="pretrain", parameters=13_900_000, languages=["zh"], params={}):
        pass
    found = only_run(mlflow_url, "红楼梦")
    assert found["info"]["status"] == "FINISHED" and tracking.ERROR not in {t["key"] for t in found["data"]["tags"]}


def test_an_experiment_that_a_person_deleted_comes_back_for_the_next_training(tmp_path: Path, mlflow_url: str):
    for life in range(2):
        layout = Layout(root=tmp_path, work=tmp_path / "work" / "pretrain" / f"k{life}")
        run = open_run(layout, "binned")
        run.log(0, {"train/loss": 1.5})
        run.finish("FINISHED")
        assert tracking.drain(layout) == 0 and not list(layout.spool.glob("*/"))
        experiment = call(mlflow_url, "GET", "experiments/get-by-name?experiment_name=binned")["experiment"]
        assert experiment["lifecycle_stage"] == "active"
        if life == 0:
            call(mlflow_url, "POST", "experiments/delete", {"experiment_id": experiment["experiment_id"]})
    assert len(call(mlflow_url, "POST", "runs/search", {"experiment_ids": [experiment["experiment_id"]]})["runs"]) == 2


def test_a_deleted_run_costs_no_call_a_point(tmp_path: Path, mlflow_url: str, monkeypatch: pytest.MonkeyPatch):
    layout = Layout(root=tmp_path, work=tmp_path / "work" / "pretrain" / "k1")
    run = open_run(layout, "dropped")
    run.finish("KILLED")
    call(mlflow_url, "POST", "runs/delete", {"run_id": only_run(mlflow_url, "dropped")["info"]["run_id"]})
    calls = []
    monkeypatch.setattr(spool, "call", lambda *arguments: calls.append(arguments[2]) or call(*arguments))
    run = open_run(layout, "dropped")
    for step in range(500):
        run.log(step, {"train/loss": 1.5})
    run.finish("FINISHED")
    assert tracking.drain(layout) == 0 and not list(layout.spool.glob("*/")) and len(calls) < 30


@pytest.mark.slow
def test_F1_a_server_that_is_killed_and_comes_back_elsewhere_has_every_point_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "server"
    home.mkdir()
    layout = Layout(root=tmp_path, work=tmp_path / "work" / "pretrain" / "k1")
    server, url = start_server(home)
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        run = open_run(layout, "away")
        run.log(0, {"train/loss": 1.5})
        assert tracking.drain(layout) == 0
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(20)
        run.log(1, {"train/loss": 1.25})
        run.finish("FINISHED")
        assert tracking.unsent(layout) == 1
        server, url = start_server(home)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        assert tracking.drain(layout) == 0 and not list(layout.spool.glob("*/"))
        found = only_run(url, "away")
        history = call(url, "GET", f"metrics/get-history?run_id={found['info']['run_id']}&metric_key=train/loss")["metrics"]
        assert sorted((m["step"], m["value"]) for m in history) == [(0, 1.5), (1, 1.25)] and found["info"]["status"] == "FINISHED"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(20)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def impatient(monkeypatch: pytest.MonkeyPatch, timeout_s: float = 0.5) -> None:
    monkeypatch.setattr(tracking, "SEND_INTERVAL_S", 0.05)
    monkeypatch.setattr(tracking, "MAX_SEND_INTERVAL_S", 0.1)
    monkeypatch.setattr(tracking, "REQUEST_TIMEOUT_S", timeout_s)
    monkeypatch.setattr(spool, "call", functools.partial(call, timeout_s=timeout_s))


def curve_of(url: str, name: str) -> tuple[str, list[tuple[int, float]]]:
    """(status, points in the order of their steps) of the one run of this experiment."""
    found = only_run(url, name)
    history = call(url, "GET", f"metrics/get-history?run_id={found['info']['run_id']}&metric_key=train/loss&max_results=1000")["metrics"]
    return found["info"]["status"], sorted((m["step"], m["value"]) for m in history)


def test_F1_refused_hung_out_of_order_and_cut_in_turn_the_server_has_each_point_once(tmp_path: Path, mlflow_url: str, monkeypatch: pytest.MonkeyPatch):
    layout = Layout(root=tmp_path, work=tmp_path / "work" / "pretrain" / "k1")
    impatient(monkeypatch)
    with Proxy(mlflow_url) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        run = open_run(layout, "misbehaving")
        step = 0
        for kind in (CUT, REFUSE, HANG, ERROR, CUT):
            for mode, done in ((kind, lambda: run._trouble), (PASS, lambda: not run._trouble)):
                proxy.misbehave(mode)
                for _ in range(20):
                    run.log(step, {"train/loss": step / 8})
                    step += 1
                wait_for(done, f"{mode} is noticed")
        run.finish("FINISHED")
        assert tracking.drain(layout) == 0 and not list(layout.spool.glob("*/"))
    assert curve_of(mlflow_url, "misbehaving") == ("FINISHED", [(n, n / 8) for n in range(step)])


def test_E2_a_locked_database_is_waited_for_and_then_named_and_nothing_is_lost(
        tmp_path: Path, mlflow_url: str, mlflow_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    layout = Layout(root=tmp_path, work=tmp_path / "work" / "pretrain" / "k1")
    layout.mlruns.symlink_to(mlflow_folder)
    impatient(monkeypatch)
    run = open_run(layout, "locked")
    run.log(0, {"train/loss": 0.0})
    wait_for(lambda: spool.sent(run.folder)["run_id"], "the run is made")
    holder = sqlite3.connect(layout.mlflow_database, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        for step in range(1, 50):
            run.log(step, {"train/loss": step / 8})
        wait_for(lambda: "locked" in run._trouble, "the database is found locked")
        run.finish("FINISHED")  # a training that ends meanwhile ends well
        told = " ".join(capsys.readouterr().err.split())
        assert f"MLflow does not have all of this run yet (database mlflow.db is locked by python (pid {os.getpid()}:" in told.replace("python3.11", "python")
        assert "Nothing is lost" in told and tracking.drain(layout) == 1
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    wait_for(lambda: tracking.drain(layout) == 0, "once it is free, all is sent")
    assert curve_of(mlflow_url, "locked") == ("FINISHED", [(n, n / 8) for n in range(50)])


@pytest.mark.slow
def test_E2_a_release_into_a_database_that_stays_locked_names_who_holds_it_and_goes_on_afterwards(
        tmp_path: Path, mlflow_url: str, mlflow_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = checkout.configuration(name="held")
    layout = checkout.make(tmp_path, config)
    layout.mlruns.symlink_to(mlflow_folder)
    services.record(layout, "mlflow", services.entry_of(layout, os.getpid(), mlflow_url))  # as the server of this very checkout
    holder = sqlite3.connect(layout.mlflow_database, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(rest.Unreachable, match=rf"database mlflow.db is locked by .*\(pid {os.getpid()}: .*Close that program, then run the same command again"):
            releasing.release(config, layout, say=lambda _: None)
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    assert [decision.verdict for decision in releasing.release(config, layout, say=lambda _: None)] == ["passed", "passed"]


def test_E3_many_loggers_at_once_lose_and_double_nothing(tmp_path: Path, mlflow_url: str):
    found = loggers.once(tmp_path, 6, 200, seed=1)
    assert found["met"], found
    assert found["counts"] == {"loggers": 6, "points": 1200, "errors": 0, "lost": 0, "doubled": 0, "wrong": 0, "unsent": 0, "not_finished": 0}


def test_F7_proxy_variables_touch_no_call_to_our_own_server(tmp_path: Path, mlflow_url: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        for variable in (name, name.lower()):
            monkeypatch.setenv(variable, "http://127.0.0.1:1")  # nobody listens there
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "example.org")
    assert call(mlflow_url, "GET", "experiments/get-by-name?experiment_name=Default")["experiment"]["experiment_id"] == "0"
    assert mlflow_rest.artifact(mlflow_url, "0" * 32, "none") is None
    assert rest.healthy(f"{mlflow_url}/health")
    client = registry.client(Layout(root=tmp_path))  # MLflow's own, as release, rollback and generate use it
    assert client.get_experiment("0").name == "Default"
    assert os.environ["NO_PROXY"] == "example.org,127.0.0.1,localhost,::1"
