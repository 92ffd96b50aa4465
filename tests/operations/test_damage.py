"""One wrong byte, or a file cut short: every small kind of file refuses it, or is whole again; and what is whole raises no alarm."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.reliability import checkout_files, file_kinds, flips
from components import failpoints, files, spool
from components.errors import Damaged, UserError
from components.layout import ROOT, Layout
from components.operations import processes, running, services
from components.training.checkpoint import Checkpoints

pytestmark = pytest.mark.code


@pytest.fixture(autouse=True)
def no_servers_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(variable, raising=False)


def test_D3_D4_every_kind_of_small_file_is_refused_or_made_whole(tmp_path: Path):
    rng = random.Random(20)
    told = [flips.damaged_and_used(kind, path, damage, rng) for kind in file_kinds.small(tmp_path) for path in kind.files()[:12]
            for damage in (flips.flip, flips.flip, flips.cut, flips.cut, flips.remove) if damage.__name__ in kind.damages]
    found = flips.summed(told)
    assert found["met"], found["failures"]
    assert found["counts"]["kinds"] == len({kind["kind"] for kind in told}) >= 15 and found["counts"]["cuts"] > 30


def test_the_drill_itself_counts_what_is_used_in_spite_of_damage(tmp_path: Path):
    path = tmp_path / "text"
    path.write_text("whole")
    blind = file_kinds.Kind(name="blind", files=lambda: [path], use=lambda _path: file_kinds.AS_WRITTEN)
    nervous = file_kinds.Kind(name="nervous", files=lambda: [path], use=lambda _path: file_kinds.REFUSED)
    broken = file_kinds.Kind(name="broken", files=lambda: [path], use=lambda path: str(path.read_text().index("whole")).replace("0", file_kinds.AS_WRITTEN))
    told = list(flips.rounds([blind, nervous, broken], 3, flips.flip, random.Random(1)))
    found = flips.summed(told)
    assert path.read_text() == "whole" and not found["met"]
    assert (found["counts"]["missed"], found["counts"]["false_alarms"]) == (2, 1) and len(found["failures"]) == 3
    assert "ValueError" in told[2]["outcome"] or "UnicodeDecodeError" in told[2]["outcome"]


# --- the seal ------------------------------------------------------------------------------------

def test_D3_D4_a_sealed_file_refuses_every_other_byte_and_every_cut(tmp_path: Path):
    path, value = tmp_path / "receipt.json", {"format": 1, "name": "红楼", "versions": [1, 2], "share": 0.125, "none": None}
    files.write_sealed(path, value)
    data = path.read_bytes()
    assert files.read_sealed(path) == value
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:])
        with pytest.raises(Damaged, match=re.escape(str(path))):
            files.read_sealed(path)
        path.write_bytes(data[:at])
        with pytest.raises(Damaged):
            files.read_sealed(path)


def test_D3_every_other_byte_of_a_manifest_is_one_clear_error(tmp_path: Path):
    (tmp_path / "a.txt").write_text("text")
    files.write_manifest(tmp_path)
    data = (path := tmp_path / files.MANIFEST).read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:])
        with pytest.raises(Damaged, match="a.txt|manifest"):
            files.verify_manifest(tmp_path)


def test_a_file_of_an_earlier_version_without_a_seal_is_read(tmp_path: Path):
    files.write_json(tmp_path / "old.json", {"format": 1})
    assert files.read_sealed(tmp_path / "old.json") == {"format": 1}
    files.write_json(tmp_path / "list.json", [1])
    with pytest.raises(Damaged, match="something else than was written"):
        files.read_sealed(tmp_path / "list.json")


def test_D3_a_flipped_digit_never_becomes_a_point_of_the_curve(tmp_path: Path):
    written = [{"t": step, "step": step, "metrics": {"train/loss": 1 / step}} for step in range(1, 8)]
    path = tmp_path / "events.jsonl"
    path.write_bytes(data := b"".join(map(spool.line_of, written)))
    assert list(spool.events(tmp_path)) == written and spool.damaged_lines(tmp_path) == 0
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:])
        found = list(spool.events(tmp_path))
        assert len(found) in (5, 6) and all(event in written for event in found)
        assert spool.damaged_lines(tmp_path) == 1 or data[at:at + 1] == b"\n"
    old = b'{"t": 1, "step": 1, "metrics": {"train/loss": 1.0}}\n'  # before there were checksums
    path.write_bytes(old)
    assert len(list(spool.events(tmp_path))) == 1


# --- servers that a damaged services.json must not lose --------------------------------------------

def test_D3_servers_are_known_though_services_json_is_damaged(tmp_path: Path):
    layout = Layout(root=tmp_path)
    files.write_atomic(tmp_path / "mlflow/__init__.py", "")
    files.write_atomic(tmp_path / "mlflow/__main__.py", "import time\ntime.sleep(60)\n")
    server = subprocess.Popen([sys.executable, *processes.command(layout, "mlflow", 5999)[1:]], cwd=tmp_path,
                              env={**os.environ, "PYTHONPATH": "", "LMWORKS_ROOT": str(tmp_path)})
    try:
        while server.poll() is None and "server" not in processes.psutil.Process(server.pid).cmdline():
            pass  # between fork and exec
        files.write_sealed(layout.services, {"mlflow": running.entry_of(layout, server.pid, "http://127.0.0.1:5999"), "ports": {"mlflow": 5999}})
        known = services.read(layout)
        assert known["mlflow"]["pid"] == server.pid
        for damage in (flips.flip, flips.cut):
            data = layout.services.read_bytes()
            damage(layout.services, random.Random(3))
            assert services.read(layout) == known
            assert services.address(layout, processes.MLFLOW) == "http://127.0.0.1:5999"
            running.mend(layout)
            assert files.read_sealed(layout.services) == known and layout.services.read_bytes() == data
    finally:
        server.kill()
        server.wait()


# --- power loss ----------------------------------------------------------------------------------

WRITE = "import sys; from pathlib import Path; from components import files; files.write_json(Path(sys.argv[1]), {'step': 2})"


@pytest.mark.parametrize("place", ["files.before_fsync", "files.before_rename"])
def test_D10_a_file_that_was_not_synced_never_takes_the_place_of_the_old_one(tmp_path: Path, place: str):
    path = tmp_path / "state.json"
    files.write_json(path, {"step": 1})
    ended = subprocess.run([sys.executable, "-c", WRITE, str(path)], cwd=ROOT, env={**os.environ, failpoints.VARIABLE: f"{place}@state.json=kill9"},
                           capture_output=True, text=True)
    assert ended.returncode == -9 and place in ended.stderr
    (left,) = tmp_path.glob(".state.json.*.partial")
    left.write_bytes(b"\0" * left.stat().st_size)  # what the disk had not yet taken
    assert files.read_json(path) == {"step": 1}


def test_D10_a_checkpoint_whose_bytes_were_lost_falls_back_to_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture):
    (kind,) = file_kinds.of_checkpoints(tmp_path)
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
        path = next(path for path in kind.files() if path.name == name)
        path.write_bytes(b"\0" * path.stat().st_size)  # renamed, but never written
        assert kind.use(path) == file_kinds.REFUSED, name
        said = capsys.readouterr()
        assert "checkpoint step-00000002 cannot be used" in said.out + said.err and "Going back to the one before it" in said.out + said.err
    with pytest.raises(Damaged, match="never published whole"):
        files.verify_manifest(Checkpoints(tmp_path / "empty", "k1").folder)


# --- text packages ---------------------------------------------------------------------------------

def test_D3_a_flipped_byte_in_an_installed_package_is_no_new_text(tmp_path: Path):
    from components.corpus import installed, sources

    layout = Layout(root=tmp_path)
    kind, _ = checkout_files.of_packages(layout)
    (path,) = kind.files()
    group = sources.Group(kind=sources.EMBEDDED, source=sources.EMBEDDED, files=[("hamlet.md", path)], mend="make setup")
    none = {name: sources.Group(kind="none", source="none") for name in ("records", "base")}
    flips.flip(path, random.Random(1))
    with pytest.raises(UserError, match=r"hamlet.md is damaged: sha256 \w{16}… found, \w{16}… installed. make setup"):
        sources.render({"corpus": group, **none}, sources.StatCache(layout.stat_cache, [path]), layout)
    assert not layout.stat_cache.exists(), "what is wrong is not remembered as known"
    numpy = Path(sys.modules["numpy"].__file__ if "numpy" in sys.modules else __import__("numpy").__file__)
    assert installed.hashes([("numpy", numpy)], layout) == {"numpy": files.sha256_file(numpy)}
