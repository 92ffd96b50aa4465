"""The spool: training never waits for MLflow, and no point is lost or doubled."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from components import tracking
from components.config import Config
from components.layout import Layout

pytestmark = pytest.mark.code


class Server:
    """A stand-in for MLflow's REST API that can be away; the chain's own tests use the real one."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.points: list[tuple] = []
        self.down = False
        self.refused: tuple[str, ...] = ()  # keys of points that are never taken
        self.deleted = False  # a person deleted the runs
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None: ...

            def do_GET(self) -> None:
                self.answer({"run": {"info": {"lifecycle_stage": "deleted" if outer.deleted else "active"}}} if "runs/get" in self.path
                            else {"experiment": {"experiment_id": "1"}})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                path = self.path.removeprefix("/api/2.0/mlflow/")
                refused = any(m["key"] in outer.refused for m in body.get("metrics", [])) or (outer.deleted and "run_id" in body)
                unknown = "run_id" in body and body["run_id"] not in outer.runs
                if outer.down or refused or unknown:
                    self.send_response(503 if outer.down else 404 if unknown else 400)
                    self.end_headers()
                    return
                if path == "runs/search":
                    found = [r for r in outer.runs.values() if r["uuid"] in body["filter"]]
                    self.answer({"runs": [{"info": {"run_id": r["id"]}} for r in found]})
                elif path == "runs/create":
                    run_id = f"r{len(outer.runs)}"
                    outer.runs[run_id] = {"id": run_id, "uuid": next(t["value"] for t in body["tags"] if t["key"] == "lmworks.run_uuid"), "status": "RUNNING"}
                    self.answer({"run": {"info": {"run_id": run_id}}})
                elif path == "runs/update":
                    outer.runs[body["run_id"]]["status"] = body["status"]
                    self.answer({})
                else:
                    outer.points += [(m["key"], m["step"], m["value"]) for m in body.get("metrics", [])]
                    self.answer({})

            def answer(self, value: dict) -> None:
                payload = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    server = Server()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    yield server
    server.http.shutdown()
    server.http.server_close()


def open_run(layout: Layout) -> tracking.Run:
    return tracking.open_run(Config(), layout, stage="pretrain", name="pretrain tiny", params={"a": 1}, tags={})


def test_points_arrive_once_and_the_spool_goes(tmp_path: Path, server: Server):
    layout = Layout(root=tmp_path, work=tmp_path / "work" / "pretrain" / "k1")
    run = open_run(layout)
    for step in range(5):
        run.log(step, {"train/loss": step / 2, "val/loss": 1.0})
    run.finish("FINISHED", tags={"lmworks.weights_sha256": "00"})
    assert sorted(server.points) == sorted((k, s, v) for s in range(5) for k, v in (("train/loss", s / 2), ("val/loss", 1.0)))
    assert [r["status"] for r in server.runs.values()] == ["FINISHED"]
    assert not list(layout.spool.glob("*/"))


def test_F1_server_away_loses_nothing_and_a_resume_doubles_nothing(tmp_path: Path, server: Server):
    layout = Layout(root=tmp_path, work=tmp_path / "work" / "pretrain" / "k1")
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
    layout = Layout(root=tmp_path, work=tmp_path / "work" / "pretrain" / "k1")
    run = open_run(layout)
    run.log(0, {"train/loss": 1.0})
    run._ended.set()
    run._sender.join()
    assert tracking.close_dead(layout) == []  # this very process is alive
    about = json.loads((run.folder / "run.json").read_text())
    about["process"]["started"] = "another boot-1"  # another process had this pid
    (run.folder / "run.json").write_text(json.dumps(about))
    assert tracking.close_dead(layout) == ["pretrain tiny"]
    tracking.drain(layout)
    assert [r["status"] for r in server.runs.values()] == ["KILLED"]
    resumed = open_run(layout)
    resumed.log(1, {"train/loss": 0.5})
    resumed.finish("FINISHED")
    assert [r["status"] for r in server.runs.values()] == ["FINISHED"]
    assert sorted(server.points) == [("train/loss", 0, 1.0), ("train/loss", 1, 0.5)]


def test_a_forced_run_of_the_same_key_is_another_run(tmp_path: Path, server: Server):
    layout = Layout(root=tmp_path, work=tmp_path / "work" / "pretrain" / "k1")
    server.down = True
    for _ in range(2):
        run = open_run(layout)
        run.log(0, {"train/loss": 1.0})
        run.finish("FINISHED")
    server.down = False
    assert tracking.drain(layout) == 0
    assert [r["status"] for r in server.runs.values()] == ["FINISHED", "FINISHED"]


def killed(run: tracking.Run) -> None:
    """As a kill leaves it: no last state, the sender gone."""
    run._ended.set()
    run._sender.join()


def test_a_point_that_is_refused_for_good_holds_up_no_other(tmp_path: Path, server: Server):
    layout = Layout(root=tmp_path, work=tmp_path / "work" / "pretrain" / "k1")
    server.refused = ("bad",)
    run = open_run(layout)
    for step in range(20):
        run.log(step, {"train/loss": float(step)} | ({"bad": 1.0} if step in (3, 11) else {}))
    run.finish("FINISHED")
    assert sorted(server.points) == [("train/loss", s, float(s)) for s in range(20)]
    assert [r["status"] for r in server.runs.values()] == ["FINISHED"] and tracking.unsent(layout) == 0


def test_numbers_that_json_lacks_are_sent_as_text(tmp_path: Path, server: Server):
    layout = Layout(root=tmp_path, work=tmp_path / "work" / "pretrain" / "k1")
    run = open_run(layout)
    run.log(0, {"a": float("nan"), "b": float("inf"), "c": float("-inf")})
    run.finish("FINISHED")
    assert sorted(server.points) == [("a", 0, "NaN"), ("b", 0, "Infinity"), ("c", 0, "-Infinity")]


def test_a_damaged_line_is_a_lost_point_and_a_damaged_note_sends_again(tmp_path: Path, server: Server):
    layout = Layout(root=tmp_path, work=tmp_path / "work" / "pretrain" / "k1")
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
    (run.folder / "run.json").write_text("{")
    assert tracking.close_dead(layout) == [] and tracking.drain(layout) == 0
    again = open_run(layout)  # training goes on, in a run of its own
    again.finish("FINISHED")
    assert len(server.runs) == 2


def test_F1_a_long_spool_goes_on_where_the_server_went_away(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch):
    layout = Layout(root=tmp_path, work=tmp_path / "work" / "pretrain" / "k1")
    monkeypatch.setattr(tracking, "METRICS_A_BATCH", 10)
    server.down = True
    run = open_run(layout)
    for step in range(35):
        run.log(step, {"train/loss": float(step)})
    killed(run)
    calls = []

    def flaky(url: str, method: str, path: str, body: Any = None) -> Any:
        calls.append(path)
        if len(calls) == 7:  # the second batch
            raise tracking.Unreachable(path)
        return real(url, method, path, body)

    real = tracking.call
    server.down = False
    monkeypatch.setattr(tracking, "call", flaky)
    assert tracking.drain(layout) == 1
    arrived = len(server.points)
    assert 0 < arrived < 35
    assert tracking.drain(layout) == 0
    assert len(server.points) == 35, "no batch that had arrived was sent twice"


def test_another_server_gets_the_whole_run_and_a_deleted_run_is_let_go(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch):
    layout = Layout(root=tmp_path, work=tmp_path / "work" / "pretrain" / "k1")
    run = open_run(layout)
    run.log(0, {"train/loss": 0.0})
    killed(run)
    assert tracking.drain(layout) == 0 and len(server.points) == 1
    other = Server()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other.url)
    other.runs["another"] = {"id": "another", "uuid": "-", "status": "RUNNING"}
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
    assert tracking.server_url(layout) == "http://127.0.0.1:1"
    files.write_json(layout.services, {"mlflow": {**entry, "root": "/the/original"}})
    assert tracking.server_url(layout) is None
