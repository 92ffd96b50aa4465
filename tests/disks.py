"""Small, read-only and crowded disks, made for one process: a tmpfs in a mount namespace of its own, gone with it."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.layout import ROOT

# what a script may call: the disk is mounted at argv[1]
HEAD = """\
import os, subprocess, sys
from pathlib import Path
disk = Path(sys.argv[1])

def remount(options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)

def fill(but=0):
    stat = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(max(0, stat.f_bavail * stat.f_frsize - but)))

"""


@functools.cache
def can_mount() -> bool:
    """Whether this machine lets a user mount a tmpfs of his own."""
    with_tmpfs = 'mount -t tmpfs -o size=64k tmpfs "$0"'
    return subprocess.run(["unshare", "-rm", "sh", "-c", with_tmpfs, str(ROOT / "components")], capture_output=True).returncode == 0


def on_a_disk(folder: Path, options: str, script: str, *, env: dict[str, str] | None = None) -> str:
    """Run a Python script with a tmpfs (`options`: size=4m, nr_inodes=50 …) at `folder`; what it printed. It must end well."""
    if not can_mount():
        pytest.skip("no tmpfs can be mounted here (unshare -rm)")
    folder.mkdir(parents=True, exist_ok=True)
    mounted = f'mount -t tmpfs -o {options} tmpfs "$1" && exec "$0" -c "$2" "$1"'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mounted, sys.executable, str(folder), HEAD + script], capture_output=True, text=True, cwd=folder.parent,
                          env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", **(env or {})}, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
