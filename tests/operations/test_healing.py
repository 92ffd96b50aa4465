"""Damaged outs come back from DVC's cache, or are left to their stage; bad bytes never take their place."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components import files
from components.layout import ROOT, Layout
from components.operations import environment, healing, staleness

pytestmark = pytest.mark.code

DVC_YAML = """\
stages:
  one:
    cmd: python one.py
    deps: [in.txt, one.py]
    outs: [data/one, data/side]
"""
ONE = f"""\
import pathlib, sys
sys.path.insert(0, {str(ROOT)!r})
from components import files
for name in ("one", "side"):
    folder = pathlib.Path("data") / name
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text(f"{{name}} of " + pathlib.Path("in.txt").read_text())
    (folder / "b.txt").write_text("b")
    files.write_manifest(folder)
with open("ran", "a") as ran:
    ran.write("x")
"""


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    for name in [n for n in environment.child(Layout(root=tmp_path)) if os.environ.get(n) is None]:
        monkeypatch.delenv(name, raising=False)
    layout = Layout(root=tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    (tmp_path / "in.txt").write_text("文本")
    (tmp_path / "one.py").write_text(ONE)
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    environment.allow_no_git(layout)
    repro(layout)
    return layout


def repro(layout: Layout) -> None:
    env = environment.child(layout)
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q", "--single-item", "one"], cwd=layout.root, env=env, check=True)


def flip(path: Path, *, keep_time: bool = False) -> None:
    before, mode = path.stat(), path.stat().st_mode
    path.chmod(0o644)
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    path.chmod(mode)
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cache_object(layout: Layout, path: Path) -> Path:
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    return healing.objects_folder(layout) / md5[:2] / md5[2:]


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_flipped_byte_comes_back_from_a_good_cache(layout: Layout, keep_time: bool):
    good = files.manifest_hash(layout.out("one"))
    flip(layout.out("one") / "a.txt", keep_time=keep_time)
    if not keep_time:
        assert staleness.outputs_alone(staleness.why(layout, "one")) and staleness.why(layout, "one")
    told = healing.damage(layout, "one")
    assert len(told) == 1 and told[0].startswith("data/one/a.txt is damaged: sha256 ") and "Run:" not in told[0]
    assert healing.mend(layout, "one") is True
    assert healing.damage(layout, "one") == [] and files.manifest_hash(layout.out("one")) == good
    assert staleness.why(layout, "one") == [], "DVC finds it fresh"
    assert not layout.partial.exists() or not list(layout.partial.iterdir())


@pytest.mark.parametrize("damaged_object", ["file", "missing file", "listing"])
def test_A12_A13_bad_cache_objects_are_deleted_and_the_stage_runs_again(layout: Layout, damaged_object: str):
    path = layout.out("one") / "a.txt"
    found = cache_object(layout, path)
    listing = next(o for o in healing.objects_folder(layout).rglob("*.dir") if b"a.txt" in o.read_bytes() and found.parent.name + found.name in o.read_text())
    if damaged_object == "missing file":
        found.unlink()
    else:
        flip({"file": found, "listing": listing}[damaged_object])
    flip(path)
    assert healing.mend(layout, "one") is False
    assert not path.parent.exists()
    assert not (listing if damaged_object == "listing" else found).exists()
    repro(layout)
    assert (layout.root / "ran").read_text() == "xx", "the run cache had nothing left to restore"
    assert healing.damage(layout, "one") == [] and staleness.why(layout, "one") == []
    assert cache_object(layout, path).exists()


def test_damage_that_was_committed_is_not_handed_out_again(layout: Layout):
    flip(layout.out("one") / "a.txt")
    env = environment.child(layout)
    subprocess.run([sys.executable, "-m", "dvc", "commit", "-q", "-f", "one"], cwd=layout.root, env=env, check=True)
    assert healing.mend(layout, "one") is False
    repro(layout)
    assert healing.damage(layout, "one") == []


def test_outs_of_a_failed_stage_come_back_and_bad_ones_do_not(layout: Layout):
    import shutil

    flip(cache_object(layout, layout.out("side") / "a.txt"))
    shutil.rmtree(layout.out("one"))
    shutil.rmtree(layout.out("side"))
    assert healing.restore_previous(layout, "one") == ["data/one"]
    files.verify_manifest(layout.out("one"))
    assert not layout.out("side").exists()


def test_a_stage_that_never_ran_has_no_damage(layout: Layout):
    assert healing.damage(layout, "two") == [] and healing.mend(layout, "two") is True


def test_a_cache_elsewhere_is_found(layout: Layout):
    (layout.root / ".dvc" / "config").write_text("[core]\n    analytics = false\n[cache]\n    dir = ../shared 缓存\n")
    assert healing.objects_folder(layout).resolve() == (layout.root / "shared 缓存" / "files" / "md5").resolve()
