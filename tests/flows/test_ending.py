"""What the artifact of a run leads to."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.layout import Layout
from flows import ending
from flows.records import RunResult, StageRecord

pytestmark = pytest.mark.code


def test_F1_a_server_that_was_away_at_the_end_is_told_beside_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    layout = Layout(root=tmp_path)
    layout.params.write_text("name: x\n")
    found = ending.links(layout, RunResult("Failed", "why", 1, [StageRecord("ingest", "failed", [])]))
    assert found == {"MLflow did not answer when this run ended (MLFLOW_TRACKING_URI names it). Its pages": "http://127.0.0.1:9", "settings": "params.yaml"}
