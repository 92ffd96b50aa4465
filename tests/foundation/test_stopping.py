"""A stage that is asked to stop while it works: what else the kernel says to it meanwhile takes nothing away (C8)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from components.layout import ROOT

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
import os, pathlib, subprocess, sys
print(subprocess.Popen([sys.executable, "-c", sys.argv[1]]).pid, flush=True)
import time; time.sleep(60)
"""


def test_C8_C9_a_stage_that_saves_its_work_outlives_the_parent_that_died_of_the_same_signal(tmp_path: Path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, STAGE], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                              stdout=subprocess.PIPE, text=True, process_group=0)
    assert parent.stdout is not None
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.02)
    os.killpg(parent.pid, signal.SIGTERM)  # as flows/tasks.py ends a group: DVC dies at once, the stage is told again by the kernel
    assert parent.wait(10) == -signal.SIGTERM
    while not (tmp_path / "saved").exists():
        assert time.monotonic() < deadline, "the second signal ended it before its work was saved"
        time.sleep(0.05)
