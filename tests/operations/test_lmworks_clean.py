"""`lmworks clean` removes what nothing needs and names the rest. Without servers; DVC is real."""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Metric, Param, RunTag
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from typer.testing import CliRunner

from commands import clean as clean_command
from commands import main
from components import chain, files, mlflow_rest
from components import config as settings
from components.errors import Busy, UserError
from components.layout import ROOT, Layout
from components.operations import (
    cleaning,
    databases,
    environment,
    healing,
    old_rows,
    rest,
    services,
    staleness,
)

pytestmark = pytest.mark.code

DAY_S = 86_400
DVC_YAML = """\
stages:
  clean:
    cmd: python one.py
    deps: [in.txt, one.py]
    outs: [data/clean]
"""
ONE = f"""\
import pathlib, sys
sys.path.insert(0, {str(ROOT)!r})
from components import files
folder = pathlib.Path("data/clean")
folder.mkdir(parents=True)
(folder / "a.txt").write_text("made of " + pathlib.Path("in.txt").read_text())
files.write_manifest(folder)
with open("ran", "a") as ran:
    ran.write("x")
"""


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    for name in [n for n in environment.child(Layout(root=tmp_path)) if os.environ.get(n) is None]:
        monkeypatch.delenv(name, raising=False)
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):  # an earlier test's client may have left its server there
        monkeypatch.delenv(name, raising=False)
    return Layout(root=tmp_path)


def write(path: Path, *, days: float = 0, content: str = "x" * 1000) -> Path:
    """A file whose last change is `days` ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    moment = time.time() - days * DAY_S
    os.utime(path, (moment, moment))
    return path


def by_name(kinds: list[cleaning.Kind]) -> dict[str, cleaning.Kind]:
    return {kind.name: kind for kind in kinds}


def gone(kinds: list[cleaning.Kind]) -> set[str]:
    return {item.what for kind in kinds for item in kind.items if kind.remove}


def test_checkpoints_go_when_they_are_old_and_of_another_key(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cleaning, "current_keys", lambda _layout: {stage: None for stage in chain.BY_NAME} | {"pretrain": "present"})
    for path, days in (("pretrain/present", 90), ("pretrain/older", 90), ("pretrain/young", 3), ("finetune/unknown", 90)):
        write(layout.work_root / path / "checkpoints/step-1/model.safetensors", days=days)
    seen = cleaning.clean(layout, older_than_days=30, dry=True)
    assert gone(seen) == {"work/pretrain/older"} and by_name(seen)["checkpoints"].bytes == 4000
    assert (layout.work_root / "pretrain/older").exists(), "a dry run removes nothing"
    cleaning.clean(layout, older_than_days=30)
    assert sorted(path.name for path in layout.work_root.glob("*/*")) == ["present", "unknown", "young"]


def test_the_key_of_the_next_run_is_the_one_that_the_runner_uses(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    for name in ("params.yaml", "sources.yaml", "versions.yaml"):
        files.write_atomic(layout.root / name, (ROOT / name).read_bytes())
    (layout.root / "components").symlink_to(ROOT / "components")
    used = []

    class Module:
        @staticmethod
        def run(_config: settings.Config, running: Layout) -> None:
            used.append(running.work.name)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chain.run_stage(chain.BY_NAME["fetch"], layout, module=Module)
    keys = cleaning.current_keys(layout)
    assert keys["fetch"] == used[0] and keys["pretrain"] is None  # its inputs are not there: nobody can say


def test_D11_temporary_files_of_ours_go_after_a_day_and_nobody_elses(layout: Layout):
    ours = [layout.root / ".params.yaml.123.partial", layout.state / ".release.json.5.partial", layout.root / "data/.partial/clean/a.parquet",
            layout.work_root / "models/tmpx/weights"]
    for path in ours:
        write(path, days=2)
    others = [layout.root / ".notes.partial", layout.root / "data/clean/x.partial", layout.work_root / "stat-cache.json"]
    for path in others:
        write(path, days=2)
    fresh = write(layout.work_root / "models/tmpy/weights")  # somebody generates just now
    cleaning.clean(layout, older_than_days=30)
    assert not any(path.exists() for path in ours) and all(path.exists() for path in (*others, fresh))


def test_old_logs_go_and_present_ones_stay(layout: Layout):
    old, present = write(layout.logs / "mlflow.log.1", days=90), write(layout.logs / "mlflow.log", days=90)
    cleaning.clean(layout, older_than_days=30)
    assert not old.exists() and present.exists()


def spooled(layout: Layout, name: str, status: str, *, unsent: int = 0, days: float = 90) -> Path:
    folder = layout.spool / name
    line = json.dumps({"t": 1, "status": status}) + "\n"
    write(folder / "run.json", content=json.dumps({"name": name}), days=days)
    write(folder / "events.jsonl", content=line, days=days)
    write(folder / "sent.json", content=json.dumps({"offset": len(line) - unsent, "run_id": "r", "refused": 0}), days=days)
    return folder


def test_only_spools_that_were_sent_and_cannot_go_on_go(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cleaning, "current_keys", lambda _layout: {"pretrain": "present", "finetune": None})
    superseded = spooled(layout, "pretrain-old-tiny", "KILLED")
    kept = [spooled(layout, "pretrain-present-tiny", "KILLED"), spooled(layout, "pretrain-old2-tiny", "KILLED", unsent=1),
            spooled(layout, "pretrain-old3-tiny", "RUNNING"), spooled(layout, "pretrain-old4-tiny", "KILLED", days=2),
            spooled(layout, "finetune-any-tiny", "KILLED"), spooled(layout, "pretrain-old5-tiny", "KILLED")]
    write(layout.work_root / "pretrain/old5/checkpoints/a", days=2)  # its checkpoints stay, so it can go on
    cleaning.clean(layout, older_than_days=30)
    assert not superseded.exists() and all(folder.exists() for folder in kept)


def test_it_is_refused_while_a_run_or_a_stage_goes_on(layout: Layout):
    for lock in (layout.run_lock, layout.stage_lock):
        with files.lock(lock, what="it"), pytest.raises(Busy):
            cleaning.clean(layout, older_than_days=30)


def repro(layout: Layout) -> None:
    env = environment.child(layout)
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=layout.root, env=env, check=True)


def test_the_cache_keeps_what_dvc_lock_needs_and_the_unchanged_rerun_runs_nothing(layout: Layout):
    files.write_atomic(layout.root / ".dvc/config", "[core]\n    analytics = false\n")
    environment.allow_no_git(layout)
    write(layout.root / "one.py", content=ONE)
    write(layout.dvc_yaml, content=DVC_YAML)
    for text in ("earlier", "present"):
        write(layout.root / "in.txt", content=text)
        repro(layout)
    assert (layout.root / "ran").read_text() == "xx"
    objects = healing.objects_folder(layout)
    before = {path for path in objects.rglob("*") if path.is_file()}
    seen = by_name(cleaning.clean(layout, older_than_days=0))["DVC cache"]  # not without being asked
    assert {path for path in objects.rglob("*") if path.is_file()} == before
    assert seen.remove is None and seen.removable_bytes > 0 and "--cache" in seen.keeps
    dry = by_name(cleaning.clean(layout, older_than_days=0, cache=True, dry=True))["DVC cache"]
    assert {layout.root / item.what for item in dry.items} < before and {path for path in objects.rglob("*") if path.is_file()} == before
    notes = {path for path in (layout.root / ".dvc/cache/runs").rglob("*") if path.is_file()}
    assert not by_name(cleaning.clean(layout, older_than_days=0))["DVC run cache"].items, "what they made is there"
    assert len(by_name(cleaning.clean(layout, older_than_days=0, cache=True, dry=True))["DVC run cache"].items) == 1
    cleaning.clean(layout, older_than_days=0, cache=True)
    assert {path for path in objects.rglob("*") if path.is_file()} == before - {layout.root / item.what for item in dry.items}
    kept = {path for path in (layout.root / ".dvc/cache/runs").rglob("*") if path.is_file()}
    assert len(notes) == 2 and len(kept) == 1 and kept < notes, "the note of what gc took went with it"
    assert staleness.why(layout, "clean") == []
    repro(layout)
    assert (layout.root / "ran").read_text() == "xx"
    (layout.clean / "a.txt").write_text("damaged")  # and the output still comes back from what was kept
    assert healing.mend(layout, "clean") and (layout.clean / "a.txt").read_text() == "made of present"


def test_a_cache_outside_the_checkout_is_of_others_too_and_is_left_alone(tmp_path: Path):
    layout = Layout(root=tmp_path / "检出")
    write(layout.root / ".dvc/config", content="[core]\n    analytics = false\n[cache]\n    dir = ../../shared 缓存\n")
    write(layout.dvc_lock, content="schema: '2.0'\nstages: {}\n")
    objects = healing.objects_folder(layout)
    assert objects.resolve().is_relative_to(tmp_path / "shared 缓存")
    write(objects / "ab" / ("1" * 30))  # what another checkout's dvc.lock names
    write(objects / "ab" / "half.tmp")
    write(objects.parent.parent / "runs/bb/b/half", content="cmd: x\nouts:\n- path: a\n  hash: md5\n  md5: " + "c" * 32 + "\n")
    for path in objects.rglob("*"):
        os.utime(path, (1, 1))
    before = {path for path in (tmp_path / "shared 缓存").rglob("*") if path.is_file()}
    kinds = by_name(cleaning.clean(layout, older_than_days=0, cache=True))
    assert {path for path in (tmp_path / "shared 缓存").rglob("*") if path.is_file()} == before and len(before) == 3
    for name in ("DVC cache", "DVC run cache"):
        assert not kinds[name].items and kinds[name].keeps.startswith("all: it lies outside this checkout")


def test_notes_of_runs_that_bring_nothing_back_go_and_with_a_remote_all_stay(layout: Layout):
    there, away = "ab" + "1" * 30, "cd" + "2" * 30 + ".dir"
    write(layout.root / ".dvc/config", content="[core]\n    analytics = false\n")
    write(healing.objects_folder(layout) / there[:2] / there[2:])
    runs = layout.root / ".dvc/cache/runs"
    for name, md5 in (("aa/a/whole", there), ("bb/b/half", away)):
        outs = "".join(f"- path: {one}\n  hash: md5\n  md5: {one}\n" for one in sorted({there, md5}))
        write(runs / name, content=f"cmd: x\nouts:\n{outs}")
    write(runs / "cc/c/broken", content="outs: [")
    write(runs / "dd/d/older", content=f"cmd: x\nouts:\n- path: a\n  md5: {away}\n")
    everything = {path for path in runs.rglob("*") if path.is_file()}
    write(layout.root / ".dvc/config", content="[core]\n    analytics = false\n['remote \"away\"']\n    url = s3://x/y\n    verify = true\n")
    cleaning.clean(layout, older_than_days=0)
    # the shipped one: a folder that nobody pushed to yet
    write(layout.root / ".dvc/config", content="[core]\n    analytics = false\n['remote \"local\"']\n    url = ../data/remote\n    verify = true\n")
    dry = by_name(cleaning.clean(layout, older_than_days=0, dry=True))["DVC run cache"]
    assert {item.what for item in dry.items} == {".dvc/cache/runs/bb/b/half", ".dvc/cache/runs/cc/c/broken"} and dry.bytes == sum(map(cleaning.size_of, everything))
    assert {path for path in runs.rglob("*") if path.is_file()} == everything
    cleaning.clean(layout, older_than_days=0)
    assert sorted(path.name for path in runs.rglob("*")) == ["a", "aa", "d", "dd", "older", "whole"]


@pytest.fixture
def store(layout: Layout) -> Iterator[SqlAlchemyStore]:
    layout.mlruns.mkdir()
    store = SqlAlchemyStore(f"sqlite:///{layout.mlflow_database}", "mlflow-artifacts:/")
    yield store
    store.engine.dispose()


def made(layout: Layout, store: SqlAlchemyStore, name: str, *, deleted: bool = True) -> str:
    """A run with a point, a parameter, a tag and a file."""
    run_id = store.create_run("0", "me", 1, [RunTag("a", "b")], name).info.run_id
    store.log_metric(run_id, Metric("train/loss", 1.0, 1, 0))
    store.log_param(run_id, Param("p", "1"))
    write(layout.artifacts / "0" / run_id / "artifacts/notes.txt")
    if deleted:
        store.delete_run(run_id)
    return run_id


def test_runs_in_mlflow_s_bin_go_past_the_age_and_no_run_that_something_needs(layout: Layout, store: SqlAlchemyStore, monkeypatch: pytest.MonkeyPatch):
    import mlflow.tracking._tracking_service.utils
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry

    gone_, no_files = (made(layout, store, name) for name in ("gone", "no files"))
    shutil.rmtree(layout.artifacts / "0" / no_files)
    kept = {name: made(layout, store, name, deleted=name != "active") for name in ("active", "of a version", "made a version's model", "made a model", "spooled")}
    models = {name: store.create_logged_model("0", name="m", source_run_id=kept[name]).model_id for name in ("made a version's model", "made a model")}
    registry = Registry(f"sqlite:///{layout.mlflow_database}")
    registry.create_registered_model("tiny")
    registry.create_model_version("tiny", "mlflow-artifacts:/0/model", run_id=kept["of a version"])
    with monkeypatch.context() as client:  # it looks the model up as a client would
        client.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
        client.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{layout.mlflow_database}")
        registry.create_model_version("tiny", "models:/" + models["made a version's model"])
    registry.engine.dispose()
    spool = layout.spool / "pretrain-k-tiny"
    write(spool / "events.jsonl", content="{}\n")
    files.write_sealed(spool / "sent.json", {"offset": 3, "run_id": kept["spooled"], "refused": 0})
    assert not by_name(cleaning.clean(layout, older_than_days=1))["MLflow"].items, "they were put there today"
    with monkeypatch.context() as newer:
        newer.setattr(old_rows.migrations, "revisions", lambda _service: ({"b"}, {"b"}))
        foreign = by_name(cleaning.clean(layout, older_than_days=0))["MLflow"]
        assert not foreign.items and "2 run(s) in the bin, as another version of MLflow wrote the database: lmworks up" in foreign.keeps, "it would be migrated without a copy"
    dry = by_name(cleaning.clean(layout, older_than_days=0, dry=True))["MLflow"]
    assert {item.what.split(" (")[0]: item.bytes for item in dry.items} == {"run gone": 1000, "run no files": 0}
    assert store.get_run(gone_).data.metrics == {"train/loss": 1.0} and (layout.artifacts / "0" / gone_).exists()
    assert not any(kind.failed for kind in cleaning.clean(layout, older_than_days=0))
    with databases.opened(layout.mlflow_database) as database:
        for table in ("runs", "metrics", "latest_metrics", "params", "tags"):
            assert {run_id for run_id, in database.execute(f"SELECT run_uuid FROM {table}")} == set(kept.values()), table
    assert {path.name for path in (layout.artifacts / "0").iterdir()} == set(kept.values())
    assert not by_name(cleaning.clean(layout, older_than_days=0))["MLflow"].items
    store.delete_logged_model(models["made a model"])  # nobody needs its run any more
    assert gone([by_name(cleaning.clean(layout, older_than_days=0))["MLflow"]]) == {f"run made a model (mlruns/artifacts/0/{kept['made a model']})"}


def test_F1_an_mlflow_that_hangs_is_one_line_and_the_rest_is_cleaned(layout: Layout, store: SqlAlchemyStore, monkeypatch: pytest.MonkeyPatch):
    model = store.create_logged_model("0", name="left").model_id
    weights = write(layout.artifacts / "0/models" / model / "artifacts/model.safetensors")
    old = write(layout.logs / "mlflow.log.1", days=90)
    with socket.create_server(("127.0.0.1", 0)) as hung:
        port = hung.getsockname()[1]
        monkeypatch.setattr(old_rows.services, "address", lambda _layout, service: f"http://127.0.0.1:{port}" if service.name == "mlflow" else None)
        monkeypatch.setattr(old_rows.mlflow_rest, "call", functools.partial(mlflow_rest.call, timeout_s=0.3))
        monkeypatch.setattr(clean_command, "Layout", lambda: layout)
        done = CliRunner().invoke(main.app, ["clean", "--older-than", "0"])
    assert isinstance(done.exception, UserError) and "\n" not in str(done.exception)
    assert str(done.exception).startswith(f"MLflow: MLflow at http://127.0.0.1:{port} does not answer as it should: logged-models/{model}") and "lmworks down --force" in str(done.exception)
    assert weights.exists() and not old.exists() and "an old log of a server" in done.stdout


@pytest.mark.slow
def test_flow_runs_that_ended_and_that_nobody_refers_to_go_through_a_real_prefect_server(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    api = rest.Prefect(services.ensure(layout, mlflow=False)["prefect"]["api"])
    try:
        flow = api.send("/flows/", {"name": "lmworks-test"})["id"]
        runs = {name: api.send("/flow_runs/", {"flow_id": flow, "name": name})["id"] for name in ("old", "shown", "open")}
        for name in ("old", "shown"):
            api.close("flow_runs", runs[name], state="COMPLETED", message="done")
        files.write_json(layout.last_run, {"format": 1, "flow_run": f"http://x/runs/flow-run/{runs['shown']}"})
        assert gone(cleaning.clean(layout, older_than_days=1)) == set()
        assert gone(cleaning.clean(layout, older_than_days=0)) == {"flow run old"}
        assert {run["name"] for run in api.send("/flow_runs/filter", {})} == {"shown", "open"}
        api.close("flow_runs", runs["open"], state="FAILED", message="no")
    finally:
        services.down(layout)
    down = by_name(cleaning.clean(layout, older_than_days=0))["Prefect"]
    assert down.remove is None and "1 old flow run(s), as Prefect is down" in down.keeps


# --- while something is used ---------------------------------------------------------------------

READER = """
import sys, time
from pathlib import Path
from components import files
from components.layout import Layout
layout, checkpoint = Layout(root=Path(sys.argv[1])), Path(sys.argv[2])
with files.lock(layout.stage_lock, what="a stage"):  # as components/chain.py holds it, also under a bare `dvc repro` and in an orphan
    print("reading", flush=True)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (layout.root / "enough").exists():
        files.verify_manifest(checkpoint)
print("whole", flush=True)
"""


def test_G7_a_checkpoint_is_not_cleaned_away_under_who_reads_it(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cleaning, "current_keys", lambda _layout: {stage: "present" for stage in chain.BY_NAME})
    checkpoint = layout.work_root / "pretrain/older/checkpoints/step-1"
    write(checkpoint / "model.safetensors", days=90, content="x" * 200_000)
    files.write_manifest(checkpoint)
    old_s = time.time() - 90 * DAY_S
    os.utime(checkpoint / files.MANIFEST, (old_s, old_s))
    reader = subprocess.Popen([sys.executable, "-c", READER, str(layout.root), str(checkpoint)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert reader.stdout.readline() == "reading\n"
    for _ in range(3):
        with pytest.raises(Busy, match=rf"a stage is already running in this checkout \(pid {reader.pid}"):
            cleaning.clean(layout, older_than_days=30)
        files.verify_manifest(checkpoint)
    write(layout.root / "enough")
    assert reader.communicate(timeout=30)[0] == "whole\n" and reader.returncode == 0
    cleaning.clean(layout, older_than_days=30)
    assert not checkpoint.exists(), "and it goes when nobody needs it"


SLOW = f"""\
import pathlib, sys, time
sys.path.insert(0, {str(ROOT)!r})
from components import files
from components.layout import Layout
layout = Layout(root=pathlib.Path.cwd())
with files.lock(layout.stage_lock, what="a stage"):
    pathlib.Path("works").touch()
    while not pathlib.Path("go-on").exists():
        time.sleep(0.05)
    partial = layout.partial / "clean"
    partial.mkdir(parents=True)
    (partial / "a.txt").write_text("made of " + pathlib.Path("in.txt").read_text())
    files.publish(partial, layout.clean)
"""


@pytest.mark.slow
def test_G3_a_stage_that_works_keeps_gc_of_ours_out_and_survives_dvc_s_own(layout: Layout):
    """`lmworks clean --cache` is refused; `dvc gc` and `dvc checkout` in another shell take nothing that the stage or a rerun needs."""
    files.write_atomic(layout.root / ".dvc/config", "[core]\n    analytics = false\n")
    environment.allow_no_git(layout)
    write(layout.root / "one.py", content=SLOW)
    write(layout.dvc_yaml, content=DVC_YAML)
    write(layout.root / "in.txt", content="earlier")
    write(layout.root / "go-on")
    repro(layout)
    for name in ("go-on", "works"):
        (layout.root / name).unlink()
    write(layout.root / "in.txt", content="present")
    env = {**environment.child(layout), "PATH": f"{Path(sys.executable).parent}:{environment.child(layout)['PATH']}"}
    dvc = [sys.executable, "-m", "dvc"]
    training = subprocess.Popen([*dvc, "repro", "-q"], cwd=layout.root, env=env)
    deadline = time.monotonic() + 60
    while not (layout.root / "works").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(Busy, match="a stage is already running"):
        cleaning.clean(layout, older_than_days=0, cache=True)
    for command in (["gc", "-w", "-f"], ["checkout"]):
        subprocess.run([*dvc, *command], cwd=layout.root, env=env, capture_output=True, timeout=60)
    write(layout.root / "go-on")
    assert training.wait(60) == 0
    assert (layout.clean / "a.txt").read_text() == "made of present"
    files.verify_manifest(layout.clean)
    assert staleness.why(layout, "clean") == [] and healing.damage(layout, "clean") == []


def test_clean_says_what_takes_the_space_and_a_dry_run_changes_nothing_for_every_kind(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    """Item by item what `lmworks clean` promises: sizes add up, what goes is what the dry run named, what is kept says why."""
    monkeypatch.setattr(cleaning, "current_keys", lambda _layout: {stage: "present" for stage in chain.BY_NAME})
    write(layout.work_root / "pretrain/older/checkpoints/step-1/model.safetensors", days=90)
    write(layout.work_root / "pretrain/present/checkpoints/step-1/model.safetensors", days=90)
    write(layout.state / ".release.json.5.partial", days=2)
    write(layout.logs / "mlflow.log.1", days=90)
    write(layout.mlruns / "mlflow.db.before-restore-1", days=90)
    write(layout.mlruns / "mlflow.db.before-restore-2", days=3)
    everything = {path for path in layout.root.rglob("*") if path.is_file()}
    dry = cleaning.clean(layout, older_than_days=30, dry=True)
    assert {path for path in layout.root.rglob("*") if path.is_file() and path.suffix != ".lock"} == everything
    assert gone(dry) == {"work/pretrain/older", ".lmworks/.release.json.5.partial", ".lmworks/logs/mlflow.log.1", "mlruns/mlflow.db.before-restore-1"}
    assert {kind.name: kind.bytes for kind in dry if kind.bytes} == {"checkpoints": 2000, "temporary files": 1000, "logs": 1000, "databases put aside": 2000}
    assert all(kind.keeps for kind in dry)
    assert gone(cleaning.clean(layout, older_than_days=30)) == gone(dry)
    assert not [item for kind in cleaning.clean(layout, older_than_days=30, dry=True) for item in kind.items]
