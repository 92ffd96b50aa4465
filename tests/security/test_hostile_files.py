"""Files that try to run code when they are opened, at every door that opens something (J1, J2, J3, B5).

The same files and doors as `python -m benchmarks.reliability hostile`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reliability import hostile, hostile_files, unpickling
from components.errors import Damaged
from components.layout import ROOT
from components.release import loader

pytestmark = pytest.mark.code


@pytest.fixture(scope="module")
def whole() -> Iterator[Path]:
    """One sound thing of each kind."""
    with hostile.sound() as folder:
        yield folder


def check(kind: str, thing: hostile_files.Hostile, whole: Path) -> None:
    for door in hostile.DOORS[kind]:
        told = hostile.at_door(thing, door, whole)
        assert not told["executed"], told
        assert told["clear"], told


@pytest.mark.parametrize("thing", hostile_files.MODELS, ids=lambda thing: thing.name)
def test_J1_J3_a_hostile_model_folder_runs_nothing(whole: Path, thing: hostile_files.Hostile):
    check("model", thing, whole)


@pytest.mark.parametrize("thing", hostile_files.LOGGED, ids=lambda thing: thing.name)
def test_J2_a_hostile_registered_model_runs_nothing(whole: Path, thing: hostile_files.Hostile):
    check("logged", thing, whole)


@pytest.mark.parametrize("thing", hostile_files.OTHERS, ids=lambda thing: thing.name)
def test_B5_J1_hostile_settings_corpora_and_shards_run_nothing(whole: Path, thing: hostile_files.Hostile):
    check(thing.kind, thing, whole)


def test_sound_things_open_at_every_door(whole: Path):
    """Else the doors above would refuse everything and prove nothing."""
    for kind, doors in hostile.DOORS.items():
        for door in doors:
            nothing = hostile_files.Hostile("nothing", kind, lambda folder, marker: None if any(folder.iterdir()) else (folder / "a.txt").write_text("A text. 一段短文。\n"), harmless=True)
            told = hostile.at_door(nothing, door, whole)
            assert told["ended"] == "opened", told


def test_the_payloads_do_run_where_nobody_looks(tmp_path: Path):
    """Else nothing could ever be counted as executed."""
    import pickle

    for number, payload in enumerate((hostile_files.pickled, hostile_files.several)):
        marker = tmp_path / f"executed {number}"
        data = payload(marker)
        stream = __import__("io").BytesIO(data)
        while stream.tell() < len(data):
            pickle.load(stream)
        assert marker.exists()
    exec(hostile_files.code(tmp_path / "code"))
    assert (tmp_path / "code").exists()


def test_J2_every_model_file_that_was_ever_committed_is_known_and_no_other(whole: Path, tmp_path: Path):
    log = subprocess.run(["git", "-C", str(ROOT), "log", "--format=%H", "--", "components/serving/model_file.py"], capture_output=True, text=True)
    if log.returncode or not log.stdout:
        pytest.skip("no history here")
    now = loader.files.sha256_file(loader.MODEL_FILE)
    for commit in log.stdout.split():
        text = subprocess.run(["git", "-C", str(ROOT), "show", f"{commit}:components/serving/model_file.py"], capture_output=True).stdout
        sha256 = loader.files.sha256_bytes(text)
        assert sha256 in loader.EARLIER or sha256 == now, f"add the hash of {commit[:10]} to loader.EARLIER: {sha256}"
    folder = shutil.copytree(whole / "logged", tmp_path / "logged")
    loader.check(folder, "x version 1")
    (folder / "model_file.py").write_text((folder / "model_file.py").read_text() + "\n")
    with pytest.raises(Damaged, match=r"x version 1: its model_file.py \(sha256 [0-9a-f]{64}\) is none that lmworks ever shipped"):
        loader.check(folder, "x version 1")


def test_the_hook_sees_what_is_unpickled(tmp_path: Path):
    unpickling.install(tmp_path)
    script = "import pickle, multiprocessing, io; pickle.loads(pickle.dumps({'a': 1})); pickle.Unpickler(io.BytesIO(pickle.dumps(2))).load(); multiprocessing.Pool(1).map(str, [1])"
    subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True, cwd=tmp_path)
    seen: dict[str, Any] = unpickling.summary(tmp_path)
    assert sum(seen["elsewhere"].values()) == 2 and seen["inside"]["multiprocessing/"] > 0, seen
    assert seen["watched"] == unpickling.watched(tmp_path, "-c", script) == 1, "its pool is forked"


def test_a_chain_that_ended_at_once_or_without_the_hook_proves_nothing(tmp_path: Path):
    codes = {"0 use smoke": 2, "1 run": 0}
    assert hostile.astray(tmp_path, codes) == ["0 use smoke", "the hook was not in each command", "the hook was not in each stage",
                                               "the hook was not in MLflow", "the hook was not in Prefect"]
