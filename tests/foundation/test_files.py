"""Bytes reach the disk whole or not at all, and are known again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components import files
from components.errors import Busy, Damaged, UserError

pytestmark = pytest.mark.code


def published(folder: Path) -> Path:
    partial = folder / "partial"
    (partial / "sub").mkdir(parents=True)
    (partial / "a.txt").write_text("hello 你好")
    (partial / "sub" / "b.bin").write_bytes(bytes(range(256)))
    files.publish(partial, folder / "final")
    return folder / "final"


def test_D3_each_flipped_byte_is_refused_with_file_and_both_hashes(tmp_path: Path):
    folder = published(tmp_path)
    files.verify_manifest(folder)
    for name in ("a.txt", "sub/b.bin", "manifest.json"):
        path = folder / name
        good = path.read_bytes()
        for at in range(0, len(good), 7):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1:])
            with pytest.raises(Damaged) as caught:
                files.verify_manifest(folder)
            if name != "manifest.json":
                assert name in str(caught.value) and "sha256" in str(caught.value)
        path.write_bytes(good)
    files.verify_manifest(folder)


def test_D4_cut_missing_and_foreign_files_are_refused(tmp_path: Path):
    folder = published(tmp_path)
    (folder / "extra").write_text("x")
    with pytest.raises(Damaged, match="somebody added it"):
        files.verify_manifest(folder)
    (folder / "extra").unlink()
    os.truncate(folder / "a.txt", 3)
    with pytest.raises(Damaged, match="a.txt is damaged"):
        files.verify_manifest(folder)
    (folder / "a.txt").unlink()
    with pytest.raises(Damaged, match="a.txt is missing"):
        files.verify_manifest(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(Damaged, match="never published whole"):
        files.verify_manifest(folder)


def test_publish_replaces_a_folder_whole(tmp_path: Path):
    folder = published(tmp_path)
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "c.txt").write_text("new")
    files.publish(tmp_path / "partial", folder)
    assert files.list_files(folder) == ["c.txt"]
    assert not list(tmp_path.glob("*.old"))


def test_atomic_write_leaves_no_partial_and_explains_a_refusal(tmp_path: Path):
    path = tmp_path / "x" / "y.json"
    files.write_json(path, {"b": 1, "a": "中"})
    assert path.read_text() == '{\n "a": "中",\n "b": 1\n}\n'
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises((UserError, OSError)):
        files.write_atomic(Path("/proc/nothing/x"), b"")


def test_G1_G2_lock_names_its_holder_and_dies_with_it(tmp_path: Path):
    path = tmp_path / "run.lock"
    holder = subprocess.Popen([sys.executable, "-c",
                               "import sys, time; from pathlib import Path; from components import files\n"
                               "with files.lock(Path(sys.argv[1]), what='a run'):\n print('held', flush=True); time.sleep(60)", str(path)],
                              stdout=subprocess.PIPE, text=True, cwd=Path(files.__file__).parents[1])
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(Busy, match=f"pid {holder.pid}, since"):
        with files.lock(path, what="a run"):
            pass
    holder.kill()
    holder.wait()
    with files.lock(path, what="a run", wait_s=5):
        pass
