"""A real training, killed in mid-run and resumed, as the page of a real MLflow server shows it at every moment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_training

from components import provenance, spool, tracking
from components.layout import ROOT, Layout
from components.mlflow_rest import call
from flows import reconciler

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

KILLED_IN_STEP = 36  # after the points of step 35 and the checkpoint of step 32: three steps and a point are computed twice
STEPS = 60
SCRIPT = f"""
import os, signal, sys, time
from pathlib import Path
import tiny_training
from components import tracking
from components.config import Config
from components.layout import Layout
from components.operations import unclean
from components.training import loop

root, kill_in_step = Path(sys.argv[1]), int(sys.argv[2])
tracking.SEND_INTERVAL_S, tracking.SAMPLE_INTERVAL_S = 0.2, 0.3
layout = Layout(root=root, work=root / "work" / "pretrain" / "k1")
steps, whole = 0, loop._update

def slowed(*arguments):
    global steps
    steps = arguments[5] + 1
    time.sleep(0.04)
    if steps == kill_in_step:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments)

def validate(model):  # goes up and down, with its best before the kill and its last point below that
    loss = {{10: 3.0, 20: 1.0, 30: 2.0, 40: 2.5, 50: 1.5, 60: 0.5}}[steps]
    return {{"val/loss": loss, "val/bits_per_byte": loss / 2}}

loop._update = slowed
marker = unclean.mark(layout, "stage", stage="pretrain")
with tracking.tracked(Config(name="killed"), layout, stage="pretrain", parameters=13_900_000, languages=["en"], params={{"a": 1}}) as run:
    tiny_training.train(layout.work / "checkpoints", run=run, validate=validate, steps={STEPS})
    run.tags["lmworks.weights_sha256"] = "00"
marker.unlink()
"""


def start(root: Path, flow_run: str, kill_in_step: int = 0) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{Path(tiny_training.__file__).parent}", "OMP_NUM_THREADS": "1",
                                "LMWORKS_FLOW_RUN": f"http://127.0.0.1:4200/runs/flow-run/{flow_run}"}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(root), str(kill_in_step)], env=environment, stderr=subprocess.PIPE, text=True)


def the_run(url: str) -> dict | None:
    found = call(url, "GET", "experiments/get-by-name?experiment_name=killed")
    runs = call(url, "POST", "runs/search", {"experiment_ids": [found["experiment"]["experiment_id"]]}).get("runs", []) if found else []
    assert len(runs) <= 1, "one row a model"
    return runs[0] if runs else None


def tags_of(run: dict) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["data"]["tags"]}


def seen_running(url: str, process: subprocess.Popen, flow_run: str) -> bool:
    """Whether the page said RUNNING, with the newest Prefect run, while the training went on."""
    while process.poll() is None:
        run = the_run(url)
        if run and run["info"]["status"] == "RUNNING" and tags_of(run).get(provenance.PREFECT_RUN, "").endswith(flow_run):
            return process.poll() is None
        time.sleep(0.05)
    return False


def test_C15_killed_and_resumed_is_one_curve_without_a_zigzag_and_its_status_is_right_at_every_moment(tmp_path: Path, mlflow_url: str):
    layout = Layout(root=tmp_path)
    first = start(tmp_path, "one", KILLED_IN_STEP)
    assert seen_running(mlflow_url, first, "one"), first.communicate()[1]
    assert first.wait(60) == -9, first.communicate()[1]
    done = reconciler.reconcile(layout)
    assert any("is KILLED now" in line for line in done), done
    run = the_run(mlflow_url)
    assert run["info"]["status"] == "KILLED" and "Stopped before its end" in tags_of(run)[spool.NOTE]
    second = start(tmp_path, "two")
    assert seen_running(mlflow_url, second, "two"), second.communicate()[1]
    words = second.communicate(timeout=60)[1]
    assert second.returncode == 0 and "resumes after step 32" in words, words
    shutil.rmtree(layout.work_root)  # as the chain does when DVC has recorded the result
    assert tracking.drain(layout) == 0 and not list(layout.spool.glob("*/"))

    run = the_run(mlflow_url)
    tags = tags_of(run)
    assert run["info"]["status"] == "FINISHED" and run["info"]["end_time"] > run["info"]["start_time"]
    assert tags["lmworks.weights_sha256"] == "00" and "flow-run/two" in tags[spool.NOTE] and tracking.ERROR not in tags
    curves = {metric["key"]: history(mlflow_url, run["info"]["run_id"], metric["key"]) for metric in run["data"]["metrics"]}
    for key, points in curves.items():
        steps = [point["step"] for point in points]
        assert steps == sorted(set(steps)), f"{key}: a step twice, or out of order in time: {steps}"
    assert [point["step"] for point in curves["train/loss"]] == list(range(5, STEPS + 1, 5))
    assert [point["step"] for point in curves["val/loss"]] == list(range(10, STEPS + 1, 10))
    for key in tracking.BEST:
        losses = [point["value"] for point in curves[key]]
        assert [point["value"] for point in curves[f"{key}_best"]] == [min(losses[:n + 1]) for n in range(len(losses))]
    for key in ("system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"):
        assert len(curves[key]) >= 4
    memory = [point["step"] for point in curves["system/system_memory_usage_megabytes"]]
    assert memory == list(range(len(memory))), "samples go on where the killed life stopped"


def history(url: str, run_id: str, key: str) -> list[dict]:
    """The points of one curve in the order of their time."""
    points = call(url, "GET", f"metrics/get-history?run_id={run_id}&metric_key={key}&max_results=1000")["metrics"]
    return sorted(points, key=lambda point: (int(point["timestamp"]), int(point["step"])))
