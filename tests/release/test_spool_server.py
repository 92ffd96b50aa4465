"""The spool against the real MLflow server: what the stand-in of test_tracking.py cannot promise."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from components import tracking
from components.config import Config
from components.layout import Layout

pytestmark = [pytest.mark.e2e]


def open_run(layout: Layout, name: str) -> tracking.Run:
    return tracking.open_run(Config(name=name), layout, stage="pretrain", name=f"pretrain {name}", params={"a": 1}, tags={})


def only_run(url: str, name: str, view: str = "ACTIVE_ONLY") -> dict:
    experiment = tracking.call(url, "GET", f"experiments/get-by-name?experiment_name={name}")["experiment"]["experiment_id"]
    runs = tracking.call(url, "POST", "runs/search", {"experiment_ids": [experiment], "run_view_type": view})["runs"]
    assert len(runs) == 1
    return runs[0]


def test_nan_infinity_and_a_refused_point_do_not_hold_up_the_run(tmp_path: Path, mlflow_url: str):
    layout = Layout(root=tmp_path, work=tmp_path / "work" / "pretrain" / "k1")
    run = open_run(layout, "numbers")
    run.log(0, {"train/loss": 1.5, "val/loss": math.nan, "val/bits_per_byte": math.inf})
    run.log(1, {"no such: key?": 1.0, "train/loss": 1.25})
    run.finish("FINISHED", tags={"lmworks.weights_sha256": "00"})
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
    tracking.call(mlflow_url, "POST", "runs/delete", {"run_id": run_id})
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
    history = tracking.call(mlflow_url, "GET", f"metrics/get-history?run_id={run_id}&metric_key=train/loss")["metrics"]
    assert sorted((m["step"], m["value"]) for m in history) == [(0, 1.5), (1, 1.0)]
