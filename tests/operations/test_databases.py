"""A database that cannot be trusted is named and left alone; a migration or a transaction that was killed loses nothing."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from disks import on_a_disk

from components import files
from components.errors import Damaged, UserError
from components.layout import ROOT, Layout
from components.operations import databases, migrations, processes, rest, services
from components.operations.processes import MLFLOW, PREFECT, Service
from components.release import calls, registry

pytestmark = pytest.mark.code
TABLES = {MLFLOW.name: "runs", PREFECT.name: "flow_run"}


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    for variable in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return Layout(root=tmp_path)


def in_use(layout: Layout, service: Service, stamp: str | None = None) -> Path:
    """A database with rows in it, and the schema stamp (by default the newest that the installed package knows)."""
    path = migrations.database(layout, service)
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(f"CREATE TABLE {TABLES[service.name]} (n INTEGER, filling TEXT)")
        database.executemany(f"INSERT INTO {TABLES[service.name]} VALUES (?, ?)", [(n, "x" * 100) for n in range(500)])
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        if stamp != "":
            database.execute("INSERT INTO alembic_version VALUES (?)", (stamp or next(iter(migrations.revisions(service)[1])),))
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "header":
        path.write_bytes(b"no database at all" + whole[18:])
    elif how == "half":
        os.truncate(path, len(whole) // 2)
    elif how == "one byte":
        os.truncate(path, len(whole) - 1)
    elif how == "page":
        path.write_bytes(whole[:8192] + os.urandom(4096) + whole[12288:])


@pytest.mark.parametrize("service", [MLFLOW, PREFECT], ids=["mlflow", "prefect"])
@pytest.mark.parametrize("how", ["header", "half", "one byte", "page"])
def test_E4_a_damaged_database_is_named_before_any_server_starts_and_stays_as_it_is(layout: Layout, service: Service, how: str):
    path = in_use(layout, service)
    damage(path, how)
    before = content(path.parent)
    with pytest.raises(Damaged) as caught:
        services.ensure(layout, mlflow=service is MLFLOW, prefect=service is PREFECT)
    assert str(path) in str(caught.value) and "lmworks restore PATH --databases" in str(caught.value)
    assert content(path.parent) == before and not services.read(layout).get(service.name) and not layout.logs.exists()
    assert str(path) in migrations.wrong_with(layout, service)


def test_E4_an_emptied_or_lost_database_is_never_made_anew_where_something_leans_on_it(layout: Layout):
    files.write_atomic(layout.artifacts / "1/models/m-1/artifacts/MLmodel", "x")
    path = layout.mlflow_database
    for state in ("is gone", "is empty"):
        with pytest.raises(Damaged, match=rf"mlflow\.db {state}, but mlruns/artifacts holds files.*lmworks restore PATH --databases.*move mlruns/artifacts away"):
            services.ensure(layout, prefect=False)
        assert not path.exists() or path.stat().st_size == 0
        path.touch()
    layout.prefect_database.parent.mkdir()
    layout.prefect_database.touch()
    assert migrations.wrong_with(layout, PREFECT) is None, "a first start that was killed leaves an empty one"
    files.write_json(layout.last_run, {"format": 1})
    with pytest.raises(Damaged, match=r"prefect\.db is empty, but \.lmworks/last-run\.json tells of runs"):
        services.ensure(layout, mlflow=False)
    layout.prefect_database.unlink()
    assert migrations.wrong_with(layout, PREFECT) is None, "the run was one of another server: ours was never started here"
    files.write_atomic(processes.log_path(layout, "prefect"), "")
    for told in (layout.last_run, layout.scheduled):
        files.write_json(told, {"format": 1})
        with pytest.raises(Damaged, match=rf"prefect\.db is gone, but \.lmworks/{told.name} tells of runs.*lmworks restore PATH --databases.*begin anew: move"):
            services.ensure(layout, mlflow=False)
        assert not layout.prefect_database.exists()
        told.unlink()
    assert migrations.wrong_with(layout, PREFECT) is None


@pytest.mark.parametrize("service", [MLFLOW, PREFECT], ids=["mlflow", "prefect"])
def test_E4_an_unknown_schema_stamp_is_called_another_version_and_a_missing_one_damage(layout: Layout, service: Service):
    path = in_use(layout, service, stamp="f00dfeed1234")
    before = path.read_bytes()
    with pytest.raises(UserError, match=rf"was written by another version of {service.name}, probably a newer one: this one \(\d.*f00dfeed1234") as caught:
        services.ensure(layout, mlflow=service is MLFLOW, prefect=service is PREFECT)
    assert str(path) in str(caught.value) and "restore PATH --databases" in str(caught.value) and path.read_bytes() == before
    path.unlink()
    in_use(layout, service, stamp="")
    with pytest.raises(Damaged, match="holds rows, but no schema stamp"):
        services.ensure(layout, mlflow=service is MLFLOW, prefect=service is PREFECT)


def test_E5_a_kill_within_a_transaction_leaves_a_whole_database_without_it(layout: Layout):
    path = in_use(layout, PREFECT)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=WAL")
    writer = subprocess.Popen([sys.executable, "-c", """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size=5")  # so that pages reach the disk before the commit
database.execute("BEGIN")
for n in range(20_000):
    database.execute("INSERT INTO flow_run VALUES (?, ?)", (n, "y" * 500))
    if n == 10_000:
        print("in the middle", flush=True)
        sys.stdin.read()
""", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "in the middle\n"
    writer.kill()
    writer.wait()
    assert path.with_name("prefect.db-wal").stat().st_size > 0, "the kill came too early to prove anything"
    assert databases.integrity(path) == [] and databases.rows(path, "flow_run") == 500
    migrations.ready(layout, PREFECT, services.quiet)  # and its server may start on it


def test_D3_a_text_that_is_none_any_more_is_damage_that_is_named_without_the_text(layout: Layout):
    """SQLite's own checks say ok."""
    path = in_use(layout, MLFLOW)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE runs SET filling = CAST(x'e69687e6' AS TEXT) WHERE n = 40")
    wrong = "a text in the column filling is no UTF-8 any more"
    assert databases.integrity(path) == [f"table runs: {wrong}"]
    with pytest.raises(Damaged, match=f"mlflow.db is damaged: {wrong}. Bring the databases back") as raised, databases.opened(path) as database:
        database.execute("SELECT filling FROM runs").fetchall()
    assert "文" not in str(raised.value)


def test_E5_a_killed_migration_begins_again_from_the_copy_and_the_copy_is_kept(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    known, newest = migrations.revisions(PREFECT)
    assert len(newest) == 1 and len(known) > 50
    path = in_use(layout, PREFECT, stamp=sorted(known - newest)[0])
    before = databases.rows(path, "flow_run")
    migrations.ready(layout, PREFECT, services.quiet)
    kept = migrations.copy_of(layout, PREFECT)
    for half_done in (lambda: path.write_bytes(path.read_bytes()[:9000]), lambda: sqlite3.connect(path).execute("DROP TABLE flow_run"), path.unlink):
        half_done()  # what a killed migration leaves
        left, told = path.read_bytes() if path.exists() else None, []
        migrations.ready(layout, PREFECT, told.append)
        assert databases.rows(path, "flow_run") == before and databases.rows(kept, "flow_run") == before
        assert [Path(line.rpartition(" ")[2]).read_bytes() for line in told] == ([left] if left else []), "what stood there is put aside, and named"
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", (next(iter(newest)),))
    migrations.done(layout, PREFECT)
    (aside,) = path.parent.glob("prefect.db.before-[0-9]*")
    assert databases.rows(aside, "flow_run") == before and not kept.exists()
    migrations.ready(layout, PREFECT, services.quiet)
    assert not kept.exists(), "a migrated database is not copied again"


@pytest.mark.parametrize("copied", [True, False], ids=["a copy", "no database before"])
def test_E4_E5_what_a_killed_start_left_never_takes_the_place_of_a_database_in_use(layout: Layout, copied: bool):
    """The server outlived who started it, and was used; then the packages were upgraded, or the file was damaged."""
    known, newest = migrations.revisions(PREFECT)
    kept, told = migrations.copy_of(layout, PREFECT), []
    path = in_use(layout, PREFECT, stamp=sorted(known - newest)[0])
    kept.parent.mkdir(parents=True)
    if copied:
        databases.snapshot(path, kept)
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute("INSERT INTO flow_run VALUES (?, ?)", (500, "of the weeks since"))
    present = databases.rows(path, "flow_run")
    kept.touch()
    migrations.ready(layout, PREFECT, told.append)
    newer = Path(told[0].rpartition(" ")[2]) if copied else path
    assert databases.rows(newer, "flow_run") == present and databases.rows(kept, "flow_run") == 500
    assert len(told) == copied and (not copied or "is kept" in told[0])
    if not copied:
        os.truncate(kept, 0)
        damage(path, "page")
        before = content(path.parent)
        with pytest.raises(Damaged, match=r"(?s)prefect\.db is damaged.*lmworks restore PATH --databases"):
            migrations.ready(layout, PREFECT, told.append)
        assert content(path.parent) == before
        migrations.copy_of(layout, MLFLOW).touch()
        files.write_atomic(layout.artifacts / "1/models/m-1/artifacts/MLmodel", "x")
        with pytest.raises(Damaged, match=r"mlflow\.db is gone, but mlruns/artifacts holds files"):
            migrations.ready(layout, MLFLOW, told.append)


def test_E5_a_first_migration_that_was_killed_halfway_begins_anew_and_what_it_made_is_kept(layout: Layout):
    known, newest = migrations.revisions(PREFECT)
    path, kept, told = in_use(layout, PREFECT, stamp=sorted(known - newest)[0]), migrations.copy_of(layout, PREFECT), []
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM flow_run")
    files.write_atomic(kept, "")
    left = path.read_bytes()
    migrations.ready(layout, PREFECT, told.append)
    assert not path.exists() and kept.stat().st_size == 0 and len(told) == 1
    assert Path(told[0].rpartition(" ")[2]).read_bytes() == left


def test_E5_a_server_that_outlived_who_started_it_has_ended_its_migration(layout: Layout):
    """Real processes: the starter is killed in the moment before it would take the copy away."""
    killed = subprocess.run([sys.executable, "-c", """
import os, signal, subprocess, sys
from pathlib import Path
from components.layout import Layout
from components.operations import migrations, services

server = "import http.server, sys; http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), type('H', (http.server.BaseHTTPRequestHandler,), " \
         "{'do_GET': lambda self: (self.send_response(200), self.end_headers())})).serve_forever()"
services.spawn = lambda layout, name, port: subprocess.Popen([sys.executable, "-c", server, str(port)], cwd=layout.root, start_new_session=True,
                                                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
migrations.done = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
services.ensure(Layout(root=Path(sys.argv[1])), prefect=False)
""", str(layout.root)], cwd=ROOT, capture_output=True, text=True)
    kept = migrations.copy_of(layout, MLFLOW)
    try:
        assert killed.returncode == -9 and kept.exists(), killed.stderr
        services.ensure(layout, prefect=False)
        assert not kept.exists()
    finally:
        services.down(layout, force=True)
    path = in_use(layout, MLFLOW, stamp="f00dfeed1234")
    with pytest.raises(UserError, match="was written by another version of mlflow"):
        migrations.ready(layout, MLFLOW, services.quiet)
    assert databases.rows(path, "runs") == 500


@pytest.mark.slow
def test_E5_the_first_start_killed_at_any_moment_can_be_done_again(layout: Layout):
    """Real servers, whose first start makes and migrates both databases."""
    program = "from components.layout import Layout; from components.operations import services; from pathlib import Path; import sys\n" \
              "services.prepare(Layout(root=Path(sys.argv[1])))"
    for pause_s in (1.5, 3.5):
        first = subprocess.Popen([sys.executable, "-c", program, str(layout.root)], start_new_session=True, cwd=ROOT)
        time.sleep(pause_s)
        first.kill()
        first.wait()
        started = services.read(layout)
        for name in ("mlflow", "prefect"):
            if process := services.process_of(started.get(name), layout):
                tree = [*process.children(recursive=True), process]
                for one in tree:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
                assert not psutil.wait_procs(tree, timeout=20)[1]
    try:
        addresses = services.ensure(layout)
        assert rest.healthy(addresses["mlflow"]["url"] + processes.MLFLOW.health)
        assert rest.call(f"{addresses['mlflow']['url']}/api/2.0/mlflow/experiments/search", {"max_results": 5})["experiments"]
        assert rest.Prefect(addresses["prefect"]["api"]).send("/flow_runs/filter", {}) == []
    finally:
        services.down(layout, force=True)
    for service in (MLFLOW, PREFECT):
        assert databases.integrity(migrations.database(layout, service)) == []
        assert migrations.stamps(migrations.database(layout, service)) is None or migrations.wrong_with(layout, service) is None


@pytest.mark.parametrize("how", ["half", "page"])
def test_D4_a_database_that_is_damaged_under_its_running_server_is_named_whoever_asks(layout: Layout, how: str):
    """The server's health page knows nothing of it: `lmworks up` would find all in order, and the next run would fail again."""
    services.ensure(layout, prefect=False)
    try:
        client = registry.client(layout)
        client.create_registered_model("名")
        with contextlib.closing(sqlite3.connect(layout.mlflow_database)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        data = bytearray(layout.mlflow_database.read_bytes())
        if how == "page":
            for page in range(1, len(data) // 4096):
                data[page * 4096] ^= 0xFF
        layout.mlflow_database.write_bytes(data[:len(data) // 2] if how == "half" else data)
        assert rest.healthy(f"{registry.address(layout)}/health")
        wrong = "mlflow.db is damaged: .*Bring the databases back from a backup: lmworks restore PATH --databases"
        with pytest.raises(Damaged, match=wrong):
            registry.registered(layout, "名")
        with pytest.raises(Damaged, match=wrong):
            registry.catalogue(layout)
        if how == "half":  # the server still has what it changed last in memory
            with pytest.raises(Damaged, match=wrong), calls.explained(layout, "-"):
                client.create_registered_model("name")
    finally:
        services.down(layout, force=True)


@pytest.mark.slow
def test_E6_D1_a_disk_that_fills_up_under_mlflow_stops_no_training_and_every_point_arrives_when_there_is_space(tmp_path: Path):
    out = on_a_disk(tmp_path / "disk", "size=64m", """
import json, time
from components import config, spool, tracking
from components.layout import Layout
from components.operations import databases, services

layout = Layout(root=disk, work=disk / "work/pretrain/key")
settings = config.build({"name": "full", "preset": "smoke"}, where="test")
services.ensure(layout, prefect=False)
try:
    with tracking.tracked(settings, layout, stage="pretrain", parameters=1, languages=["en"], params={}) as run:
        for step in range(1, 401):
            if step == 100:
                time.sleep(3)
                fill()
            if step == 200:
                try:
                    tracking.drain(layout)
                except Exception as error:
                    print("TRAINING WAS STOPPED", error)
                assert databases.integrity(layout.mlflow_database) == []
                (disk / "ballast").unlink()
            run.log(step, {"train/loss": 1.0 / step})
    tracking.drain(layout)
    found = []
    from components import mlflow_rest
    url = services.address(layout, services.SERVERS[0])
    experiment = mlflow_rest.call(url, "GET", "experiments/get-by-name?experiment_name=full")["experiment"]["experiment_id"]
    mine = mlflow_rest.call(url, "POST", "runs/search", {"experiment_ids": [experiment]})["runs"][0]["info"]
    token = ""
    while True:
        page = mlflow_rest.call(url, "GET", f"metrics/get-history?run_id={mine['run_id']}&metric_key=train/loss&max_results=1000{token}")
        found += [point["step"] for point in page["metrics"]]
        if not page.get("next_page_token"):
            break
        token = f"&page_token={page['next_page_token']}"
    steps = sorted(map(int, found))
    print("missing", sorted(set(range(1, 401)) - set(steps)), "doubled", len(steps) - len(set(steps)))
    print(json.dumps([steps == list(range(1, 401)), mine["status"], databases.integrity(layout.mlflow_database)]))
finally:
    services.down(layout, force=True)
""", env={"MLFLOW_TRACKING_URI": "", "PREFECT_API_URL": ""})
    assert "TRAINING WAS STOPPED" not in out
    assert out.splitlines()[-1] == '[true, "FINISHED", []]'


def test_E6_a_full_disk_rolls_the_transaction_back_and_the_database_opens(tmp_path: Path):
    out = on_a_disk(tmp_path / "disk", "size=2m", """
import sqlite3
from components import storage
from components.operations import databases
path = disk / "a.db"
database = sqlite3.connect(path)
database.execute("CREATE TABLE t (b BLOB)")
database.execute("INSERT INTO t VALUES (?)", (bytes(1000),))
database.commit()
try:
    with database:
        for _ in range(100):
            database.execute("INSERT INTO t VALUES (?)", (bytes(50_000),))
except sqlite3.Error as error:
    print(storage.said(error, disk))
database.close()
print(databases.integrity(path), databases.rows(path, "t"))
try:
    databases.snapshot(path, disk / "copies/b.db") or fill() or databases.snapshot(path, disk / "copies/c.db")
except Exception as error:
    print(error)
print(databases.integrity(path))
""")
    told, state, copied, after = out.splitlines()
    assert told.startswith(f"no space in {tmp_path / 'disk'}: what is written needs more")
    assert state == "[] 1" and after == "[]"
    assert copied.startswith(f"cannot copy {tmp_path / 'disk/a.db'} to {tmp_path / 'disk/copies/c.db'}") and "no space in" in copied
