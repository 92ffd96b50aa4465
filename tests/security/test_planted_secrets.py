"""A whole life of a checkout with 20 secrets planted in it, every socket noted and every unpickling counted (J1, J10, J14).

The same as `python -m benchmarks.reliability planted_secrets` and the chain of `hostile`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.reliability import planted_secrets, unpickling
from benchmarks.reliability.planted_secrets import Listeners, Planted
from components import chain
from tests.checkout import copy_checkout

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    checkout = copy_checkout(tmp_path_factory.mktemp("secrets") / "checkout")
    planted, rng = Planted(checkout.root, checkout.home), random.Random()
    unpickling.install(checkout.root)
    planted_secrets.plant(planted, rng)
    try:
        with Listeners(planted):
            planted.lmworks("up")
            planted_secrets.live(planted, rng)
        yield planted
    finally:
        planted.lmworks("down", "--force")


def test_J14_twenty_secrets_leave_no_trace(planted: Planted):
    assert len(planted.secrets) >= planted_secrets.COUNT
    assert planted.codes["run"] == 0 and planted.codes["run, stages/ingest.py fails"] == 1 and planted.codes["run, training/loop.py fails"] == 1, planted.codes
    assert planted.codes["use, with a token"] == 2 and planted.codes["run, with a password in the settings"] == 2, planted.codes
    assert planted.codes["accept"] == 0 and "********" in (planted.root / ".lmworks" / "accepted.jsonl").read_text()
    assert "********" in planted.printed and planted_secrets.look(planted) == []


def test_J14_what_is_looked_for_would_be_found(planted: Planted):
    """Each form, across the border of two chunks, in any kind of file."""
    where, secret = next(iter(planted.secrets.items()))
    path = planted.root / "work" / "probe.bin"
    for shape in planted_secrets.forms(secret):
        path.write_bytes(b"\0" * (planted_secrets.CHUNK_BYTES - 5) + shape + b"\xff")
        assert planted_secrets.look(planted) == [{"secret": where, "found in": "work/probe.bin"}]
    path.unlink()


def test_J10_nothing_listened_off_loopback(planted: Planted):
    assert planted.listeners and planted.listeners <= set(planted_secrets.LOOPBACK), planted.listeners


def test_J1_nothing_was_unpickled_but_what_processes_say_to_one_another(planted: Planted):
    assert unpickling.watched(planted.root, "components.chain") >= len(chain.STAGES) and unpickling.watched(planted.root, "mlflow", "server"), "the hook was there"
    assert unpickling.summary(planted.root)["elsewhere"] == {}


def test_J15_no_private_folder_is_open_to_others(planted: Planted):
    for name in (".prefect", ".prefect/storage", ".lmworks", ".lmworks/logs"):
        assert not Path(planted.root / name).stat().st_mode & 0o077, name
