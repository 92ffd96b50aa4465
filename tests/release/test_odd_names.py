"""Names, versions and addresses of models that are none, as commands hand them to a real server (J5, J11); and versions that bring code (J2)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checkout
import pytest

from commands import imports
from components.errors import Damaged, UserError
from components.layout import Layout
from components.release import comparison, model_files, registry, rollback
from components.serving import engine

pytestmark = pytest.mark.code

ODD = ["../../etc", "%2e%2e%2fx", "/etc/passwd", "a#b", "a?b=c", "a b", "a\nb", "'; DROP TABLE runs; --", 'a" OR name LIKE "%', "$(touch executed)", "--help", "模型/../..", "x" * 400, "", "."]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory, mlflow_url: str) -> Layout:
    return Layout(root=tmp_path_factory.mktemp("odd"))


@pytest.mark.parametrize("odd", ODD, ids=[ascii(odd)[:30] for odd in ODD])
def test_J5_J11_names_of_models_that_are_none_are_one_line(layout: Layout, monkeypatch: pytest.MonkeyPatch, odd: str):
    monkeypatch.setattr(imports, "Layout", lambda: layout)
    client = registry.client(layout)
    calls: list[Any] = [lambda: engine.chosen(client, odd, None), lambda: engine.chosen(client, odd, 1), lambda: rollback.roll_back(layout, odd),
                        lambda: registry.named(client, f"models:/{odd}@champion"), lambda: registry.named(client, f"models:/{odd}/1"),
                        lambda: registry.named(client, f"models:/x@{odd}"), lambda: registry.named(client, f"models:/x/{odd}"),
                        lambda: imports.bring_in(f"models:/{odd}@champion", layout), lambda: comparison.resolve(odd, "x", registry.catalogue(layout))]
    for number, call in enumerate(calls):
        with pytest.raises(UserError) as refused:
            call()
        message = str(refused.value)
        assert "Traceback" not in message and len(message) < 2000, (number, message)
    assert not list(layout.root.rglob("executed")) and {path.name for path in layout.root.iterdir()} <= {"work", ".lmworks", "data"}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, mlflow_url: str) -> Layout:
    from components.release import release

    config = checkout.configuration(name="hostile")
    layout = checkout.make(tmp_path_factory.mktemp("hostile"), config)
    release.release(config, layout)
    return layout


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["a loader of its own", "another model file", "a pickle", "compiled code"])
def test_J2_a_version_that_brings_code_is_refused_even_where_its_tag_fits(released: Layout, mlflow_folder: Path, tmp_path: Path, damage: str):
    """Whoever may write to the server can write the tag as well as the files."""
    client, marker = registry.client(released), tmp_path / "executed"
    version = client.get_model_version("hostile", "1")
    folder = next(path.parent for path in mlflow_folder.rglob("MLmodel") if path.parent.parent.name == registry.model_id(version))
    kept, tag = tmp_path / "kept", version.tags[model_files.FILES]
    shutil.copytree(folder, kept)
    evil = f"open({str(marker)!r}, 'w').close()\n"
    try:
        if damage == "a loader of its own":
            (folder / "MLmodel").write_text((folder / "MLmodel").read_text().replace("mlflow.pyfunc.loaders.code_model", "evil").replace("code: null", "code: code"))
            (folder / "code").mkdir()
            (folder / "code" / "evil.py").write_text(evil)
        elif damage == "another model file":
            (folder / "model_file.py").write_text(evil + (folder / "model_file.py").read_text())
        elif damage == "a pickle":
            (folder / "artifacts" / "extra.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
        else:
            (folder / "model_file.pyc").write_bytes(b"\0" * 20)
        found = model_files.local_files(folder)
        (folder / model_files.VOUCHED).write_text(model_files.listing(found))
        client.set_model_version_tag("hostile", "1", model_files.FILES, json.dumps(found))
        with pytest.raises(Damaged, match="hostile version 1: .*so nothing of it is run. Release it again: lmworks run") as refused:
            engine.answer(released, "hostile", ["房间"], {}, version=1)
        assert "\n" not in str(refused.value) and not marker.exists()
        with pytest.raises(Damaged, match="nothing of it is run"):
            imports.bring_in("models:/hostile/1", released)
    finally:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        client.set_model_version_tag("hostile", "1", model_files.FILES, tag)
    assert not marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize("source", ["http://169.254.169.254/latest", "gopher://127.0.0.1:9/x", "file:///etc", "/etc", "models:/other/1", "runs:/x/model", "models:/m-1/../../x"])
def test_J5_J6_a_version_whose_files_lie_elsewhere_is_not_fetched(released: Layout, monkeypatch: pytest.MonkeyPatch, source: str):
    client = registry.client(released)
    version = client.get_model_version("hostile", "1")
    elsewhere = SimpleNamespace(name="hostile", version="1", source=source, tags=version.tags)
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", lambda **_: pytest.fail("something was asked"))
    with pytest.raises(Damaged, match="hostile version 1: its files are said to lie at .*, so nothing is fetched"), model_files.fetched(elsewhere, released):
        pass
