"""`lmworks runs` with the servers away: what this checkout knows by itself, and how a result is put in words."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands import main, runs
from components import files
from components.layout import Layout
from components.operations import last_run, liveness

pytestmark = pytest.mark.code


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    for variable in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(runs, "Layout", lambda: Layout(root=tmp_path))
    return Layout(root=tmp_path)


EVENTS = '{"status": "RUNNING"}\n'


def spool(layout: Layout, name: str, process: dict | None, *, sent: int = 0) -> None:
    folder = layout.spool / name
    files.write_json(folder / "run.json", {"name": name, "experiment": "tiny", "started_ms": 1_700_000_000_000, "tags": {"lmworks.stage": "pretrain"},
                                           "process": process})
    (folder / "events.jsonl").write_text(EVENTS)
    files.write_json(folder / "sent.json", {"offset": sent, "run_id": "r", "refused": 0})


def test_without_servers_it_says_so_and_shows_what_is_known(layout: Layout):
    last_run.write(layout, verdict="Promoted", message="", exit_code=0, elapsed_s=61, flow_run=None)
    spool(layout, "pretrain 红楼梦", liveness.entry(os.getpid()))
    spool(layout, "finetune tiny", {"pid": 1, "started": "never"})
    spool(layout, "wholly sent", {"pid": 1, "started": "never"}, sent=len(EVENTS))
    (layout.spool / "damaged").mkdir()
    (layout.spool / "damaged" / "run.json").write_text("{")
    done = CliRunner().invoke(main.app, ["runs", "--all"])
    assert done.exit_code == 0, done.output
    for part in ("in training: pretrain 红楼梦", "not wholly sent to MLflow: finetune tiny", "last `lmworks run`: Promoted", "took 61 s"):
        assert part in " ".join(done.stdout.split()), done.stdout
    assert "wholly sent," not in done.stdout and "MLflow and Prefect are down" in done.stderr
    told = json.loads(CliRunner().invoke(main.app, ["runs", "--all", "--json"]).stdout)
    assert told["models"] == told["chains"] == [] and len(told["problems"]) == 1 and told["last_run"]["verdict"] == "Promoted"


@pytest.mark.parametrize(("stage", "metrics", "words"), [
    ("pretrain", {"eval/bits_per_byte_zh": 2.2367, "eval/bits_per_byte_en": 2.007, "val/bits_per_byte_zh": 9.0}, "2.007 en, 2.237 zh bits per byte"),
    ("pretrain", {"val/bits_per_byte_zh": 2.5, "val/bits_per_byte_best": 2.4, "val/bits_per_byte": 2.5}, "2.500 zh bits per byte (validation)"),
    ("finetune", {"eval/f1_classification_zh": .816, "eval/majority_f1_classification_zh": .3, "eval/accuracy_classification_zh": .8},
     "classification f1 0.816 zh"),
    ("finetune", {}, "")])
def test_a_result_in_words(stage: str, metrics: dict[str, float], words: str):
    assert runs.result({"stage": stage, "metrics": metrics}) == words
