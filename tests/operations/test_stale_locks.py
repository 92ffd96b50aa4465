"""What a kill leaves in DVC's record of paths and in services.json needs nobody to delete it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components import config as settings
from components import files
from components.layout import ROOT, Layout
from components.operations import dvc_locks, environment, liveness, processes, services, staleness

pytestmark = pytest.mark.code

DVC_YAML = "stages:\n  one:\n    cmd: cp in.txt data/one\n    deps: [in.txt]\n    outs: [data/one]\n"
RECORDS = [b"", b"{", b'{"write": {"', b"[]", b"null", b'{"write": 5}', b'{"write": {"/x": {"pid": "7", "cmd": "dvc"}}}', b'{"read": {"/x": {"pid": 7, "cmd": "dvc"}}}',
           b'{"other": {}}', b"\xff\xfe\0", b'{"write": {"/x": {"pid": -1, "cmd": "dvc repro"}}}', b'{"read": {"/x": [{"pid": 99999999999, "cmd": "dvc"}]}}']


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    for name in [n for n in environment.child(Layout(root=tmp_path)) if os.environ.get(n) is None]:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "in.txt").write_text("文本")
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    environment.allow_no_git(Layout(root=tmp_path))
    (tmp_path / ".dvc" / "tmp").mkdir()
    return Layout(root=tmp_path)


@pytest.fixture
def zombie():
    """The id of a process that is dead and not buried."""
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    while state(process.pid) != "Z":
        time.sleep(0.01)
    yield process.pid
    process.wait()


def state(pid: int) -> str:
    """The letter of the kernel: T stopped, Z zombie …"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def blocked_by(layout: Layout, pid: int, cmd: str = "/x/dvc repro one") -> Path:
    """A record that says: this process writes data/one and reads in.txt."""
    path = layout.root / ".dvc" / "tmp" / "rwlock"
    who = {"pid": pid, "cmd": cmd}
    path.write_text(json.dumps({"write": {str(layout.root / "data" / "one"): who}, "read": {str(layout.root / "in.txt"): [who]}}))
    return path


def test_G2_a_record_of_paths_that_was_cut_short_or_names_nobody_blocks_nothing(layout: Layout, zombie: int):
    record = layout.root / ".dvc" / "tmp" / "rwlock"
    for content in RECORDS:
        record.write_bytes(content)
        assert staleness.why(layout, "one") == ["it never ran"], content
    for name in ("lock", "rwlock.lock"):
        for content in (b"", b" 99999999\n", b"\0\xff"):
            record.with_name(name).write_bytes(content)
            assert staleness.why(layout, "one") == ["it never ran"]
    for pid in (2**22 + 1, zombie, os.getpid(), 1):  # dead, zombie, two that other programs have now
        blocked_by(layout, pid)
        assert staleness.stale(layout) == {"one": ["it never ran"]}
        assert json.loads(record.read_text()) == {"read": {}, "write": {}}
    record.write_bytes(b"{")
    staleness.why(layout, "one")
    done = subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=layout.root, env=environment.child(layout), capture_output=True, text=True)
    assert done.returncode == 0 and (layout.root / "data" / "one").read_text() == "文本", done.stderr


def test_G2_a_dvc_that_lives_here_keeps_its_paths(layout: Layout):
    program = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)", "repro", "one"]
    for folder, stays in ((layout.root / "data", True), (ROOT, False)):
        process = subprocess.Popen(program, cwd=folder, stdout=subprocess.PIPE)
        try:
            process.stdout.readline()
            record = blocked_by(layout, process.pid)
            before = record.read_text()
            dvc_locks.mend(layout)
            assert (record.read_text() == before) is stays
            blocked_by(layout, process.pid, "/x/dvc checkout")
            dvc_locks.mend(layout)
            assert json.loads(record.read_text())["write"] == {}, "the same id, called otherwise"
        finally:
            process.kill()
            process.wait()
    record = blocked_by(layout, 2**22 + 1)
    with files.lock(layout.stage_lock, what="a stage"):  # its DVC lives
        before = record.read_text()
        dvc_locks.mend(layout)
        assert record.read_text() == before


def test_G2_a_service_of_a_dead_zombie_or_reused_pid_is_none(layout: Layout, zombie: int, monkeypatch: pytest.MonkeyPatch):
    for variable in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(variable, raising=False)
    entry = {**liveness.entry(os.getpid()), "root": str(layout.root), "url": "http://127.0.0.1:1"}
    files.write_json(layout.services, {"mlflow": entry})
    assert services.address(layout, processes.MLFLOW) == "http://127.0.0.1:1"
    for change in ({"pid": 2**22 + 1}, {**liveness.entry(zombie)}, {"pid": zombie}, {"started": liveness.started(1)}, {"pid": 1}):
        files.write_json(layout.services, {"mlflow": entry | change})
        assert services.address(layout, processes.MLFLOW) is None, change
    for content in (b"", b"{", b"[]", b"null", b'{"mlflow": 5}', b'{"mlflow": {"pid": "x"}}', b"\0\xff"):
        layout.services.write_bytes(content)
        assert services.address(layout, processes.MLFLOW) is None and services.down(layout) == []


# --- an orphan under a bare `dvc repro` ----------------------------------------------------------

STAGE = """
import pathlib, sys, time, types
from components import chain
from components.reporting import Report

def run(config, layout):
    for out in (layout.sources_corpus, layout.sources_records, layout.sources_base):
        (out / "text").write_text(pathlib.Path("in.txt").read_text())
    pathlib.Path("working").touch()
    while pathlib.Path("hold").exists():
        time.sleep(0.02)
    return Report()

stage = types.ModuleType("components.stages.fetch")
stage.run = run
sys.modules[stage.__name__] = stage
sys.exit(chain.main(["fetch"]))
"""
CHAIN_YAML = """stages:
  fetch:
    cmd: exec python stage.py
    deps: [in.txt]
    outs: [data/sources/corpus, data/sources/records, data/sources/base]
"""


@pytest.mark.slow
def test_C9_G4_an_orphan_that_was_stopped_refuses_the_next_dvc_repro_and_writes_nothing_when_it_goes_on(layout: Layout):
    shutil.copytree(ROOT / "components", layout.root / "components", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("versions.yaml", "sources.yaml"):
        shutil.copy(ROOT / name, layout.root / name)
    (layout.root / ".venv").symlink_to(ROOT / ".venv")
    (layout.root / "params.yaml").write_text(settings.render(settings.Config()))
    (layout.root / "stage.py").write_text(STAGE)
    (layout.root / "dvc.yaml").write_text(CHAIN_YAML)
    (layout.root / "hold").touch()

    def repro(**more) -> subprocess.Popen:
        return subprocess.Popen([environment.python(layout), "-m", "dvc", "repro", "fetch"], cwd=layout.root, env=environment.child(layout), text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more)

    first = repro(start_new_session=True)
    while not (layout.root / "working").exists():
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.02)
    orphan = int(files.lock_holder(layout.stage_lock).partition("pid ")[2].partition(",")[0])
    try:
        os.killpg(first.pid, signal.SIGSTOP)
        os.kill(first.pid, signal.SIGKILL)  # DVC alone: its stage hears of it when it goes on
        first.wait()
        second = repro()
        said = second.communicate(timeout=120)[0]
        assert second.returncode != 0 and f"(pid {orphan}, since" in said and f"is stopped: kill -CONT {orphan}" in said, said
        os.kill(orphan, signal.SIGCONT)
        while state(orphan) not in ("gone", "Z"):
            time.sleep(0.02)
        assert not (layout.root / "data" / "sources").exists() and not (layout.root / "dvc.lock").exists()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(orphan, signal.SIGKILL)
    (layout.root / "hold").unlink()
    third = repro()
    said = third.communicate(timeout=120)[0]
    assert third.returncode == 0 and (layout.sources_corpus / "text").read_text() == "文本", said
    assert files.verify_manifest(layout.sources_records)
