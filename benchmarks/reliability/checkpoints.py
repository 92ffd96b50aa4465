"""A small training, killed inside its checkpoint writes: what its next life finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from components.layout import ROOT

GOAL = "200 kills inside checkpoint writes: 0 cases without a verified checkpoint to load"
COUNT = 200


def measure(count: int, seed: int) -> dict[str, Any]:
    """The figure. The lives are forked from a process of its own: it loads torch once, and has no other thread."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.reliability.checkpoint_lives", str(count), str(seed)], cwd=ROOT, text=True,
                          capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    if done.returncode:
        raise RuntimeError(f"the lives ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout)
