"""The one artifact of a run, as text."""

from __future__ import annotations

import re
import time
from collections import deque
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from components import config as settings
from components import files
from components.layout import Layout
from flows import artifact, chain, naming, tasks
from flows.records import MAX_STATE_CHARS, RunResult, StageRecord, in_words

pytestmark = pytest.mark.code


def test_J12_a_value_cannot_leave_its_cell_nor_become_html_or_a_link():
    shown = artifact.cell("a|b <script>x</script> [c](javascript:d)\n# e")
    assert "<" not in shown and "\n" not in shown and "\\|" in shown and "\\[c\\]" in shown
    assert artifact.cell("@ann https://x.org/a www.x.org $1") == "&#64;ann https&#58;//x.org/a www&#46;x.org &#36;1", "no link out of the machine"


def test_a_blocked_run_shows_expectation_and_rows(tmp_path: Path):
    layout = Layout(root=tmp_path)
    files.write_json(layout.blocked / "ingest" / "validation.json", {"suite": "raw", "results": [
        {"name": "text_is_there", "sentence": "every document has text", "severity": "block", "success": False, "checked": 9, "at_fault": 2,
         "examples": [{"source": "坏.txt", "row": 7, "detail": "empty", "text": ""}]},
        {"name": "fine", "sentence": "all is well", "severity": "warn", "success": True, "checked": 9, "at_fault": 0, "examples": []}]})
    result = RunResult("Blocked", "2 documents have no text", 3, [StageRecord("ingest", "failed", ["it never ran"], exit_code=3), StageRecord("clean")])
    result.message = "2 documents have no text\n  - text_is_there: " + "语" * 400
    text = artifact.markdown(result, layout, {"MLflow": "http://127.0.0.1:1", "settings": "params.yaml"})
    assert "语" * 400 in text, "the reason is not cut to the width of a cell"
    assert text.startswith("# Blocked") and "坏.txt | 7 | empty" in text and "all is well" not in text
    assert "| clean | skipped |" in text and "[MLflow](http://127.0.0.1:1)" in text and "settings: `params.yaml`" in text


def test_rows_set_aside_stand_at_the_end_some_of_each_expectation(tmp_path: Path):
    layout = Layout(root=tmp_path)
    rows = [{"source": "语料.jsonl", "row": n, "detail": "", "text": f"<script>{n}</script>"} for n in range(1, 13)]
    files.write_json(layout.raw / "validation.json", {"suite": "raw", "results": [
        {"name": "text_present", "severity": "quarantine", "success": False, "at_fault": 1200, "examples": rows},
        {"name": "text_has_no_nul", "severity": "quarantine", "success": False, "at_fault": 1, "examples": [rows[0], rows[0] | {"row": 99}]},
        {"name": "fine", "severity": "quarantine", "success": True, "at_fault": 0, "examples": []}]})
    result = RunResult("Ready", "shards is done", 0, [StageRecord("ingest", "ran")])
    text = artifact.markdown(result, layout, {"MLflow": "http://127.0.0.1:1"})
    sections = [line for line in text.splitlines() if line.startswith("#")]
    assert sections == ["# Ready", "## Stages", "## Look at", "## Quarantine: 1,201 rows set aside"]
    assert text.count("语料.jsonl") == artifact.SAMPLE_ROWS and "| text\\_has\\_no\\_nul | 语料.jsonl | 99 |" in text and "<script>" not in text
    result.stages = [StageRecord("ingest", "failed", exit_code=3)]
    assert "## Quarantine" not in artifact.markdown(result, layout, {}), "of a blocked stage what lies there is of an earlier night"


def test_the_message_of_a_failure_begins_with_the_reason_and_stays_short():
    record = StageRecord("ingest", "failed", message="row 7 has no text", last_lines=["x" * 1500, "the line before", "ingest: row 7 has no text"])
    assert in_words(record) == "ingest: row 7 has no text\nIts last lines:\n  the line before"
    record.message = "stopped the chain\n  - a: 161 rows"
    record.last_lines = ["before", "ingest: stopped the chain", "  - a: 161 rows", "the previous data/raw is back"]
    assert in_words(record) == "ingest: stopped the chain\n  - a: 161 rows\nIts last lines:\n  before\n  the previous data/raw is back", "nothing twice"
    record.last_lines = [f"{n} {'数据' * 300}" for n in range(20)]
    assert in_words(record).startswith("ingest: stopped the chain") and len(in_words(record)) <= MAX_STATE_CHARS
    record.message = "y" * 5000
    assert len(in_words(record)) <= MAX_STATE_CHARS and "whole in the log" in in_words(record)


def test_a_fresh_chain_asks_the_registry_once_and_releases_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from components.release import release

    layout = Layout(root=tmp_path)
    told = {"name": "语", "version": "3", "champion_version": "2", "run_id": "r", "verdict": "failed", "criteria": []}
    files.write_json(layout.receipt, {"models": {"语": told}})
    started: list[bool] = []
    monkeypatch.setattr(chain.services, "ensure", lambda _layout, *, prefect: started.append(prefect))
    monkeypatch.setattr(release, "receipt_current", lambda *_: True)
    monkeypatch.setattr(release, "release", lambda *_, **__: pytest.fail("nothing is released"))
    state = chain.release_task.fn(settings.Config(), layout, True)
    assert (state.name, tasks.carried(state)) == ("Cached", [told]) and "语: version 2 is champion" in state.message
    assert started == [False], "MLflow may have died while the stages worked (F1)"


def test_a_runs_name_says_who_when_and_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    layout = Layout(root=tmp_path)
    layout.params.write_text(settings.render(settings.build({"name": "corpus-3fa2bc", "corpus.source": "../我的语料.txt"}, where="test")))
    layout.sources.write_text("corpus:\n  digest: 3f2a91aabb\n")
    run = SimpleNamespace(created_by=SimpleNamespace(type="SCHEDULE", display_value="nightly"), start_time=None, deployment_id=None, name="x", tags=[])
    monkeypatch.setattr(naming, "Layout", lambda: layout)
    monkeypatch.setattr(naming, "_run", lambda: run)
    assert re.fullmatch(r"corpus-3fa2bc nightly \d{4}-\d\d-\d\d \d\d:\d\d UTC corpus 我的语料 3f2a91", naming.flow_run_name())
    monkeypatch.setenv("TZ", "Asia/Kathmandu")  # 5:45 from UTC
    time.tzset()
    told = datetime.strptime(naming.flow_run_name()[len("corpus-3fa2bc nightly "):][:16], "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - told) < timedelta(hours=1), "as the schedules are, whatever the machine's clock shows"
    monkeypatch.undo()
    time.tzset()
    monkeypatch.setattr(naming, "Layout", lambda: layout)
    monkeypatch.setattr(naming, "_run", lambda: run)
    run.start_time, run.name = datetime.now(), "corpus-3fa2bc nightly 2026-11-24 02:30 UTC corpus 我的语料 000000"
    assert naming.flow_run_name() == "corpus-3fa2bc nightly 2026-11-24 02:30 UTC corpus 我的语料 3f2a91", "a retry keeps the night's date"
    layout.params.unlink()
    run.start_time, run.created_by = None, None
    assert re.fullmatch(r"lmworks \d{4}-\d\d-\d\d \d\d:\d\d UTC corpus 3f2a91", naming.flow_run_name()), "broken settings are told by the run, not by its name"


def test_selection_takes_both_ends_and_names_the_near_one():
    names = ["fetch", "ingest", "clean"]
    assert chain.selection(names, None, None) == names
    assert chain.selection(names, "ingest", None) == ["ingest", "clean"] and chain.selection(names, None, "ingest") == ["fetch", "ingest"]
    with pytest.raises(chain.UserError, match="did you mean 'ingest'"):
        chain.selection(names, "injest", None)
    with pytest.raises(chain.UserError, match="comes after"):
        chain.selection(names, "clean", "fetch")


@pytest.mark.parametrize("line", ["Running stage 'clean':", "> exec python -m components.chain clean", "Updating lock file 'dvc.lock'",
                                  "Use `dvc push` to send your updates to remote storage.", "", "ERROR: failed to reproduce 'clean': failed to run: exec"])
def test_dvcs_own_lines_are_left_out(line: str):
    assert tasks.NOISE.match(line)


@pytest.mark.parametrize("line", ["clean 3/9 00:01 left", "clean: row 7 has no text", "12 documents dropped: too short", "ERROR: no space left on device"])
def test_the_stages_lines_stay(line: str):
    assert not tasks.NOISE.match(line)


def test_F3_a_run_that_prefect_never_heard_the_end_of_says_what_finished(tmp_path: Path):
    from flows.run import not_reported

    done = RunResult("Promoted", "smoke: version 1 is champion", 0)
    not_reported(done, ConnectionError("refused"), Layout(root=tmp_path))
    assert (done.verdict, done.exit_code, done.reported) == ("Promoted", 5, False)
    assert done.message.startswith("smoke: version 1 is champion; finished, not reported: Prefect's server went away")
    broken = RunResult()
    not_reported(broken, ConnectionError("refused"), Layout(root=tmp_path))
    assert broken.exit_code == 1
    assert broken.verdict == "Failed" and "run again: lmworks run" in broken.message


@pytest.mark.parametrize(("line", "told"), [
    ("PermissionError: [Errno 13] Permission denied: '/data/raw/x'", "PermissionError: [Errno 13] Permission denied: '/data/raw/x'"),
    ("OSError: [Errno 28] No space left on device: 'x'", "no space in "), ("OSError: [Errno 30] Read-only file system: 'x'", "its disk is read-only")])
def test_D6_only_a_full_or_read_only_disk_is_told_of_the_whole_checkout(line: str, told: str):
    words = tasks._words(tasks.Ended(dvc_code=1, last=deque(["before", line, "ERROR: failed to reproduce 'clean'"])), {})
    assert told in words and "no permission" not in words
