"""The spool: training never waits for MLflow, and no point is lost or doubled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow_stand_in import Server, killed, layout_of, open_run

from components import files, mlflow_rest, spool, tracking
from components.layout import Layout

pytestmark = pytest.mark.code


def test_points_arrive_once_and_the_spool_goes(tmp_path: Path, server: Server):
    layout = layout_of(tmp_path)
    run = open_run(layout)
    for step in range(5):
        run.log(step, {"train/loss": step / 2, "train/grad_norm": 1.0})
    run.tags["lmworks.weights_sha256"] = "00"
    run.finish("FINISHED")
    assert sorted(server.points) == sorted((k, s, v) for s in range(5) for k, v in (("train/loss", s / 2), ("train/grad_norm", 1.0)))
    assert [(r["status"], r["name"], r["tags"]["lmworks.weights_sha256"]) for r in server.runs.values()] == [
        ("FINISHED", "pretrain tiny 13.9M zh+en seed 1", "00")]
    assert not list(layout.spool.glob("*/"))


def test_F1_server_away_loses_nothing_and_a_resume_doubles_nothing(tmp_path: Path, server: Server):
    layout = layout_of(tmp_path)
    server.down = True
    run = open_run(layout)
    for step in range(4):
        run.log(step, {"train/loss": float(step)})
    run.flush()
    run._ended.set()  # as if killed: no finish
    run._sender.join()
    with open(run.folder / "events.jsonl", "ab") as f:
        f.write(b'{"step": 9, "metr')  # a line cut short by the kill
    assert tracking.drain(layout) == 1
    resumed = open_run(layout)
    for step in range(2, 6):  # from the checkpoint at step 2
        resumed.log(step, {"train/loss": float(step)})
    server.down = False
    resumed.finish("FINISHED")
    assert tracking.drain(layout) == 0
    assert sorted(server.points) == [("train/loss", s, float(s)) for s in range(6)]
    assert [r["status"] for r in server.runs.values()] == ["FINISHED"]


def test_C15_a_dead_life_is_closed_and_a_resume_opens_the_same_run(tmp_path: Path, server: Server):
    layout = layout_of(tmp_path)
    run = open_run(layout)
    run.log(0, {"train/loss": 1.0})
    run._ended.set()
    run._sender.join()
    assert tracking.close_dead(layout) == []  # this very process is alive
    about = files.read_sealed(run.folder / "run.json")
    about["process"]["started"] = "another boot-1"  # another process had this pid
    spool.write_about(run.folder, about)
    assert tracking.close_dead(layout) == ["pretrain tiny 13.9M zh+en seed 1"]
    tracking.drain(layout)
    assert [r["status"] for r in server.runs.values()] == ["KILLED"]
    assert "Stopped before its end" in server.runs["r0"]["tags"][spool.NOTE]
    resumed = open_run(layout)
    resumed.log(1, {"train/loss": 0.5})
    resumed.finish("FINISHED")
    assert [r["status"] for r in server.runs.values()] == ["FINISHED"]
    assert sorted(server.points) == [("train/loss", 0, 1.0), ("train/loss", 1, 0.5)]


def test_a_forced_run_of_the_same_key_is_another_run(tmp_path: Path, server: Server):
    layout = layout_of(tmp_path)
    server.down = True
    for _ in range(2):
        run = open_run(layout)
        run.log(0, {"train/loss": 1.0})
        run.finish("FINISHED")
    server.down = False
    assert tracking.drain(layout) == 0
    assert [r["status"] for r in server.runs.values()] == ["FINISHED", "FINISHED"]


def test_a_point_that_is_refused_for_good_holds_up_no_other(tmp_path: Path, server: Server):
    layout = layout_of(tmp_path)
    server.refused = ("bad",)
    run = open_run(layout)
    for step in range(20):
        run.log(step, {"train/loss": float(step)} | ({"bad": 1.0} if step in (3, 11) else {}))
    run.finish("FINISHED")
    assert sorted(server.points) == [("train/loss", s, float(s)) for s in range(20)]
    assert [r["status"] for r in server.runs.values()] == ["FINISHED"] and tracking.unsent(layout) == 0


def test_numbers_that_json_lacks_are_sent_as_text(tmp_path: Path, server: Server):
    layout = layout_of(tmp_path)
    run = open_run(layout)
    run.log(0, {"a": float("nan"), "b": float("inf"), "c": float("-inf")})
    run.finish("FINISHED")
    assert sorted(server.points) == [("a", 0, "NaN"), ("b", 0, "Infinity"), ("c", 0, "-Infinity")]


def test_a_damaged_line_is_a_lost_point_and_a_damaged_note_sends_again(tmp_path: Path, server: Server):
    layout = layout_of(tmp_path)
    server.down = True
    run = open_run(layout)
    run.log(0, {"train/loss": 0.0})
    run._file.write(b'{"step": 9, "met\xff\n')
    run.log(1, {"train/loss": 1.0})
    run.finish("FAILED")
    (run.folder / "sent.json").write_text('{"offset": ')
    server.down = False
    assert tracking.unsent(layout) == 1 and tracking.drain(layout) == 0
    assert sorted(server.points) == [("train/loss", s, float(s)) for s in range(2)]
    for name in spool.ABOUT:
        (run.folder / name).write_text("{")
    assert tracking.close_dead(layout) == [] and tracking.drain(layout) == 0
    again = open_run(layout)  # training goes on, in a run of its own
    again.finish("FINISHED")
    assert len(server.runs) == 2


@pytest.mark.parametrize("name", spool.ABOUT)
@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_D3_a_damaged_run_json_begins_no_second_run(tmp_path: Path, server: Server, name: str, damage: str):
    layout = layout_of(tmp_path)
    run = open_run(layout)
    run.log(0, {"train/loss": 0.0})
    killed(run)
    assert tracking.drain(layout) == 0 and len(server.runs) == 1
    whole = (run.folder / name).read_text()
    (run.folder / name).write_text(whole.replace("tiny", "tinx")) if damage == "flipped" else (run.folder / name).unlink()
    again = open_run(layout)
    again.log(1, {"train/loss": 1.0})
    again.finish("FINISHED")
    assert tracking.drain(layout) == 0 and len(server.runs) == 1
    assert sorted(server.points) == [("train/loss", s, float(s)) for s in range(2)]


def test_F1_a_long_spool_goes_on_where_the_server_went_away(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch):
    layout = layout_of(tmp_path)
    monkeypatch.setattr(spool, "METRICS_A_BATCH", 10)
    server.down = True
    run = open_run(layout)
    for step in range(35):
        run.log(step, {"train/loss": float(step)})
    killed(run)
    batches = []

    def flaky(url: str, method: str, path: str, body: Any = None) -> Any:
        batches.append("metrics" in (body or {}))
        if sum(batches) == 2:
            batches.append(True)  # this once
            raise mlflow_rest.Unreachable(path)
        return real(url, method, path, body)

    real = spool.call
    server.down = False
    monkeypatch.setattr(spool, "call", flaky)
    assert tracking.drain(layout) == 1
    arrived = len(server.points)
    assert 0 < arrived < 35
    assert tracking.drain(layout) == 0
    assert len(server.points) == 35, "no batch that had arrived was sent twice"


def test_another_server_gets_the_whole_run_and_a_deleted_run_is_let_go(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch):
    layout = layout_of(tmp_path)
    run = open_run(layout)
    run.log(0, {"train/loss": 0.0})
    killed(run)
    assert tracking.drain(layout) == 0 and len(server.points) == 1
    other = Server()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other.url)
    other.runs["another"] = {"id": "another", "uuid": "-", "status": "RUNNING", "tags": {}}
    resumed = open_run(layout)
    resumed.log(1, {"train/loss": 1.0})
    killed(resumed)
    assert tracking.drain(layout) == 0
    assert sorted(other.points) == [("train/loss", 0, 0.0), ("train/loss", 1, 1.0)]
    other.deleted = True
    resumed = open_run(layout)
    resumed.log(2, {"train/loss": 2.0})
    resumed.finish("FINISHED")
    assert tracking.unsent(layout) == 0 and not list(layout.spool.glob("*/"))
    other.http.shutdown()
    other.http.server_close()


def test_servers_of_a_copied_checkout_are_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from components import files
    from components.operations import liveness

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    layout = Layout(root=tmp_path)
    entry = {**liveness.entry(__import__("os").getpid()), "root": str(tmp_path), "url": "http://127.0.0.1:1"}
    files.write_json(layout.services, {"mlflow": entry})
    assert mlflow_rest.server_url(layout) == "http://127.0.0.1:1"
    files.write_json(layout.services, {"mlflow": {**entry, "root": "/the/original"}})
    assert mlflow_rest.server_url(layout) is None
