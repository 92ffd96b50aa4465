"""What MLflow's page says of a training run while it runs, after it was killed, and at its end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from mlflow_stand_in import Server, killed, layout_of, open_run

from components import provenance, spool, tracking
from components.config import Config, build
from components.errors import UserError

pytestmark = pytest.mark.code


def test_the_best_stands_beside_the_last_and_a_resume_goes_on_with_it(tmp_path: Path, server: Server):
    layout = layout_of(tmp_path)
    run = open_run(layout)
    for step, loss in ((10, 3.0), (20, 2.0), (30, 2.5)):
        run.log(step, {"val/loss": loss, "val/bits_per_byte": loss / 2})
    killed(run)
    resumed = open_run(layout)
    for step, loss in ((30, 2.5), (40, float("nan")), (50, 2.25), (60, 1.0)):
        resumed.log(step, {"val/loss": loss, "val/bits_per_byte": loss / 2})
    resumed.finish("FINISHED")
    best = [(step, value) for key, step, value in server.points if key == "val/loss_best"]
    assert best == [(10, 3.0), (20, 2.0), (30, 2.0), (50, 2.0), (60, 1.0)]
    assert [value for key, _, value in server.points if key == "val/bits_per_byte_best"] == [1.5, 1.0, 1.0, 1.0, 0.5]


def test_samples_of_the_machine_count_on_after_a_resume(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracking, "SAMPLE_INTERVAL_S", 0.05)
    monkeypatch.setattr(tracking, "SEND_INTERVAL_S", 0.05)
    layout = layout_of(tmp_path)
    for life in range(2):
        run = open_run(layout)
        run.log(life, {"train/loss": 1.0})
        while run._samples < 3 * (life + 1):
            time.sleep(0.01)
        killed(run) if life == 0 else run.finish("FINISHED")
    by_key: dict[str, list[int]] = {}
    for key, step, value in server.samples:
        assert value >= 0
        by_key.setdefault(key, []).append(step)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes", "system/system_memory_usage_percentage"} <= set(by_key)
    memory = by_key["system/system_memory_usage_megabytes"]
    assert memory == list(range(len(memory))) and len(memory) >= 6
    assert [step for _, step, _ in server.points] == [0, 1], "samples have an axis of their own"


def test_what_failed_says_why_in_one_line_and_a_resume_takes_that_back(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch):
    layout = layout_of(tmp_path)
    about = {"stage": "pretrain", "parameters": 13_900_000, "languages": ["zh"], "params": {}}
    monkeypatch.setenv("LMWORKS_FLOW_RUN", "http://127.0.0.1:4200/runs/flow-run/1")
    monkeypatch.setenv("LMWORKS_DEPLOYMENT", "refresh")
    with pytest.raises(UserError), tracking.tracked(Config(), layout, **about):
        raise UserError("the loss of step 3\nis <b>nan</b>")
    run = server.runs["r0"]
    assert run["status"] == "FAILED" and run["tags"][tracking.ERROR] == "the loss of step 3 is <b>nan</b>"
    assert "&lt;b&gt;nan" in run["tags"][spool.NOTE] and "<b>" not in run["tags"][spool.NOTE]
    assert (run["tags"][provenance.PREFECT_RUN][-1], run["tags"][provenance.DEPLOYMENT]) == ("1", "refresh")
    monkeypatch.setenv("LMWORKS_FLOW_RUN", "http://127.0.0.1:4200/runs/flow-run/2")
    monkeypatch.delenv("LMWORKS_DEPLOYMENT")
    server.down = True  # both lives' words arrive in one batch
    with pytest.raises(KeyboardInterrupt), tracking.tracked(Config(), layout, **about):
        raise KeyboardInterrupt
    server.down = False
    with tracking.tracked(Config(), layout, **about) as open_:
        open_.tags["lmworks.weights_sha256"] = "00"
    assert len(server.runs) == 1 and run["status"] == "FINISHED" and run["tags"]["lmworks.weights_sha256"] == "00"
    assert tracking.ERROR not in run["tags"] and provenance.DEPLOYMENT not in run["tags"]
    assert run["tags"][provenance.PREFECT_RUN][-1] == "2" and "flow-run/2" in run["tags"][spool.NOTE]
    assert "**Trained.**" in run["tags"][spool.NOTE]


def test_a_clock_that_is_set_back_does_not_turn_the_curve_round(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch):
    layout = layout_of(tmp_path)
    run = open_run(layout)
    run.log(0, {"train/loss": 1.0})
    killed(run)
    monkeypatch.setattr(tracking, "now_ms", lambda: 1_000)
    resumed = open_run(layout)
    resumed.log(1, {"train/loss": 1.0})
    resumed.flush()
    times = [event["t"] for event in spool.events(run.folder)]
    assert times == sorted(times) and times[0] > 1_000
    resumed.finish("FINISHED")


def test_a_full_disk_under_the_spool_does_not_stop_training(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch):
    layout = layout_of(tmp_path)
    run = open_run(layout)
    whole = run._file
    monkeypatch.setattr(run, "_file", open("/dev/full", "wb"))  # noqa: SIM115 - closed below
    run.log(0, {"train/loss": 1.0})
    run.flush()
    with pytest.raises(OSError):
        run._file.close()
    run._file = whole
    run.log(1, {"train/loss": 0.5})
    run.finish("FINISHED")
    assert ("train/loss", 1, 0.5) in server.points


def test_names_are_grouped_by_what_they_were_trained_with(tmp_path: Path, server: Server):
    layout = layout_of(tmp_path)
    config = build({"name": "novel", "seed": 7}, where="test")
    layout.dvc_lock.write_text("stages:\n  fetch:\n    params:\n      sources.yaml:\n        corpus.digest: 22c35cf17c26846254855038dfcea8f6\n")
    tracking.open_run(config, layout, stage="finetune", parameters=1_234_000_000, languages=["zh", "en"], params={}).finish("FINISHED")
    run = server.runs["r0"]
    assert run["name"] == "finetune novel 1.2B zh+en seed 7"
    wanted = {"lmworks.stage": "finetune", "lmworks.name": "novel", "lmworks.preset": config.preset, "lmworks.seed": "7", "lmworks.size": "1.2B",
              "lmworks.languages": "en+zh", "lmworks.corpus_digest": "22c35cf17c26"}
    assert {key: run["tags"].get(key) for key in wanted} == wanted
    assert "core" in run["tags"]["lmworks.processor"]
