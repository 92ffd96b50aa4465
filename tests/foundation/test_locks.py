"""Locks that name their holder, cannot go stale, and cannot be held twice; a stage whose lock was taken away publishes nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from components import chain, files
from components import config as settings
from components.errors import Busy
from components.layout import ROOT, Layout
from components.reporting import Report

pytestmark = pytest.mark.code

HOLDER = """
import sys, time
from pathlib import Path
sys.argv = sys.argv[2:] + ["--why", "a secret"] if sys.argv[2:] else sys.argv
from components import files
with files.lock(Path(LOCK), what="lmworks run"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(path: Path, *called: str) -> Iterator[subprocess.Popen]:
    """Another process that holds the lock, called as `called`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER.replace("LOCK", repr(str(path))), "x", *called], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("called", "words"), [(["lmworks", "verify"], "lmworks verify is already running in this checkout (pid {pid}, since 20"),
                                               ([], "lmworks run is already running in this checkout (pid {pid}, since 20")])
def test_G1_the_second_is_told_who_holds_the_lock_its_pid_and_since_when(tmp_path: Path, called: list[str], words: str):
    path = tmp_path / ".lmworks" / "run.lock"
    with holder(path, *called) as process:
        with pytest.raises(Busy) as caught, files.lock(path, what="lmworks run"):
            pass
        assert words.format(pid=process.pid) in str(caught.value) and caught.value.exit_code == 75
        assert "secret" not in path.read_text() and "stopped" not in str(caught.value)
        assert f"pid {process.pid}, since" in (files.lock_holder(path) or "")
        os.kill(process.pid, signal.SIGSTOP)
        wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        with pytest.raises(Busy, match=f"is stopped: kill -CONT {process.pid} lets it go on, kill -9 {process.pid} ends it"), files.lock(path, what="lmworks run"):
            pass


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_G2_whatever_a_lock_file_holds_only_a_live_holder_counts(tmp_path: Path):
    layout = Layout(root=tmp_path)
    locks = (layout.run_lock, layout.stage_lock, layout.startup_lock, layout.promotion_lock, layout.state / "scheduled.lock", layout.spool / "x" / ".lock")
    for path in locks:
        path.parent.mkdir(parents=True, exist_ok=True)
        for content in (b"", b"\0\xff\xfe{", b"pid 1, since 1970-01-01", f"lmworks run, pid {os.getpid()}, since now".encode(), b"x" * 100_000):
            path.write_bytes(content)
            assert files.lock_holder(path) is None
            with files.lock(path, what="it"):
                assert f"pid {os.getpid()}" in path.read_text() and len(path.read_bytes()) < 200
    with holder(layout.run_lock) as process:
        process.kill()
        wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")  # nobody has buried it yet
        with files.lock(layout.run_lock, what="it"):
            assert process.returncode is None
    with holder(layout.run_lock) as process:
        layout.run_lock.write_bytes(b"")  # emptied by hand: the kernel still knows
        with pytest.raises(Busy, match="is already running in this checkout \\(another process\\)"), files.lock(layout.run_lock, what="it"):
            pass


# --- a stage that is stopped ---------------------------------------------------------------------

@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    for name in ("versions.yaml", "sources.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "params.yaml").write_text(settings.render(settings.Config()))
    (tmp_path / "components").symlink_to(ROOT / "components")
    return Layout(root=tmp_path)


STAGE = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from components import chain
from components.layout import Layout
from components.reporting import Report

def run(config, layout):
    for out in (layout.sources_corpus, layout.sources_records, layout.sources_base):
        (out / "one.txt").write_text("of the old one")
    print("half", flush=True)
    sys.stdin.readline()
    for out in (layout.sources_corpus, layout.sources_records, layout.sources_base):
        (out / "two.txt").write_text("of the old one")
    return Report()

chain.importlib.import_module = lambda name: SimpleNamespace(run=run)
outcome = chain.attempt(chain.BY_NAME["fetch"], Layout(root=Path(sys.argv[1])))
print(outcome["exit_code"], outcome.get("message"), flush=True)
"""


@contextmanager
def half_done(layout: Layout) -> Iterator[subprocess.Popen]:
    """A stage in a process of its own, stopped (SIGSTOP) with half of its outs written."""
    process = subprocess.Popen([sys.executable, "-c", STAGE, str(layout.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout.readline() == "half\n"
        os.kill(process.pid, signal.SIGSTOP)
        yield process
    finally:
        process.kill()
        process.wait()


def go_on(process: subprocess.Popen) -> str:
    os.kill(process.pid, signal.SIGCONT)
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline()


def new_one(layout: Layout) -> None:
    def run(_config: object, staged: Layout) -> Report:
        for out in (staged.sources_corpus, staged.sources_records, staged.sources_base):
            (out / "one.txt").write_text("of the new one")
        return Report()

    chain.run_stage(chain.BY_NAME["fetch"], layout, module=SimpleNamespace(run=run))


def test_G4_a_second_start_is_refused_while_the_stopped_one_lives_and_that_one_ends_well(layout: Layout):
    with half_done(layout) as old:
        with pytest.raises(Busy, match=f"pid {old.pid}, since .*is stopped: kill -CONT {old.pid}"):
            new_one(layout)
        assert not (layout.root / "data" / "sources").exists()
        assert go_on(old) == "0 None\n"
    assert files.verify_manifest(layout.sources_corpus) and (layout.sources_corpus / "two.txt").read_text() == "of the old one"


@pytest.mark.parametrize("taken_away", ["the lock", "the folder"])
def test_G4_where_the_lock_was_taken_away_the_old_one_publishes_nothing(layout: Layout, taken_away: str):
    with half_done(layout) as old:
        if taken_away == "the lock":
            layout.stage_lock.unlink()
        else:
            shutil.rmtree(layout.state)
        new_one(layout)
        published = {path: path.read_bytes() for path in layout.root.joinpath("data").rglob("*") if path.is_file()}
        answer = go_on(old)
        assert answer.startswith(f"75 .lmworks/stage.lock was taken away while this process (pid {old.pid}) held it") and "run again" in answer, answer
    for out in (layout.sources_corpus, layout.sources_records, layout.sources_base):
        assert files.verify_manifest(out) and files.list_files(out) in (["one.txt"], ["one.txt", "summary.json"])
    assert {path: path.read_bytes() for path in layout.root.joinpath("data").rglob("*") if path.is_file()} == published


def test_G4_while_the_new_one_works_the_old_one_cannot_write_into_it(layout: Layout):
    with half_done(layout) as old:
        layout.stage_lock.unlink()

        def run(_config: object, staged: Layout) -> Report:
            assert go_on(old).startswith("75 .lmworks/stage.lock was taken away")
            for out in (staged.sources_corpus, staged.sources_records, staged.sources_base):
                assert list(out.iterdir()) == []
                (out / "one.txt").write_text("of the new one")
            return Report()

        chain.run_stage(chain.BY_NAME["fetch"], layout, module=SimpleNamespace(run=run))
    assert files.list_files(layout.sources_records) == ["one.txt"] and (layout.sources_records / "one.txt").read_text() == "of the new one"
