"""`lmworks status`: what it says with no server, and the exit code that a monitor reads."""

from __future__ import annotations

import inspect
import io
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner

from commands import main, status
from components import config as settings
from components import files
from components.corpus import sources
from components.layout import Layout
from components.operations import last_run, silence

pytestmark = pytest.mark.code


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A checkout with a Chinese corpus folder, no server and no DVC."""
    for variable in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    folder = tmp_path / "语料 一"
    folder.mkdir()
    (folder / "红楼梦.txt").write_text("满纸荒唐言，一把辛酸泪。\n")
    (tmp_path / "records.jsonl").write_text('{"application": "classification", "prompt": "x", "answer": "y"}\n')
    flat = settings.flatten(settings.Config().model_dump(mode="json")) | {
        "name": "dream", "corpus.source": "语料 一", "corpus.records": "records.jsonl"}
    made = Layout(root=tmp_path)
    files.write_atomic(made.params, settings.render(settings.build(flat, where="test")))
    monkeypatch.setattr(status, "Layout", lambda: made)
    return made


def ended(days_ago: float, *, green: bool, verdict: str, message: str = "") -> dict[str, Any]:
    moment = datetime.fromtimestamp(time.time() - days_ago * 86400, UTC).isoformat(timespec="seconds")
    return {"deployment": "refresh", "flow_run": "http://127.0.0.1:4311/runs/flow-run/57a762d0-1b5c-480a-9c62-8b8eab364bb9", "verdict": verdict,
            "message": message, "green": green, "ended_at": moment, "next_at": datetime.fromtimestamp(time.time() + 86400 - days_ago * 86400, UTC).isoformat(timespec="seconds")}


def scheduled(layout: Layout, last: dict[str, Any], last_green: dict[str, Any] | None) -> None:
    files.write_json(layout.scheduled, {"format": silence.FORMAT, "deployments": {
        "refresh": {"first": last, "last": last, "judged": last, "last_green": last_green}}})


def asked(*arguments: str, code: int) -> str:
    done = CliRunner().invoke(main.app, ["status", *arguments])
    assert done.exit_code == code, done.output
    return done.output


def test_all_servers_down_is_no_error(layout: Layout):
    out = asked(code=0)
    for part in ("mlflow", "down", "last run    none is known", "no deployment has run yet", "MLflow is down", "start       lmworks up"):
        assert part in out, out
    assert max(map(cell_len, out.splitlines())) <= 80
    told = json.loads(asked("--json", code=0))
    assert set(told) == {"services", "restore", "run", "stage", "unclean", "unsent", "last_run", "scheduled", "champions", "stale", "exit_code"}


@pytest.mark.parametrize(("last", "last_green", "code", "words"), [
    (ended(.1, green=True, verdict="Promoted"), ended(.1, green=True, verdict="Promoted"), 0, "Promoted"),
    (ended(.1, green=False, verdict="Blocked", message="clean: 一半的行是空的"), ended(1, green=True, verdict="Promoted"), 1, "一半的行是空的"),
    (ended(9, green=True, verdict="Nothing changed"), ended(9, green=True, verdict="Nothing changed"), 1, "too old: the last green run was 9 d ago"),
    (ended(.1, green=False, verdict="Failed"), None, 1, "no run was ever green"),
])
def test_the_exit_code_says_whether_the_nights_are_fine(layout: Layout, last: dict[str, Any], last_green: dict[str, Any] | None, code: int, words: str):
    scheduled(layout, last, last_green)
    assert words in " ".join(asked(code=code).split())
    assert json.loads(asked("--json", code=code))["exit_code"] == code


def test_the_last_run_is_the_newer_of_terminal_and_deployment(layout: Layout):
    last_run.write(layout, verdict="Failed", message="row 7 of 红楼梦.txt has no text", exit_code=2, elapsed_s=192, flow_run="http://127.0.0.1:1/runs/flow-run/x")
    out = asked(code=0)
    assert "last run    Failed, " in out and "took 3.2 min" in out and "row 7 of 红楼梦.txt" in out and "http://127.0.0.1:1/runs/flow-run/x" in out
    green = ended(-1, green=True, verdict="Promoted")  # later than that
    scheduled(layout, green, green)
    assert "last run    the scheduled one" in asked(code=0)


def test_damaged_notes_are_no_notes(layout: Layout):
    for path in (layout.last_run, layout.scheduled, layout.receipt):
        files.write_atomic(path, "{ not json")
    assert "none is known" in asked(code=0)


def test_a_changed_corpus_is_noticed_and_sources_yaml_is_left_alone(layout: Layout):
    config = settings.load(layout.params)
    sources.update(config, layout)
    before = layout.sources.read_bytes()
    assert status.changed_sources(config, layout) == []
    (layout.root / "语料 一" / "第二回.txt").write_text("贾夫人仙逝扬州城\n")
    assert status.changed_sources(config, layout) == ["the files of corpus changed"]
    assert layout.sources.read_bytes() == before


def test_stages_that_only_follow_are_counted():
    told = {"not_asked": None, "sources": [], "stages": {
        "pretrain": ["params.yaml training.steps: 240 -> 250", "code components/training/loop.py changed"],
        "finetune": ["its input data/pretrained comes from pretrain, which runs first"],
        "evaluate": ["its input data/finetuned comes from finetune, which runs first"]}}
    assert status._stale(told) == ["pretrain: params.yaml training.steps: 240 -> 250 (+1 more)", "and 2 stages after it", "see all: lmworks why"]


def test_H2_a_champion_that_was_moved_by_hand_or_deleted_is_named():
    versions = [{"version": 2, "verdict": "failed", "weights_sha256": "b" * 64, "note": "moved by hand", "gated": False},
                {"version": 1, "verdict": "passed", "weights_sha256": "a" * 64, "note": None}]
    models = [{"name": "模型", "aliases": {"champion": "2", "candidate": "2"}, "versions": versions},
              {"name": "tiny", "aliases": {"champion": "1"}, "versions": versions}, {"name": "new", "aliases": {"candidate": "1"}, "versions": versions[1:]},
              {"name": "gone", "aliases": {}, "versions": versions, "note": "the alias champion was removed by hand, or its version was deleted"}]
    out = Console(file=io.StringIO(), width=80)
    for line in status._champions({"source": "registry", "problem": None, "models": [status._champion(model) for model in models]}):
        out.print(line)
    text = out.file.getvalue()
    for part in ("模型  version 2, weights bbbbbbbbbbbb, not gated: moved by hand", "tiny  version 1, weights aaaaaaaaaaaa, gated",
                 "new   no champion; version 1 is candidate", "gone  no champion; the alias champion was removed by hand, or its version was"):
        assert part in text, text


def test_every_command_has_an_example_in_its_help_and_an_answer_for_machines():
    for command in main.app.registered_commands:
        assert "Example" in (command.callback.__doc__ or ""), command.callback
        assert "as_json" in inspect.signature(command.callback).parameters, command.callback
