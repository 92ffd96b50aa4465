"""A stage that is asked to stop while it works: what else the kernel says to it meanwhile takes nothing away (C8)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from components.layout import ROOT
from components.operations import liveness

STAGE = """
import pathlib, sys, time
from components.chain import die_with_parent
from components.reporting import stop
die_with_parent()
stop.install()
with stop.deferred() as asked:
    pathlib.Path("ready").write_text("")
    while not asked.requested:
        time.sleep(0.02)
    time.sleep(1)  # a checkpoint takes its time; the parent is gone before it is written
    pathlib.Path("saved").write_text("")
"""
PARENT = """
import os, pathlib, subprocess, sys, threading, time
def start():
    print(subprocess.Popen([sys.executable, "-c", sys.argv[1]]).pid, flush=True)
    while not pathlib.Path("leave").exists():
        time.sleep(0.02)
thread = threading.Thread(target=start)
thread.start()
thread.join()
time.sleep(60)
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """As DVC is: one of its threads starts the stage."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, STAGE], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                              stdout=subprocess.PIPE, text=True, process_group=0)
    until((tmp_path / "ready").exists, "the stage works")
    yield parent
    parent.kill()
    parent.wait()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_C8_C9_a_stage_that_saves_its_work_outlives_the_parent_that_died_of_the_same_signal(tmp_path: Path, parent: subprocess.Popen):
    os.killpg(parent.pid, signal.SIGTERM)  # as flows/tasks.py ends a group: DVC dies at once, the stage is told again by the kernel
    assert parent.wait(10) == -signal.SIGTERM
    until((tmp_path / "saved").exists, "the second signal ended it before its work was saved")


def test_C8_C9_and_the_end_of_the_thread_that_started_it(tmp_path: Path, parent: subprocess.Popen):
    """The kernel tells a child so when that thread ends, and DVC's other threads, still alive, remain its parent for a moment."""
    stage = int(parent.stdout.readline())
    os.kill(stage, signal.SIGTERM)
    (tmp_path / "leave").write_text("")
    until((tmp_path / "saved").exists, "the second signal ended it before its work was saved")
    assert parent.poll() is None


@pytest.mark.parametrize("run_lives", [True, False])
def test_C9_a_stage_whose_run_was_killed_while_it_started_does_not_begin(tmp_path: Path, run_lives: bool):
    """Its parent, DVC, may be gone by then, too: what it asks for the parent's death is of init."""
    run = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    mark = liveness.started(run.pid)
    if not run_lives:
        run.kill()  # and not waited for: a zombie is dead
    begin = "import pathlib; from components.chain import die_with_parent; die_with_parent(); pathlib.Path('begun').touch()"
    try:
        done = subprocess.run([sys.executable, "-c", begin], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), liveness.RUN: f"{run.pid}:{mark}"})
    finally:
        run.kill()
        run.wait()
    assert (done.returncode, (tmp_path / "begun").exists()) == ((0, True) if run_lives else (143, False))
