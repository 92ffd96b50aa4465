"""`lmworks verify` names each damaged byte, says what to do, changes nothing, and finds nothing wrong where nothing is."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import sqlite3
import subprocess
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from components import config as settings
from components import files, spool
from components.errors import Busy, Damaged, UserError
from components.layout import ROOT, Layout
from components.operations import databases, healing, services, staleness, verification
from components.release import release

pytestmark = pytest.mark.code

WEIGHTS = "0" * 40


def a_database(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE notes (n INTEGER PRIMARY KEY, text TEXT)")
        database.execute("CREATE INDEX by_text ON notes (text)")
        database.executemany("INSERT INTO notes VALUES (?, ?)", [(n, f"{n} " * 40) for n in range(400)])
        database.commit()


def in_cache(layout: Layout, content: bytes, end: str = "") -> str:
    md5 = hashlib.md5(content).hexdigest()
    files.write_atomic(layout.root / ".dvc/cache/files/md5" / md5[:2] / (md5[2:] + end), content)
    return md5


def an_out(layout: Layout, path: str) -> dict:
    folder = layout.root / path
    folder.mkdir(parents=True)
    (folder / "文.txt").write_text(f"text of {path}")
    files.write_manifest(folder)
    entries = [{"md5": in_cache(layout, file.read_bytes()), "relpath": file.name} for file in sorted(folder.iterdir())]
    return {"path": path, "hash": "md5", "md5": in_cache(layout, json.dumps(entries).encode(), ".dir") + ".dir", "nfiles": 2}


def recorded(content: bytes) -> str:
    return "sha256=" + urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    for variable in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(variable, raising=False)
    layout = Layout(root=tmp_path)
    files.write_atomic(layout.params, settings.render(settings.build({}, where="test")))
    files.write_json(layout.dvc_lock, {"schema": "2.0", "stages": {
        "clean": {"outs": [an_out(layout, "data/clean")]}, "tokenizer": {"outs": [an_out(layout, "data/tokenizer")]}}})
    files.write_atomic(layout.packages / "plays/hamlet.md", "To be")
    files.write_atomic(layout.packages / "plays-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: plays\nVersion: 1\n")
    files.write_atomic(layout.packages / "plays-1.dist-info/RECORD", f"plays/hamlet.md,{recorded(b'To be')},5\nplays-1.dist-info/RECORD,,\n")
    files.write_atomic(tmp_path / "文本/a.txt", "一段文本")
    listed = {"name": "a.txt", "path": "文本/a.txt", "bytes": 12, "sha256": files.sha256_file(tmp_path / "文本/a.txt")}
    none = {"digest": "none", "kind": "none", "source": "none", "files": []}
    files.write_json(layout.sources, {"corpus": {"digest": "x", "kind": "user", "source": "文本", "files": [listed]}, "records": none, "base": none})
    files.write_sealed(layout.receipt, {"format": 1})
    files.write_sealed(layout.services, {"ports": {"mlflow": 5311}})
    files.write_sealed(layout.stat_cache, {"format": 1, "files": {}})
    files.write_sealed(layout.spool / "pretrain-k/run.json", {"name": "a run"})
    files.write_atomic(layout.spool / "pretrain-k/events.jsonl", b"".join(spool.line_of({"step": step}) for step in (1, 2)) + b'{"st')
    checkpoint = layout.work_root / "pretrain/0b5c/checkpoints/step-00000004"
    files.write_atomic(checkpoint / "optimizer.safetensors", "the optimizer's state")
    files.write_manifest(checkpoint)
    a_database(layout.mlflow_database)
    a_database(layout.prefect_database)
    return layout


def tree_of(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): files.sha256_file(path) for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_where_nothing_is_wrong_nothing_is_found_and_nothing_changes(layout: Layout):
    before = tree_of(layout.root)
    found = verification.verify(layout, [])
    assert found.clean and found.problems == []
    assert {kind: things for kind, (things, _) in found.looked_at.items()} == {
        "settings": 3, "outputs": 2, "DVC cache": 6, "text packages": 1, "sources": 1, "checkpoints": 1, "receipts and spool": 5, "databases": 2}
    assert tree_of(layout.root) == before


# a file, what of it is overwritten where it is flipped, the kind, and what the advice must name
KINDS = [("data/clean/文.txt", "outputs", "lmworks run"), ("data/clean/manifest.json", "outputs", "lmworks run"),
         ("data/packages/plays/hamlet.md", "text packages", "make setup"), ("文本/a.txt", "sources", "if you changed it"),
         (".lmworks/release.json", "receipts and spool", "lmworks run"), (".lmworks/spool/pretrain-k/run.json", "receipts and spool", "delete"),
         (".lmworks/spool/pretrain-k/events.jsonl", "receipts and spool", "points are lost"), ("mlruns/mlflow.db", "databases", "lmworks restore"),
         (".prefect/prefect.db", "databases", "lmworks restore"), ("work/pretrain/0b5c/checkpoints/step-00000004/optimizer.safetensors", "checkpoints", "goes on from the checkpoint before it"),
         ("work/pretrain/0b5c/checkpoints/step-00000004/manifest.json", "checkpoints", "goes on from the checkpoint before it"),
         (".lmworks/services.json", "receipts and spool", "asks the servers"), ("work/stat-cache.json", "receipts and spool", "writes it anew"),
         ("params.yaml", "settings", "git checkout"), ("sources.yaml", "settings", "git checkout"),
         ("dvc.lock", "settings", "git checkout")]


@pytest.mark.parametrize("damage", ["flip", "cut"])
@pytest.mark.parametrize(("name", "kind", "advice"), KINDS, ids=[name for name, _, _ in KINDS])
def test_D3_D4_a_flip_or_a_cut_is_named(layout: Layout, name: str, kind: str, advice: str, damage: str):
    path = layout.root / name
    data = path.read_bytes()
    # the first byte: JSON, YAML and SQLite begin there, and any text differs
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:] if damage == "flip" else data[:len(data) // 3])
    if damage == "cut" and name.endswith("events.jsonl"):
        path.write_bytes(data.replace(b'{"step": 2}', b'{"step": 9}'))  # still JSON, but not what was written
    if name == "params.yaml" and damage == "flip":
        path.write_bytes(b"\x00" + data)
    before = tree_of(layout.root)
    found = verification.verify(layout, [])
    mine = [problem for problem in found.problems if problem.kind == kind and problem.damaged]
    assert not found.clean and mine, found.problems
    assert name in mine[0].where or name.rpartition("/")[0] in mine[0].where
    assert advice in mine[0].todo and str(layout.root) not in mine[0].wrong
    assert tree_of(layout.root) == before


@pytest.mark.parametrize("damage", [lambda text: text.replace(b",5", b",u5"), lambda text: b"\xff" + text, lambda text: text.replace(b",5", b",5,6"), lambda text: b"\n" + text])
def test_D3_a_record_of_a_text_package_that_is_none_is_named(layout: Layout, damage: Callable[[bytes], bytes]):
    path = layout.packages / "plays-1.dist-info/RECORD"
    path.write_bytes(damage(path.read_bytes()))
    (problem,) = verification.verify(layout, []).problems
    assert (problem.kind, problem.where) == ("text packages", "data/packages/plays-1.dist-info/RECORD") and "make setup" in problem.todo


def test_D3_a_record_that_names_a_file_elsewhere_is_named(layout: Layout):
    path = layout.packages / "plays-1.dist-info/RECORD"
    path.write_bytes(path.read_bytes().replace(b"plays/hamlet", b"/lays/hamlet", 1))
    (problem,) = verification.verify(layout, []).problems
    assert problem.where == "/lays/hamlet.md" and "no such file found" in problem.wrong


@pytest.mark.parametrize(("text", "lost"), [
    (b"", "core.analytics is not false"), (b"[core]\n    analytics = false\n    remote = \xe8\xbf\x9c\n", "core.remote names 远, and no such remote"),
    (b"[core]\n    analytics = true\n", "core.analytics is not false")])
def test_D4_settings_of_dvc_that_lost_what_every_checkout_has_are_named(layout: Layout, text: bytes, lost: str, monkeypatch: pytest.MonkeyPatch):
    files.write_atomic(layout.root / ".dvc/config", text)
    with pytest.raises(Damaged, match=f"{lost}.*git checkout -- .dvc/config"):
        healing.objects_folder(layout)
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(layout.root / "elsewhere"))
    write = files.write_atomic
    (layout.root / "elsewhere").mkdir()
    write(layout.root / "elsewhere/config", "['remote \"远\"']\n    url = s3://x/y\n".encode())
    if "远".encode() in text:
        healing.objects_folder(layout)  # of all checkouts of this user
    whole = b"[core]\n    analytics = false\n    remote = a\n['remote \"a\"']\n    url = x\n    verify = true\n"
    files.write_atomic(layout.root / ".dvc/config", whole)
    assert healing.unverified_remotes(layout) == []


@pytest.mark.parametrize("text", [b"[core\n", b"remote = local\n", b"[core]\nremote\n", b"[core]\n    remote = \xff\n"])
def test_D3_D4_damaged_settings_of_dvc_are_named_and_the_rest_is_looked_at(layout: Layout, text: bytes):
    files.write_atomic(layout.root / ".dvc/config", text)
    (layout.out("clean") / "文.txt").write_text("edited")
    told = {problem.where: problem for problem in verification.verify(layout, []).problems}
    assert set(told) == {".dvc/config", "data/clean"} and "git checkout -- .dvc/config" in told[".dvc/config"].todo
    with pytest.raises(Damaged, match="config cannot be read as DVC's settings.*git checkout -- .dvc/config"):
        healing.objects_folder(layout)
    with pytest.raises(Damaged, match="config cannot be read as DVC's settings"):
        staleness.stale(layout)


def test_A12_A13_an_object_of_the_cache_and_its_listing_are_named_with_what_to_do(layout: Layout):
    for path in sorted((layout.root / ".dvc/cache/files/md5").rglob("*")):
        if path.is_file():
            good = path.read_bytes()
            for bad in (bytes([good[0] ^ 1]) + good[1:], good[:-1], None):
                path.unlink() if bad is None else path.write_bytes(bad)
                (problem,) = [problem for problem in verification.verify(layout, []).problems if problem.damaged]
                assert problem.kind == "DVC cache" and path.relative_to(layout.root).as_posix() in problem.where
                if path.suffix == ".dir":
                    assert "dvc commit" in problem.todo
                    path.write_bytes(good)
                else:  # the advice, as it stands
                    lines = problem.todo.partition(": ")[2].partition("; ")[0].replace(", then ", "\n")
                    subprocess.run(["sh", "-ec", lines], cwd=layout.root, check=True)
                    assert path.read_bytes() == good
    assert verification.verify(layout, []).clean


def test_an_output_that_was_published_anew_under_another_lock_file_is_named(layout: Layout):
    (layout.out("clean") / "文.txt").write_text("whole, but not what dvc.lock names")
    files.write_manifest(layout.out("clean"))
    (problem,) = verification.verify(layout, []).problems
    assert problem.where == "data/clean/manifest.json" and "not the one that dvc.lock names" in problem.wrong


def test_a_fresh_clone_that_ran_nothing_is_not_damaged(tmp_path: Path, layout: Layout):
    clone = Layout(root=tmp_path / "clone")
    for path in (layout.params, layout.dvc_lock, layout.sources):
        files.write_atomic(clone.root / path.name, path.read_bytes())
    files.write_atomic(clone.root / "文本/a.txt", "一段文本")
    found = verification.verify(clone, [])
    assert found.clean and [problem.where for problem in found.problems] == ["data/clean", "data/tokenizer"]
    assert all("lmworks run" in problem.todo for problem in found.problems)


def test_a_run_that_writes_is_not_looked_at(layout: Layout):
    with files.lock(layout.run_lock, what="lmworks run"), pytest.raises(Busy, match="lmworks run is already running"):
        verification.verify(layout, [])


def test_the_command_ends_with_4_and_names_it_for_people_and_machines(layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    from commands import verify as command

    monkeypatch.setattr(command, "Layout", lambda: layout)
    command.verify(None, as_json=False)
    assert "as written" in capsys.readouterr().out
    (layout.out("clean") / "文.txt").unlink()
    with pytest.raises(typer.Exit) as ended:
        command.verify(None, as_json=False)
    said = capsys.readouterr().out
    assert ended.value.exit_code == 4 and "data/clean/文.txt is missing" in said and "-> lmworks run mends it" in said
    with pytest.raises(typer.Exit):
        command.verify(None, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["clean"] is False and told["problems"][0]["where"] == "data/clean"


# --- models, as a real release leaves them -------------------------------------------------------

@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A checkout with champions; its server is down."""
    spec = importlib.util.spec_from_file_location("released_checkout_to_verify", ROOT / "tests/release/checkout.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
            patch.delenv(variable, raising=False)
        patch.setenv("PYTHONPATH", str(ROOT))
        config = made.configuration(name="sound")
        layout = made.make(tmp_path_factory.mktemp("verify") / "a checkout", config)
        try:
            services.ensure(layout, prefect=False)
            release.release(config, layout, say=lambda _line: None)
        finally:
            services.down(layout)
    return layout


def test_every_aliased_model_by_its_hashes_or_those_asked_for(registered: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = verification.verify(registered, [])
    assert found.clean and found.looked_at["models"][0] == 2, found.problems
    for wanted in (["models:/sound@champion"], ["models:/sound/1", "models:/sound-instruct@candidate"]):
        found = verification.verify(registered, wanted)
        assert found.clean and list(found.looked_at) == ["models"] and found.looked_at["models"][0] == len(wanted)
    for wrong in ("models:/sound/7", "models:/none@champion", "sound"):
        with pytest.raises(UserError, match=f"{wrong} is not in the registry.*lmworks models"):
            verification.verify(registered, [wrong])


@pytest.mark.parametrize(("statement", "told", "damaged"), [
    ("DELETE FROM registered_model_tags WHERE name = 'sound' AND key LIKE 'lmworks.history%'", "moved by hand to version 1", False),
    ("UPDATE model_version_tags SET value = 'failed' WHERE name = 'sound' AND key = 'gate.verdict'", "the verdict of its gate is failed", False),
    ("UPDATE model_version_tags SET value = 'a0' WHERE name = 'sound' AND key = 'lmworks.evaluation_sha256'", "the registry says evaluation a0, its gate judged", True)])
def test_H2_H3_a_champion_that_no_gate_made_is_told(registered: Layout, monkeypatch: pytest.MonkeyPatch, statement: str, told: str, damaged: bool):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    whole = registered.mlflow_database.read_bytes()
    try:
        with contextlib.closing(sqlite3.connect(registered.mlflow_database)) as database:
            assert database.execute(statement).rowcount
            database.commit()
        found = verification.verify(registered, ["models:/sound@champion"])
        (problem,) = found.problems
        assert problem.where == "sound version 1 (candidate, champion)" and told in problem.wrong and "lmworks rollback sound" in problem.todo
        assert found.clean is not damaged
        assert verification.verify(registered, ["models:/sound-instruct@champion"]).problems == []
    finally:
        for beside in registered.mlflow_database.parent.glob("mlflow.db-*"):
            beside.unlink()
        registered.mlflow_database.write_bytes(whole)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "added"])
def test_H1_each_file_of_a_stored_model(registered: Layout, monkeypatch: pytest.MonkeyPatch, damage: str):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    version = next(version for version in databases.versions(registered.mlflow_database) if version.name == "sound")
    folder = registered.artifacts / version.folder
    for path in [folder / name for name in ("model_file.py", "MLmodel", "artifacts/model/model.safetensors", "artifacts/model/manifest.json")]:
        good = path.read_bytes()
        extra = path.with_name("added.py")
        if damage == "gone":
            path.unlink()
        elif damage == "added":
            extra.write_text("import os")
        else:
            path.write_bytes(good[:-2] + bytes([good[-2] ^ 1]) + good[-1:] if damage == "flip" else good[:-2])
        try:
            (problem,) = verification.verify(registered, ["models:/sound@champion"]).problems
            assert problem.kind == "models" and "sound version 1" in problem.where and (extra if damage == "added" else path).name in problem.wrong
            assert "lmworks rollback sound" in problem.todo and "lmworks restore" in problem.todo
            assert verification.verify(registered, ["models:/sound-instruct@champion"]).clean
        finally:
            path.write_bytes(good)
            extra.unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["MLmodel", "model_file.py", "requirements.txt", "python_env.yaml", "vouched.json", "artifacts/model/config.json",
                                  "artifacts/model/tokenizer.json", "artifacts/model/manifest.json"])
def test_D9_what_was_edited_in_the_store_is_not_loaded_by_who_knows_nothing_of_lmworks(registered: Layout, name: str):
    import mlflow

    from components.release import package

    version = next(version for version in databases.versions(registered.mlflow_database) if version.name == "sound")
    folder = registered.artifacts / str(version.folder)
    path, before = folder / name, (folder / name).read_text()
    edited = before.replace("0.8", "0.9") if "0.8" in before else before.replace("2", "3", 1) if "2" in before else before + " "
    assert edited != before
    with package.no_bytecode():
        mlflow.pyfunc.load_model(str(folder))
        path.write_text(edited)
        try:
            with pytest.raises(mlflow.exceptions.MlflowException, match=rf"model refused: \S*{'' if name == 'vouched.json' else path.name} .*(damaged|sha256)"):
                mlflow.pyfunc.load_model(str(folder))
        finally:
            path.write_text(before)
        mlflow.pyfunc.load_model(str(folder))


def test_H3_a_version_that_claims_other_weights(registered: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def claim(weights: str) -> str:
        with contextlib.closing(sqlite3.connect(registered.mlflow_database)) as database:
            (before,) = database.execute("SELECT value FROM model_version_tags WHERE name = 'sound' AND key = 'lmworks.weights_sha256'").fetchone()
            database.execute("UPDATE model_version_tags SET value = ? WHERE name = 'sound' AND key = 'lmworks.weights_sha256'", (weights,))
            database.commit()
        return before

    before = claim(WEIGHTS)
    try:
        (problem,) = verification.verify(registered, []).problems
        assert f"the registry says weights {WEIGHTS}, its files are weights {before}" in problem.wrong
    finally:
        claim(before)
