"""Damaged outs come back from DVC's cache, or are left to their stage; bad bytes never take their place."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components import files
from components.errors import UserError
from components.layout import ROOT, Layout
from components.operations import environment, healing, lock_file, staleness

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


def dvc(layout: Layout, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    env = environment.child(layout)
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=layout.root, env=env, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


def repro(layout: Layout) -> None:
    dvc(layout, "repro", "--single-item", "one")


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


# --- what DVC wrote down -------------------------------------------------------------------------

def test_D3_a_size_in_dvc_lock_that_dvc_does_not_look_at_is_seen_and_put_right(layout: Layout):
    written = layout.dvc_lock.read_text()
    assert lock_file.wrong(layout, ["one"]) is None
    size = sum(path.stat().st_size for path in layout.out("side").iterdir())
    for damaged in (written.replace(f"size: {size}", f"size: {size + 1}"), written.replace("nfiles: 3", "nfiles: 7")):
        assert damaged != written
        layout.dvc_lock.write_text(damaged)
        assert staleness.why(layout, "one") == [], "DVC compares hashes alone"
        told = lock_file.wrong(layout, ["one"])
        assert told is not None and told.startswith("dvc.lock is damaged: ") and "recorded" in told and "found" in told
        lock_file.record_again(layout, "one")
        assert layout.dvc_lock.read_text() == written and (layout.root / "ran").read_text() == "x"


@pytest.mark.parametrize("damaged", ["schema: '2.0'\nstages:\n  one: [", "stages:\n  one:\n    outs: 5\n", "[1, 2]\n", "stages:\n  one:\n    outs:\n    - pbth: data/one\n"])
def test_D3_D4_a_dvc_lock_that_nobody_wrote_is_refused_with_what_to_do(layout: Layout, damaged: str):
    layout.dvc_lock.write_text(damaged)
    for ask in (lambda: healing.locked_outs(layout, "one"), lambda: staleness.why(layout, "one")):
        with pytest.raises(UserError, match=r"dvc\.lock.*remove it: lmworks run writes it anew"):
            ask()
    layout.dvc_lock.unlink()
    repro(layout)
    assert (layout.root / "ran").read_text() == "x", "the run cache held the result"
    assert healing.damage(layout, "one") == [] and staleness.why(layout, "one") == []


def test_D3_a_damaged_entry_of_the_run_cache_is_dropped_and_the_stage_runs(layout: Layout):
    cache = healing.objects_folder(layout).parent.parent
    (run,) = lock_file.runs(cache)
    assert staleness.is_whole_run(run) and staleness.drop_damaged_runs(cache) == []
    run.write_text(run.read_text().replace("data/one", "data/ome"))
    layout.dvc_lock.unlink()
    for out in ("one", "side"):
        shutil.rmtree(layout.out(out))
    assert dvc(layout, "repro", "-q", "--single-item", "one", check=False).returncode, "DVC brings another folder and misses its own"
    assert staleness.drop_damaged_runs(cache) == [run.name] and list(lock_file.runs(cache)) == []
    repro(layout)
    assert (layout.root / "ran").read_text() == "xx" and healing.damage(layout, "one") == []


@pytest.mark.parametrize("key", ["size", "nfiles"])
def test_D3_a_size_in_the_run_cache_that_is_not_that_of_its_files_is_damage(layout: Layout, key: str):
    (run,) = lock_file.runs(healing.objects_folder(layout).parent.parent)
    text, changed = re.subn(rf"(?s)(outs:.*? {key}: )(\d+)", r"\g<1>1\2", run.read_text(), count=1)
    assert changed and staleness.is_whole_run(run)
    run.write_text(text)
    assert not staleness.is_whole_run(run)


@pytest.mark.parametrize("damage", ["header", "cut", "all"])
def test_D3_D4_what_dvc_remembers_of_hashes_is_made_anew_where_it_is_damaged(layout: Layout, capsys: pytest.CaptureFixture, damage: str):
    staleness.why(layout, "one")
    (memory,) = (layout.root / ".dvc" / "site").rglob("hashes/local/cache.db")
    for beside in memory.parent.glob("cache.db-*"):
        beside.unlink()
    data = memory.read_bytes()
    memory.write_bytes({"header": b"SQLITE" + data[6:], "cut": data[:len(data) // 2], "all": b"\xff" * len(data)}[damage])
    assert staleness.why(layout, "one") == []
    told = capsys.readouterr()
    assert ".dvc/site is damaged" in told.out + told.err
    assert staleness.stale(layout) == {} and not capsys.readouterr().out


def test_J1_J15_a_row_that_another_user_could_plant_in_dvcs_memory_is_never_unpickled(layout: Layout):
    memory = layout.root / ".dvc" / "site"
    assert memory.stat().st_mode & 0o002, "as DVC makes it"

    class Planted:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(layout.root / "planted"),)

    for path in memory.rglob("cache.db"):
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("UPDATE Cache SET mode = 4, value = ?", (pickle.dumps(Planted()),))
            database.commit()
    assert staleness.why(layout, "one") == []
    assert not memory.stat().st_mode & 0o077
    dvc(layout, "checkout")  # it unpickles what it finds
    assert not (layout.root / "planted").exists()
    repro(layout)
    assert not memory.stat().st_mode & 0o077


def test_D3_a_hash_in_dvcs_memory_that_is_another_is_forgotten(layout: Layout):
    staleness.why(layout, "one")
    (path,) = (layout.root / ".dvc" / "site").rglob("hashes/local/cache.db")
    with contextlib.closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT key, value FROM Cache WHERE key LIKE ?", (f"{layout.out('one')}%",)).fetchall()
        assert rows
        for key, value in rows:
            database.execute("UPDATE Cache SET value = ? WHERE key = ?", (re.sub(r'("md5": ?")(.)', lambda m: m[1] + ("0" if m[2] != "0" else "1"), value), key))
        database.commit()
    reasons = staleness.why(layout, "one")
    assert reasons and staleness.outputs_changed(reasons) and healing.damage(layout, "one") == []
    staleness.forget(layout)
    assert staleness.why(layout, "one") == []


# --- a remote ------------------------------------------------------------------------------------

def test_A14_a_damaged_object_of_a_remote_never_becomes_data(layout: Layout):
    dvc(layout, "remote", "add", "-d", "far", "far away")
    assert healing.unverified_remotes(layout) == ["far"]
    settings = layout.root / ".dvc" / "config"
    settings.write_text(settings.read_text() + "    verify = tru\n")
    assert healing.unverified_remotes(layout) == ["far"]
    settings.write_text(settings.read_text().replace("tru\n", "true\n"))
    assert healing.unverified_remotes(layout) == [] == healing.unverified_remotes(Layout())
    dvc(layout, "push", "-q")
    md5 = hashlib.md5((layout.out("one") / "a.txt").read_bytes()).hexdigest()
    (far,) = (layout.root / "far away").rglob(f"{md5[:2]}/{md5[2:]}")
    flip(far)

    def pulled() -> subprocess.CompletedProcess[str]:
        shutil.rmtree(healing.objects_folder(layout))
        for out in ("one", "side"):
            shutil.rmtree(layout.out(out), ignore_errors=True)
        return dvc(layout, "pull", check=False)

    refused = pulled()
    assert refused.returncode and "data/one" in refused.stderr
    assert not (layout.out("one") / "a.txt").exists() and not (healing.objects_folder(layout) / md5[:2] / md5[2:]).exists()
    # a remote that somebody set up without it: the bytes come, and the next run sees them
    dvc(layout, "remote", "modify", "far", "verify", "false")
    pulled()
    assert healing.damage(layout, "one")[0].startswith("data/one/a.txt is damaged: sha256 ")
    assert healing.mend(layout, "one") is False
    repro(layout)
    assert healing.damage(layout, "one") == [] and (layout.root / "ran").read_text() == "xx"


def test_a_folder_has_the_name_that_dvc_gives_it(layout: Layout):
    """By it the work folder of a training knows that its result is recorded."""
    from components.operations import recorded

    outs = healing.locked_outs(layout, "one")
    assert [recorded.dvc_name(layout.root / out["path"]) for out in outs] == [out["md5"] for out in outs] and len(outs) == 2
