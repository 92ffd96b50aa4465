"""Names, ids and paths that try to lead out of a checkout or into a shell (J5, J11): refused in one line, and nothing outside is touched."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import data as stages
from commands import imports
from commands import settings as use
from components import chain, files
from components import config as settings
from components.corpus import origins, sources
from components.errors import Damaged, UserError
from components.layout import Layout
from components.operations import backup, restoration
from components.release import imported, lineage

pytestmark = pytest.mark.code

ODD = ["..", "../..", "../../outside/private.txt", "/etc/passwd", "//etc/passwd", "%2e%2e/%2e%2e/outside", "%252e%252e/outside", "..%2foutside", "a/../../outside", "a\\..\\..\\outside",
       "~root/x", "~nobody-here/x", "a\0b", "a\nb", "a\r\nb", "-rf", "--upload-pack=touch executed", "$(touch executed)", "`touch executed`", "; touch executed", "| touch executed", "#", "x#y", ".", " ",
       "数据/../../outside", "\u2024\u2024/outside", "name'; DROP TABLE runs;--", "a" * 300, "models:/../../x@champion"]
NAMES = pytest.mark.parametrize("odd", ODD, ids=[ascii(odd)[:40] for odd in ODD])


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Layout]:
    """A checkout beside a folder of somebody's own, which must look the same at the end; a shell that ran would leave `executed`."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "private.txt").write_text("mine")
    layout = Layout(root=tmp_path / "checkout")
    files.write_atomic(layout.params, settings.render(settings.Config()))
    (layout.presets).mkdir()
    (layout.presets / "tiny.yaml").write_text("")
    monkeypatch.chdir(layout.root)
    yield layout
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if not path.is_relative_to(layout.root)} == {"outside", "outside/private.txt"}
    assert (outside / "private.txt").read_text() == "mine" and not list(tmp_path.rglob("executed"))
    assert {path.name for path in layout.root.iterdir()} <= {"params.yaml", "presets", "work", ".lmworks", "data"}


def one_line(call: Callable[[], Any]) -> str:
    """The message, as `lmworks` prints it (an OSError in one line, too)."""
    with pytest.raises((UserError, OSError)) as refused:
        call()
    message = str(refused.value)
    assert len(message) < 2500 and "Traceback" not in message
    message.encode()  # it can be printed
    return message


@NAMES
def test_J5_J11_names_that_are_not_names_are_refused(layout: Layout, odd: str):
    assert "name=" in one_line(lambda: settings.build({"name": odd}, where="test"))
    assert "no preset" in one_line(lambda: use.preset_path(layout, odd))
    assert "no stage" in one_line(lambda: chain.selection(list(chain.BY_NAME), odd, None))
    assert "no stage" in one_line(lambda: stages._known(odd))
    config = settings.build({"corpus.base": odd}, where="test") if odd.strip() else settings.Config()
    if config.corpus.base != "none":
        assert "data/imported" in one_line(lambda: sources.base_group(config, layout))


@NAMES
def test_J5_J11_paths_are_read_as_paths_and_nothing_else(layout: Layout, odd: str):
    config = settings.build({"corpus.source": odd, "corpus.records": odd}, where="test")
    if not os.path.exists(origins.locate(odd, layout.root)):  # one that is there is the person's own choice
        one_line(lambda: sources.corpus_group(config, layout))
        one_line(lambda: sources.records_group(config, layout))
    if "\0" not in odd:  # no argument of a command can be one of these
        if not odd.startswith("models:/"):  # asked of the server: tests/release/test_odd_names.py
            one_line(lambda: imports.bring_in(odd, layout))
        one_line(lambda: restoration.read_index(Path(odd)))
        one_line(lambda: backup._check_target(layout, Path(odd).absolute() / "there" / "is" / "none"))


@pytest.mark.parametrize("name", ["../private.txt", "/etc/passwd", "a/../../x", "a\\..\\x", "a\0b", "", "./x", "a//b", "\ud800"])
def test_J5_names_inside_files_of_ours_cannot_lead_out(layout: Layout, tmp_path: Path, name: str):
    one_line(lambda: origins.check_name(name, "sources.yaml"))
    folder = tmp_path / "checkout" / "data" / "model"
    folder.mkdir(parents=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    assert "same folder was expected" in one_line(lambda: imported.shards(folder))


@pytest.mark.parametrize("name", ["../outside/private.txt", "/etc/passwd", "mlruns/../../outside/private.txt"])
def test_J5_a_backup_that_names_files_outside_or_holds_links_is_refused(layout: Layout, tmp_path: Path, name: str):
    source = layout.root / "data" / "backup"
    for listed in (name, "params.yaml"):
        index: dict[str, Any] = {"format": backup.FORMAT, "files": {listed: {"sha256": "0" * 64, "bytes": 4}}}
        index["sha256"] = backup.digest(index)
        files.write_json(source / backup.INDEX, index)
        if listed == "params.yaml":
            (source / listed).symlink_to(tmp_path / "outside" / "private.txt")
        with pytest.raises(Damaged, match="outside the backup" if listed == name else "is a link"):
            restoration.read_index(source)


def test_J5_an_imported_folder_whose_files_are_links_is_refused_by_name(layout: Layout, tmp_path: Path):
    folder = layout.root / "data" / "model"
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    for name in ("README.md", "chat_template.jinja"):
        (folder / name).symlink_to(tmp_path / "outside" / "private.txt")
        assert f"{name} is a link to" in one_line(lambda: imported.check(folder))
        (folder / name).unlink()
    (folder / "model.safetensors").rename(folder / "real")
    (folder / "model.safetensors").symlink_to("real")  # inside: nothing is wrong with it
    imported.check_links(folder, ["model.safetensors"])


def test_J5_a_cache_of_the_hub_keeps_its_links(layout: Layout):
    snapshot, blobs = layout.root / "data/hub/snapshots/abc", layout.root / "data/hub/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1f").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/1f")
    imported.check_links(snapshot, ["config.json"])


@pytest.mark.parametrize("branch", ["--upload-pack=touch${IFS}executed", "$(touch${IFS}executed)", "a;touch${IFS}executed", "-x"])
def test_J11_odd_branches_remotes_and_file_names_run_nothing(layout: Layout, branch: str):
    git = ["git", "-C", str(layout.root), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    (layout.root / ".git" / "HEAD").write_text(f"ref: refs/heads/{branch}\n")
    subprocess.run([*git, "remote", "add", "origin", "--", "ext::sh -c touch% executed"], check=True)
    odd = layout.root / "data" / "--output=executed"
    odd.parent.mkdir(exist_ok=True)
    odd.write_text("x")
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    (layout.root / ".git" / "config").open("a").write("[diff]\n\texternal = touch executed\n[core]\n\tpager = touch executed\n\tfsmonitor = touch executed #\n")
    odd.write_text("y")
    commit, difference = lineage.git_state(layout.root)
    assert commit and b"--output=executed" in difference
    subprocess.run(["rm", "-rf", str(layout.root / ".git")], check=True)


def test_J11_no_code_of_ours_uses_a_shell(layout: Layout):
    """What DVC runs is one fixed line a stage, and so are the commands of prefect.yaml."""
    found = []
    for room in ("components", "flows", "commands"):
        for path in (chain.ROOT / room).rglob("*.py"):
            found += [f"{path.name}: {word}" for word in ("shell=True", "os.system(", "os.popen(", "getoutput(", "create_subprocess_shell") if word in path.read_text()]
    assert found == []
    lines = {stage["cmd"] for stage in yaml.safe_load((chain.ROOT / "dvc.yaml").read_text())["stages"].values()}
    assert lines == {f"exec python -m components.chain {name}" for name in chain.BY_NAME}
