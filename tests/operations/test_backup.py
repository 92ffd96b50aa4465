"""A backup holds all of a checkout or is not there; a restore brings all of it back, or nothing. Without servers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from commands import doctor, run
from components import chain, files
from components.errors import Busy, Damaged, UserError
from components.layout import ROOT, Layout
from components.operations import (
    backup,
    cleaning,
    databases,
    migrations,
    processes,
    restoration,
    restored_databases,
    services,
    status,
)

pytestmark = pytest.mark.code


def a_database(path: Path, table: str, count: int, *, wal: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA journal_mode={'WAL' if wal else 'DELETE'}")
        database.execute(f"CREATE TABLE {table} (n INTEGER)")
        database.executemany(f"INSERT INTO {table} VALUES (?)", [(n,) for n in range(count)])
        database.commit()


def in_cache(layout: Layout, content: bytes, end: str = "") -> str:
    md5 = hashlib.md5(content).hexdigest()
    files.write_atomic(layout.root / ".dvc/cache/files/md5" / md5[:2] / (md5[2:] + end), content)
    return md5


def an_out(layout: Layout, name: str) -> dict:
    """A published output, as DVC has it in data/, in its cache and in dvc.lock."""
    folder = layout.root / "data" / name
    folder.mkdir(parents=True)
    (folder / "文.txt").write_text(f"text of {name}")
    files.write_manifest(folder)
    entries = [{"md5": in_cache(layout, path.read_bytes()), "relpath": path.name} for path in sorted(folder.iterdir())]
    return {"path": f"data/{name}", "hash": "md5", "md5": in_cache(layout, json.dumps(entries).encode(), ".dir") + ".dir", "nfiles": 2}


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    for variable in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(variable, raising=False)
    layout = Layout(root=tmp_path / "old")
    a_database(layout.mlflow_database, "runs", 3)
    a_database(layout.prefect_database, "flow_run", 2, wal=True)
    files.write_atomic(layout.artifacts / "1/r/artifacts/report.html", "<p>报告</p>")
    files.write_atomic(layout.params, "seed: 1\n")
    files.write_json(layout.receipt, {"format": 1})
    files.write_json(layout.spool / "pretrain-k-n/run.json", {"name": "a run"})
    files.write_json(layout.dvc_lock, {"schema": "2.0", "stages": {"clean": {"outs": [an_out(layout, "clean")]}, "tokenizer": {"outs": [an_out(layout, "tokenizer")]}}})
    return layout


def empty(tmp_path: Path, name: str = "new") -> Layout:
    """A clone that was set up: its settings, and databases that nobody used."""
    layout = Layout(root=tmp_path / name)
    a_database(layout.mlflow_database, "runs", 0)
    a_database(layout.prefect_database, "flow_run", 0, wal=True)
    files.write_atomic(layout.params, "seed: 0\n")
    (layout.root / "data/packages").mkdir(parents=True)
    return layout


def tree_of(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): files.sha256_file(path) for path in root.rglob("*")
            if path.is_file() and not path.name.endswith((".lock", "-shm", "-wal"))}


def test_all_of_it_comes_back_in_another_place(layout: Layout, tmp_path: Path):
    shutil.rmtree(layout.root / "data/tokenizer")  # the cache still has it
    index = backup.create(layout, tmp_path / "saved")
    assert not index["warnings"]
    assert {"mlruns/mlflow.db", ".prefect/prefect.db", "mlruns/artifacts/1/r/artifacts/report.html", "params.yaml", "dvc.lock",
            ".lmworks/release.json", ".lmworks/spool/pretrain-k-n/run.json"} <= set(index["files"])
    new = empty(tmp_path)
    done = restoration.restore(new, tmp_path / "saved")
    assert done["replaced"] == ["params.yaml"] and new.params.read_text() == "seed: 1\n"
    for name in ("clean", "tokenizer"):
        files.verify_manifest(new.out(name))
    assert (databases.rows(new.mlflow_database, "runs"), databases.rows(new.prefect_database, "flow_run")) == (3, 2)
    assert (new.artifacts / "1/r/artifacts/report.html").read_text() == "<p>报告</p>" and new.receipt.exists()
    assert not (new.state / "restore").exists() and (new.root / "data/packages").exists()
    again = backup.create(new, tmp_path / "again")
    assert {name: entry for name, entry in again["files"].items() if not name.endswith(".db")} == {
        name: entry for name, entry in index["files"].items() if not name.endswith(".db")}


def test_a_database_is_copied_as_of_one_moment_while_somebody_writes(layout: Layout, tmp_path: Path):
    stop = threading.Event()

    def write() -> None:
        with contextlib.closing(sqlite3.connect(layout.prefect_database, timeout=30)) as database:
            while not stop.is_set():
                database.execute("INSERT INTO flow_run VALUES (1)")
                database.execute("INSERT INTO flow_run VALUES (1)")  # two rows a transaction
                database.commit()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for n in range(5):
            databases.snapshot(layout.prefect_database, tmp_path / f"{n}.db")
            assert databases.rows(tmp_path / f"{n}.db", "flow_run") % 2 == 0
            assert [path.name for path in tmp_path.glob(f"{n}.db*")] == [f"{n}.db"]  # one file, no log beside it
    finally:
        stop.set()
        writer.join()


def test_a_backup_never_overwrites_nor_lies_in_what_it_saves(layout: Layout, tmp_path: Path):
    (tmp_path / "there").mkdir()
    for target, words in ((tmp_path / "there", "never overwrites"), (tmp_path / "no/where", "mkdir -p"), (layout.artifacts / "b", "belongs to what is backed up")):
        with pytest.raises(UserError, match=words):
            backup.create(layout, target)
    with pytest.raises(UserError, match="nothing to back up"):
        backup.create(Layout(root=tmp_path / "there"), tmp_path / "b")
    assert not (tmp_path / "b").exists() and not list(tmp_path.glob("*.partial"))


def test_a_backup_is_refused_during_a_run_and_during_a_bare_stage(layout: Layout, tmp_path: Path):
    for lock in (layout.run_lock, layout.stage_lock):
        with files.lock(lock, what="it"), pytest.raises(Busy):
            backup.create(layout, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_servers_elsewhere_are_named_as_not_in_the_backup(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    index = backup.create(layout, tmp_path / "b")
    assert any("http://mlflow.example:5000" in line and "NOT in this backup" in line and "pg_dump" in line for line in index["warnings"])
    assert not any(name.startswith("mlruns/") for name in index["files"]) and ".prefect/prefect.db" in index["files"]


def test_E4_a_broken_database_is_named_and_nothing_is_written(layout: Layout, tmp_path: Path):
    layout.mlflow_database.write_bytes(b"this is no database, whatever its name" * 100)
    with pytest.raises(Damaged, match=r"mlflow\.db is damaged"):
        backup.create(layout, tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_D1_a_full_disk_leaves_no_half_backup_and_what_a_kill_left_goes(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / f".b.{2**22 + 1}.partial").mkdir()
    with monkeypatch.context() as patch, pytest.raises(UserError, match="no space in .*needs .* MB"):
        patch.setattr(backup.shutil, "disk_usage", lambda _path: SimpleNamespace(free=10))
        backup.create(layout, tmp_path / "b")

    def full(*_: Path) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "b"))

    monkeypatch.setattr(backup, "copy_hashed", full)
    with pytest.raises(UserError, match="no space in"):
        backup.create(layout, tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_an_output_that_is_nowhere_whole_is_left_out_and_said(layout: Layout, tmp_path: Path):
    (layout.clean / "文.txt").write_text("bad")
    md5 = hashlib.md5(b"text of clean").hexdigest()
    (layout.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).write_text("bad")
    index = backup.create(layout, tmp_path / "b")
    assert any(line.startswith("data/clean is not whole") for line in index["warnings"])
    new = empty(tmp_path)
    restoration.restore(new, tmp_path / "b")
    assert not new.clean.exists() and new.tokenizer.exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "add", "index"])
def test_a_damaged_backup_changes_nothing(layout: Layout, tmp_path: Path, damage: str):
    backup.create(layout, tmp_path / "b")
    victim = tmp_path / "b/mlruns/artifacts/1/r/artifacts/report.html"
    content = victim.read_bytes()
    if damage == "flip":
        victim.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "cut":
        victim.write_bytes(content[:-1])
    elif damage == "remove":
        victim.unlink()
    elif damage == "add":
        (victim.parent / "more").write_text("x")
    else:
        index = tmp_path / "b" / backup.INDEX
        index.write_text(index.read_text().replace('"format": 1', '"format": 2'))
    new = empty(tmp_path)
    before = tree_of(new.root)
    with pytest.raises(Damaged, match=r"backup\.json" if damage in ("index", "add") else r"report\.html"):
        restoration.restore(new, tmp_path / "b")
    assert tree_of(new.root) == before and not (new.state / "restore").exists()


def test_a_checkout_that_holds_something_is_refused_by_name(layout: Layout, tmp_path: Path):
    backup.create(layout, tmp_path / "b")
    with pytest.raises(UserError, match=r"not empty: mlruns/mlflow\.db, \.prefect/prefect\.db, mlruns/artifacts, \.lmworks/spool, data/clean, data/tokenizer, \.lmworks/release\.json"):
        restoration.restore(layout, tmp_path / "b")
    with pytest.raises(UserError, match="is no backup"):
        restoration.restore(empty(tmp_path), tmp_path)


def killed_among_the_renames(layout: Layout, saved: Path, *, at: str) -> None:
    """A restore of its own process, killed by -9 when `at` has been moved in."""
    done = subprocess.run([sys.executable, "-c", """
import os, signal, sys
from pathlib import Path
from components.layout import Layout
from components.operations import restoration
move_in = restoration._move_in
def killed(root, staging, name):
    move_in(root, staging, name)
    if name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
restoration._move_in = killed
restoration.restore(Layout(root=Path(sys.argv[1])), Path(sys.argv[2]))
""", str(layout.root), str(saved), at], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr


def test_E8_a_half_finished_restore_is_known_to_everything_that_would_work_there(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backup.create(layout, tmp_path / "my backups")
    new = empty(tmp_path)
    files.write_atomic(new.versions, "{}\n")
    killed_among_the_renames(new, tmp_path / "my backups", at="params.yaml")
    words = f"a restore was killed in the middle: .* Run it again: lmworks restore '{tmp_path}/my backups'"
    after = tree_of(new.root)
    tries = {"up, run, generate": lambda: services.ensure(new), "dvc repro": lambda: chain.run_stage(chain.BY_NAME["fetch"], new),
             "backup": lambda: backup.create(new, tmp_path / "b2"), "clean": lambda: cleaning.clean(new, older_than_days=0),
             "restore --databases": lambda: restored_databases.restore(new, tmp_path / "my backups")}
    for what, attempt in tries.items():
        with pytest.raises(UserError, match=words):
            attempt()
        assert tree_of(new.root) == after, what
    assert re.match(words, status.activity(new)["restore"])
    monkeypatch.setattr(doctor, "_gpu", lambda _layout: {"check": "GPU"})  # it imports torch
    told = next(row for row in doctor.findings(new) if row["check"] == "restore")
    assert not told["ok"] and re.match(words, told["found"])
    monkeypatch.setattr(run, "Layout", lambda: new)
    with pytest.raises(UserError, match=words):
        run.run()
    restoration.restore(new, tmp_path / "my backups")
    assert status.activity(new)["restore"] is None and databases.rows(new.mlflow_database, "runs") == 3


@pytest.mark.parametrize("damage", [lambda whole: whole[:50], lambda whole: whole.replace(b"params", b"parems"), lambda _whole: b"{}"], ids=["cut", "changed", "other"])
def test_D3_E8_a_damaged_journal_of_a_restore_is_told_with_the_way_out(layout: Layout, tmp_path: Path, damage):
    backup.create(layout, tmp_path / "b")
    new = empty(tmp_path)
    killed_among_the_renames(new, tmp_path / "b", at="params.yaml")
    staging = new.state / "restore"
    (staging / "journal.json").write_bytes(damage((staging / "journal.json").read_bytes()))
    told = status.activity(new)["restore"]
    assert f"{staging}/journal.json" in told and f"Move {staging} away" in told
    for attempt in (lambda: restoration.restore(new, tmp_path / "b"), lambda: services.ensure(new)):
        with pytest.raises(UserError) as caught:
            attempt()
        assert str(caught.value) == told
    staging.rename(tmp_path / "away")  # as it says
    with pytest.raises(UserError, match="this checkout is not empty: mlruns/artifacts.*move these away") as caught:
        restoration.restore(new, tmp_path / "b")
    for number, name in enumerate(str(caught.value).partition("not empty: ")[2].partition(". A restore")[0].split(", ")):
        (new.root / name).rename(tmp_path / "away" / str(number))
    restoration.restore(new, tmp_path / "b")
    assert status.activity(new)["restore"] is None and databases.rows(new.mlflow_database, "runs") == 3


def test_an_error_and_a_kill_among_the_renames_are_undone(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backup.create(layout, tmp_path / "b")
    new = empty(tmp_path)
    before, real = tree_of(new.root), restoration._move_in

    def stop_at(name_of_last: str, how: BaseException):
        def move(root: Path, staging: Path, name: str) -> None:
            real(root, staging, name)
            if name == name_of_last:
                raise how
        return move

    monkeypatch.setattr(restoration, "_move_in", stop_at("params.yaml", OSError(28, "No space left on device", "x")))
    with pytest.raises(UserError, match="no space in"):
        restoration.restore(new, tmp_path / "b")
    left = {name for name in tree_of(new.root) if not name.startswith(".dvc/")}
    assert left == set(before) and new.params.read_text() == "seed: 0\n"

    monkeypatch.setattr(restoration, "_move_in", real)
    killed_among_the_renames(new, tmp_path / "b", at="mlruns/mlflow.db")
    assert databases.rows(new.mlflow_database, "runs") == 3
    report = new.artifacts / "1/r/artifacts/report.html"
    kept, content = report.stat(), report.read_text()
    report.write_text("somebody went on working here")
    with pytest.raises(UserError, match="a restore was killed here, and mlruns/artifacts changed since"):
        restoration.restore(new, tmp_path / "b")
    assert databases.rows(new.mlflow_database, "runs") == 3, "nothing was taken back"
    report.write_text(content)
    os.utime(report, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    restoration.restore(new, tmp_path / "b")
    assert databases.rows(new.mlflow_database, "runs") == 3 and new.receipt.exists() and not (new.state / "restore").exists()


# --- the databases alone -------------------------------------------------------------------------

def registry_of(path: Path, versions: list[tuple[str, int]], aliases: list[tuple[str, str, int]]) -> None:
    """The tables of MLflow that a restore looks at, as far as it looks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE runs (n INTEGER)")
        database.execute("INSERT INTO runs VALUES (1)")
        database.execute("CREATE TABLE logged_models (model_id TEXT, artifact_location TEXT)")
        database.execute("CREATE TABLE model_versions (name TEXT, version INTEGER, source TEXT, run_id TEXT, current_stage TEXT)")
        database.execute("CREATE TABLE model_version_tags (name TEXT, version INTEGER, key TEXT, value TEXT)")
        database.execute("CREATE TABLE registered_model_aliases (name TEXT, alias TEXT, version INTEGER)")
        for name, number in versions:
            database.execute("INSERT INTO logged_models VALUES (?, ?)", (f"m-{number}", f"mlflow-artifacts:/1/models/m-{number}/artifacts"))
            database.execute("INSERT INTO model_versions VALUES (?, ?, ?, 'r', 'None')", (name, number, f"models:/m-{number}"))
        database.executemany("INSERT INTO registered_model_aliases VALUES (?, ?, ?)", aliases)


def test_E8_an_older_database_beside_newer_models_names_them_and_no_alias_dangles(layout: Layout, tmp_path: Path):
    layout.mlflow_database.unlink()
    registry_of(layout.mlflow_database, [("kept", 1)], [("kept", "champion", 1), ("kept", "best", 7)])
    model = layout.artifacts / "1/models/m-1/artifacts/MLmodel"
    files.write_atomic(model, "the model of last night")
    backup.create(layout, tmp_path / "b")
    # since then: another version, whose files stay; the model of last night is gone, and so is what the database held
    files.write_atomic(layout.artifacts / "1/models/m-2/artifacts/MLmodel", "the model of today")
    shutil.rmtree(model.parent)
    report = layout.artifacts / "1/r/artifacts/report.html"
    report.write_text("<p>written again today</p>")
    layout.mlflow_database.write_bytes(b"garbage")
    done = restored_databases.restore(layout, tmp_path / "b")
    told = "\n".join(done.told)
    assert "kept@best names version 7, which the registry does not have: the alias was taken away" in told
    assert "1/models/m-2/artifacts" in told and "newer than the database" in told
    assert databases.dangling(layout.mlflow_database) == [] and [v.aliases for v in databases.versions(layout.mlflow_database)] == [("champion",)]
    assert model.read_text() == "the model of last night" and (layout.artifacts / "1/models/m-2/artifacts/MLmodel").exists()
    assert report.read_text() == "<p>written again today</p>", "nothing of today is overwritten"
    assert (layout.mlruns / "mlflow.db.before-restore-1").read_bytes() == b"garbage"
    assert not layout.receipt.exists() and not (layout.state / "restore").exists()
    again = restored_databases.restore(layout, tmp_path / "b")
    assert "mlruns/mlflow.db.before-restore-2" in again.aside and again.artifacts == []


def test_E5_the_copy_of_a_migration_never_takes_the_place_of_a_restored_database(layout: Layout, tmp_path: Path):
    backup.create(layout, tmp_path / "b")
    for service, database in ((processes.MLFLOW, layout.mlflow_database), (processes.PREFECT, layout.prefect_database)):
        databases.snapshot(database, migrations.copy_of(layout, service))
    restored_databases.restore(layout, tmp_path / "b")
    assert not list((layout.state / "migration").iterdir())
    assert len(list(layout.mlruns.glob("mlflow.db.before-[0-9]*"))) == len(list(layout.prefect_home.glob("prefect.db.before-[0-9]*"))) == 1


def test_E4_a_damaged_copy_in_the_backup_leaves_the_databases_of_now(layout: Layout, tmp_path: Path):
    backup.create(layout, tmp_path / "b")
    saved = tmp_path / "b/mlruns/mlflow.db"
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 1
    saved.write_bytes(content)
    before = tree_of(layout.root)
    with pytest.raises(Damaged, match=r"mlflow\.db is damaged: sha256 .* found, .* written"):
        restored_databases.restore(layout, tmp_path / "b")
    assert tree_of(layout.root) == before
    shutil.rmtree(tmp_path / "b/mlruns")
    with pytest.raises(Damaged, match="is missing"):
        restored_databases.restore(layout, tmp_path / "b")
