"""`lmworks clean` removes what nothing needs and names the rest. Without servers; DVC is real."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components import chain, files, mlflow_rest
from components import config as settings
from components.errors import Busy, UserError
from components.layout import ROOT, Layout
from components.operations import cleaning, environment, healing, old_rows, rest, services, staleness

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
    cleaning.clean(layout, older_than_days=0, cache=True)
    assert {path for path in objects.rglob("*") if path.is_file()} == before - {layout.root / item.what for item in dry.items}
    assert staleness.why(layout, "clean") == []
    repro(layout)
    assert (layout.root / "ran").read_text() == "xx"
    (layout.clean / "a.txt").write_text("damaged")  # and the output still comes back from what was kept
    assert healing.mend(layout, "clean") and (layout.clean / "a.txt").read_text() == "made of present"


def test_F1_models_stay_where_mlflow_takes_the_call_and_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mlflow_rest.call, "__defaults__", (None, 0.2))
    (tmp_path / "m-1").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as hangs, pytest.raises(UserError, match="does not answer as it should.*lmworks down --force"):
        old_rows._remove_models(f"http://127.0.0.1:{hangs.getsockname()[1]}", ["m-1"], [tmp_path / "m-1"])
    assert (tmp_path / "m-1").is_dir()


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
