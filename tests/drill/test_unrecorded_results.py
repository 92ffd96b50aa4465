"""Killed between the end of a training and the moment DVC has written it down: it goes on from its last checkpoint, as the same run."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from mlflow_stand_in import Server, layout_of, open_run

from components import chain, files, stage_code, tracking
from components.config import Config
from components.layout import Layout
from components.operations import recorded
from components.reporting import Report

pytestmark = pytest.mark.code


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    server = Server()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    yield server
    server.http.shutdown()
    server.http.server_close()


def lock(layout: Layout, name: str) -> None:
    layout.dvc_lock.write_text(yaml.safe_dump({"schema": "2.0", "stages": {"fetch": {"outs": [
        {"path": f"data/{out}", "md5": name if out == "sources/base" else recorded.dvc_name(layout.out(out))} for out in chain.BY_NAME["fetch"].outs]}}}))


def test_C2_checkpoints_stay_until_dvc_has_recorded_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    layout, began = Layout(root=tmp_path), []
    monkeypatch.setattr(chain, "check_versions", lambda *_: None)
    monkeypatch.setattr(stage_code, "of", lambda *_: [])
    monkeypatch.setattr(chain, "fingerprint", lambda *_: {"code": {}})
    monkeypatch.setattr(chain, "load", lambda _: Config())

    def run(_config, at):
        checkpoint = at.work / "checkpoints" / "step-00000090"
        began.append(checkpoint.exists())
        checkpoint.mkdir(parents=True, exist_ok=True)
        for out in chain.BY_NAME["fetch"].outs:
            (at.out(out) / "weights").write_text(out)
        return Report()

    def once() -> bool:
        """Whether the stage, run as DVC would, finds a checkpoint."""
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        chain.run_stage(chain.BY_NAME["fetch"], layout, Config(), SimpleNamespace(run=run))
        return began[-1]

    assert [once(), once()] == [False, True], "killed before dvc.lock knew: it goes on"
    lock(layout, "0123.dir")  # an older result
    assert once() is True
    lock(layout, recorded.dvc_name(layout.out("sources/base")))
    assert once() is False, "recorded: a stage that is forced begins at step 0"
    recorded.drop_recorded(layout)
    assert not list(layout.work_root.glob("*/*")), "and nothing of it takes space"
    layout.dvc_lock.write_text("stages: [")
    once()
    recorded.drop_recorded(layout)  # who needs dvc.lock says that it is damaged


def test_C15_killed_after_its_end_a_training_goes_on_as_the_same_run(tmp_path: Path, server: Server):
    layout = layout_of(tmp_path)
    checkpoints = layout.work / "checkpoints"
    checkpoints.mkdir(parents=True)
    run = open_run(layout)
    for step in range(1, 4):
        run.log(step, {"train/loss": float(step)})
    run.finish("FINISHED")
    resumed = open_run(layout)  # DVC had not recorded it: from the last checkpoint, with the curve until there
    for step in range(1, 4):
        resumed.log(step, {"train/loss": float(step)})
    resumed.finish("FINISHED")
    assert sorted(server.points) == [("train/loss", step, float(step)) for step in range(1, 4)]
    assert [one["status"] for one in server.runs.values()] == ["FINISHED"]
    assert tracking.drain(layout) == 0 and len(list(layout.spool.glob("*/"))) == 1, "kept for a life to come"
    checkpoints.rmdir()
    layout.work.rmdir()
    assert tracking.drain(layout) == 0 and not list(layout.spool.glob("*/"))
    assert files.list_files(layout.spool) == []
