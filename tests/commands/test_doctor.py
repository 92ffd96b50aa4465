"""`lmworks doctor` where a check cannot be made."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from commands import doctor
from components import config as settings
from components.layout import ROOT, Layout

pytestmark = pytest.mark.code


def findings(layout: Layout) -> dict[str, Any]:
    return {row["check"]: row for row in doctor.findings(layout)}


def test_D3_D4_what_cannot_be_looked_at_is_a_finding_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_gpu", lambda _layout: {"check": "GPU"})  # it imports torch
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    layout = Layout(root=tmp_path)
    shutil.copy(ROOT / "versions.yaml", layout.versions)
    layout.params.write_text(settings.render(settings.Config()))
    whole = findings(layout)
    assert {"Python", "version of torch", "params.yaml", "disk", "restore", "mlflow", "GPU"} <= set(whole) and "versions.yaml" not in whole

    without = {check for check in whole if not check.startswith("version of ")}
    for damage in ("torch: [\n", "", "- torch\n", None):
        layout.versions.unlink() if damage is None else layout.versions.write_text(damage)
        told = findings(layout)
        assert not told["versions.yaml"]["ok"] and "versions.yaml" in told["versions.yaml"]["found"] and set(told) >= without - {"settings and records"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    told = findings(layout)
    assert not told["servers"]["ok"] and "MLFLOW_TRACKING_URI" in told["servers"]["found"] and {"GPU", "disk", "versions.yaml"} <= set(told)
