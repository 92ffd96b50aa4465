"""A stage killed with -9 between its last write and the end of its publishing: whole outs or none, and the rerun makes the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from components import chain, files
from components import config as settings
from components.layout import ROOT, Layout

pytestmark = pytest.mark.code

SCRIPT = """
import dataclasses, sys, types
from pathlib import Path
from components import chain
from components.config import Config
from components.layout import Layout
from components.reporting import Report

def run(_config, layout):
    for out in stage.outs:
        (layout.out(out) / "rows.txt").write_text(f"{out}: 行 1\\n" * 2000)
        (layout.out(out) / "inner").mkdir()
        (layout.out(out) / "inner" / "more.txt").write_text("more")
    return Report(documents_out=3)

stage = dataclasses.replace(chain.BY_NAME[sys.argv[2]], deps=())
chain.run_stage(stage, Layout(root=Path(sys.argv[1])), Config(), types.SimpleNamespace(run=run))
"""


def checkout(root: Path) -> Layout:
    root.mkdir()
    for name in ("params.yaml", "versions.yaml", "sources.yaml"):
        shutil.copy(ROOT / name, root / name)
    (root / "params.yaml").write_text(settings.render(settings.Config()))
    (root / "components").symlink_to(ROOT / "components")
    return Layout(root=root)


def run(layout: Layout, stage: str, failpoints: str = "") -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", SCRIPT, str(layout.root), stage], text=True, capture_output=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "FAILPOINTS": failpoints})


def hashes(layout: Layout, stage: str) -> dict[str, str]:
    return {f"{out}/{name}": files.sha256_file(layout.out(out) / name) for out in chain.BY_NAME[stage].outs
            for name in [*files.list_files(layout.out(out)), files.MANIFEST]}


@pytest.mark.parametrize(("stage", "place"), [
    ("fetch", "stage.start"), ("ingest", "stage.done"), ("fetch", "files.before_fsync@manifest.json"), ("fetch", "files.before_rename@summary.json"),
    ("fetch", "publish.before_rename@records"), ("fetch", "publish.after_rename@corpus"), ("evaluate", "publish.before_rename"),
    ("evaluate", "stage.published")])
def test_C1_C6_killed_while_it_publishes_a_stage_leaves_whole_outs_or_none(tmp_path: Path, stage: str, place: str):
    layout, whole = checkout(tmp_path / "killed"), checkout(tmp_path / "whole")
    assert run(layout, stage, f"{place}=kill9").returncode == -9
    there = [out for out in chain.BY_NAME[stage].outs if layout.out(out).exists()]
    for out in there:
        files.verify_manifest(layout.out(out))
    assert len(there) == {"publish.before_rename@records": 1, "publish.after_rename@corpus": 1, "stage.published": 1}.get(place, 0)
    assert len(list(layout.unclean.glob("stage-*.json"))) == 1, "the next start is told of it"
    for out in there:  # as DVC does before it runs a stage
        shutil.rmtree(layout.out(out))
    for done in (run(layout, stage), run(whole, stage)):
        assert (done.returncode, done.stderr) == (0, "")
    assert hashes(layout, stage) == hashes(whole, stage)
    assert list(layout.partial.iterdir()) == []
