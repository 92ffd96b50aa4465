"""A tracking server that refuses, hangs, delays, cuts, drips or is out of order: training goes on, and each point arrives in the end."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_training
from mlflow_stand_in import Server, killed, layout_of
from mlflow_stand_in import open_run as open_run_anywhere

from benchmarks.reliability import proxy as proxies
from benchmarks.reliability.proxy import CUT, DELAY, DRIP, ERROR, HANG, PASS, REFUSE, Proxy
from components import mlflow_rest, spool, tracking
from components.layout import Layout
from components.operations import rest

pytestmark = pytest.mark.code

_OPENED: list[tracking.Run] = []

KINDS = [kind for kind in proxies.MODES if kind != PASS]


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A stand-in behind a proxy, as the server that the environment names; every wait is short. `proxy.server` is the stand-in."""
    server = Server()
    with Proxy(server.url, delay_s=1.0) as proxy:
        proxy.server = server
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        monkeypatch.setattr(tracking, "SEND_INTERVAL_S", 0.05)
        monkeypatch.setattr(tracking, "MAX_SEND_INTERVAL_S", 0.1)
        monkeypatch.setattr(tracking, "REQUEST_TIMEOUT_S", 1.0)
        monkeypatch.setattr(spool, "call", functools.partial(mlflow_rest.call, timeout_s=1.0))
        yield proxy
        while _OPENED:  # a test that failed half-way must not send its run to the server of the next
            killed(_OPENED.pop())
    server.http.shutdown()
    server.http.server_close()


def open_run(layout: Layout) -> tracking.Run:
    _OPENED.append(open_run_anywhere(layout))
    return _OPENED[-1]


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != DRIP])  # the answer to points is two bytes: they do not drip for long
def test_F1_every_point_arrives_once_the_server_is_back(kind: str, tmp_path: Path, proxy: Proxy):
    layout = layout_of(tmp_path)
    run = open_run(layout)
    run.log(0, {"train/loss": 0.0})
    wait_for(lambda: proxy.server.points, "the first point, while all is well")
    proxy.misbehave(kind)
    for step in range(1, 30):
        run.log(step, {"train/loss": float(step)})
    wait_for(lambda: run._trouble and (kind == REFUSE or proxy.met[kind]), "the sender met the fault")
    assert run._sender.is_alive(), "and tries again"
    proxy.misbehave(PASS)
    run.log(30, {"train/loss": 30.0})
    run.finish("FINISHED")
    assert tracking.drain(layout) == 0 and not list(layout.spool.glob("*/"))
    # an answer that was lost is no reason for the server to have taken nothing: MLflow's own key makes the second time harmless
    assert set(proxy.server.points) == {("train/loss", step, float(step)) for step in range(31)}
    assert [one["status"] for one in proxy.server.runs.values()] == ["FINISHED"], "one run, however often it was asked for"


@pytest.mark.parametrize(("kind", "words"), [(REFUSE, "refused"), (HANG, "timed out"), (ERROR, "500 out of order"), (CUT, "IncompleteRead")])
def test_F1_a_run_that_could_not_be_sent_says_where_it_waits_and_why(kind: str, words: str, tmp_path: Path, proxy: Proxy, capsys: pytest.CaptureFixture[str]):
    layout = layout_of(tmp_path)
    run = open_run(layout)
    proxy.misbehave(kind)
    run.log(0, {"train/loss": 0.0})
    wait_for(lambda: run._trouble, "the sender met the fault")
    run.finish("FINISHED")
    told = " ".join(capsys.readouterr().err.split())
    assert told.startswith("pretrain tiny 13.9M zh+en seed 1: MLflow does not have all of this run yet (") and words in told
    assert "Nothing is lost: it waits in .lmworks/spool/pretrain-k1-tiny, the next `lmworks up` or `lmworks run` sends it" in told
    assert "Traceback" not in told
    proxy.misbehave(PASS)
    assert tracking.drain(layout) == 0 and {point[:2] for point in proxy.server.points} == {("train/loss", 0)}


def test_F1_no_step_of_a_training_waits_for_a_server_that_hangs(tmp_path: Path, proxy: Proxy):
    layout = layout_of(tmp_path)
    proxy.misbehave(HANG)
    run = open_run(layout)
    _, curve = tiny_training.train(tmp_path / "checkpoints", run=run)
    assert proxy.server.runs == {} and proxy.server.points == [], "all steps are done, and not one request was answered until now"
    proxy.misbehave(PASS)
    run.finish("FINISHED")
    assert tracking.drain(layout) == 0
    losses = sorted((step, value) for key, step, value in set(proxy.server.points) if key == "train/loss")
    assert losses == [(int(point["step"]), point["train/loss"]) for point in curve]


@pytest.mark.parametrize("kind", KINDS)
def test_F1_each_call_is_bounded_and_one_clear_error(kind: str, proxy: Proxy):
    assert 2 * mlflow_rest.REQUEST_TIMEOUT_S <= 10, "for an answer to begin, and for the rest of it"
    proxy.misbehave(kind)
    # the proxy waits a second, or drips for longer, before the answer is whole: without a bound these calls would succeed
    with pytest.raises(mlflow_rest.Unreachable):
        mlflow_rest.call(proxy.url, "GET", "experiments/get-by-name?experiment_name=x", timeout_s=0.3)
    with pytest.raises(mlflow_rest.Unreachable):
        mlflow_rest.artifact(proxy.url, "r0", "README.md", timeout_s=0.3)
    if kind != DRIP:
        with pytest.raises(rest.Unreachable):
            rest.call(f"{proxy.url}/health", timeout_s=0.3)
        assert not rest.healthy(f"{proxy.url}/health", timeout_s=0.3)
    assert kind not in (HANG, DELAY) or proxy.met[kind] >= 4


def test_F1_a_second_run_that_a_slow_server_made_for_the_same_training_goes(tmp_path: Path, proxy: Proxy):
    """Its maker gave up on the answer and asked again; the first request was taken in the meantime."""
    layout = layout_of(tmp_path)
    run = open_run(layout)
    run.log(0, {"train/loss": 0.0})
    wait_for(lambda: proxy.server.points, "the run is made")
    (only,) = proxy.server.runs.values()
    proxy.server.runs["late"] = {**only, "id": "late", "tags": {}}
    run.finish("FINISHED")
    assert [one["status"] for one in proxy.server.runs.values()] == ["FINISHED"] and list(proxy.server.runs) == [only["id"]]
