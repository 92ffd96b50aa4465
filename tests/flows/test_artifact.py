"""The one artifact of a run, as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from components import files
from components.layout import Layout
from flows import artifact, chain, tasks
from flows.records import RunResult, StageRecord

pytestmark = pytest.mark.code


def test_a_value_cannot_leave_its_cell_nor_become_html_or_a_link():
    shown = artifact.cell("a|b <script>x</script> [c](javascript:d)\n# e")
    assert "<" not in shown and "\n" not in shown and "\\|" in shown and "\\[c\\]" in shown


def test_a_blocked_run_shows_expectation_and_rows(tmp_path: Path):
    layout = Layout(root=tmp_path)
    files.write_json(layout.blocked / "ingest" / "validation.json", {"suite": "raw", "results": [
        {"name": "text_is_there", "sentence": "every document has text", "severity": "block", "success": False, "checked": 9, "at_fault": 2,
         "examples": [{"source": "坏.txt", "row": 7, "detail": "empty", "text": ""}]},
        {"name": "fine", "sentence": "all is well", "severity": "warn", "success": True, "checked": 9, "at_fault": 0, "examples": []}]})
    result = RunResult("Blocked", "2 documents have no text", 3, [StageRecord("ingest", "failed", ["it never ran"], exit_code=3), StageRecord("clean")])
    text = artifact.markdown(result, layout, {"MLflow": "http://127.0.0.1:1", "settings": "params.yaml"})
    assert text.startswith("# Blocked") and "坏.txt | 7 | empty" in text and "all is well" not in text
    assert "| clean | skipped |" in text and "[MLflow](http://127.0.0.1:1)" in text and "settings: `params.yaml`" in text


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


def test_F3_a_run_that_prefect_never_heard_the_end_of_says_what_finished():
    from flows.run import not_reported

    done = RunResult("Promoted", "smoke: version 1 is champion", 0)
    not_reported(done, ConnectionError("refused"))
    assert (done.verdict, done.exit_code, done.reported) == ("Promoted", 1, False)
    assert done.message.startswith("smoke: version 1 is champion; but Prefect's server went away")
    broken = RunResult()
    not_reported(broken, ConnectionError("refused"))
    assert broken.verdict == "Failed" and "run again: lmworks run" in broken.message
