"""Shared by all tests. That this file is here puts tests/ on the path, so `import tiny_models` works everywhere below.

`make test` and `make slow` run two processes of pytest side by side (pytest-xdist), since a test mostly waits for one other process.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("e2e",)  # one chain for the whole folder; elsewhere it is a file whose tests share something
LONGEST_FIRST = ("e2e", "drill", "security", "release", "flows", "operations")  # what begins last should end soon

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("COLUMNS", None)  # xdist's, of the terminal that this process does not write to
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes with two threads each would wait for each other on two cores


def _folder(nodeid: str) -> str:
    return nodeid.removeprefix("tests/").partition("/")[0]


class Together(LoadScopeScheduling):
    """What shares a chain or servers runs in one process. (xdist's own groups are not seen by pytest 9.2.)"""

    def _split_scope(self, nodeid: str) -> str:
        return _folder(nodeid) if _folder(nodeid) in TOGETHER else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    config.option.loadscopereorder = False  # by LONGEST_FIRST, not by the number of tests
    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST_FIRST.index(_folder(item.nodeid)) if _folder(item.nodeid) in LONGEST_FIRST else len(LONGEST_FIRST))
