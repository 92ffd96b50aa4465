"""A checkout and a corpus in folders with odd names, without a home, without a folder for temporary files."""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from commands import settings as use_command
from components.config import Corpus
from components.corpus import readers
from components.errors import UserError
from components.layout import ROOT, Layout
from components.operations import processes, services

pytestmark = pytest.mark.code
ZH = "今天的天气很好，我们一起去公园散步，然后回家吃饭。"
# nobody's home can be written to here, not even by root
UNWRITABLE = "/proc"


def long_folder(folder: Path) -> Path:
    """A folder below whose path has more than 300 characters, with all that a shell or an address trips over."""
    while len(str(folder)) < 300:
        folder /= "我的 目录 it's #1 (100%) & co. " + "长" * 40
    return folder


def test_B8_B9_commands_and_stages_work_in_a_long_chinese_path_without_a_home(tmp_path: Path):
    root = long_folder(tmp_path) / "检出"
    for folder in ("components", "commands", "presets"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "versions.yaml", root)
    (root / ".venv").symlink_to(ROOT / ".venv")
    corpus = root / ("语料 " + "字" * 80)
    corpus.mkdir()
    (corpus / ("文" * 83 + ".txt")).write_text("".join(f"{i} {ZH}\n\n" for i in range(2000)))
    (root / "记录.jsonl").write_text('{"application": "classification", "prompt": "房间很好", "answer": "正面"}\n' * 3)

    def run(*arguments: str, **home: str) -> str:
        env = {"PATH": os.environ["PATH"], "TMPDIR": "/nonexistent", **home}
        done = subprocess.run([str(root / ".venv" / "bin" / "python"), "-m", *arguments], cwd=root, env=env, text=True, capture_output=True, timeout=120)
        assert done.returncode == 0 and not re.search("Traceback|Warning|Error", done.stdout + done.stderr), done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "model 'corpus-" in run("commands", "use", "smoke", "--corpus", str(corpus), "--records", "记录.jsonl")
    run("components.chain", "fetch")
    run("components.chain", "ingest", HOME=UNWRITABLE)
    table = pq.read_table(root / "data" / "raw" / "documents.parquet")
    assert table["source"][0].as_py() == "文" * 83 + ".txt" and table.num_rows > 20
    assert not list(root.glob("~*")), "nobody takes ~ for the name of a folder"


def test_B8_a_path_too_long_for_sqlite_is_told_before_a_server_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for service in processes.SERVERS:
        monkeypatch.delenv(service.variable, raising=False)
    monkeypatch.setattr(services, "spawn", None)  # nothing is started
    root = long_folder(tmp_path) / "检出"
    root.mkdir(parents=True)
    with pytest.raises(UserError, match=r"too long for mlflow's database: \d+ bytes, of which SQLite opens 504 .*Move the checkout") as caught:
        services.ensure(Layout(root=root))
    assert "\n" not in str(caught.value) and not list(root.rglob("*.db"))


def test_B8_a_path_that_mlflow_cannot_take_is_told_before_a_server_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for service in processes.SERVERS:
        monkeypatch.delenv(service.variable, raising=False)
    monkeypatch.setattr(services, "spawn", None)  # nothing is started
    root = tmp_path / "100% 我的"
    root.mkdir()
    (root / ".venv").symlink_to(ROOT / ".venv")
    with pytest.raises(UserError, match=r"100% 我的 has a % in its path, .*Move the checkout"):
        services.ensure(Layout(root=root))
    assert not list(root.rglob("*.db"))


@pytest.mark.parametrize("name", ["很" * 300, "a/" * 2100])
def test_B8_a_name_too_long_for_the_file_system_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    (tmp_path / "presets").symlink_to(ROOT / "presets")
    monkeypatch.setattr(use_command, "Layout", lambda: Layout(root=tmp_path))
    with pytest.raises((UserError, OSError), match=r"(?i)file name too long"):
        use_command.use("smoke", corpus=tmp_path / name)
    assert not (tmp_path / "params.yaml").exists()


def test_B8_a_folder_whose_name_is_no_utf8_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "presets").symlink_to(ROOT / "presets")
    monkeypatch.setattr(use_command, "Layout", lambda: Layout(root=tmp_path))
    folder = tmp_path / os.fsdecode(b"\xc4\xe3\xba\xc3")  # 你好 as an old Windows wrote it
    folder.mkdir()
    (folder / "a.txt").write_text(ZH * 100)
    with pytest.raises(UserError, match=r"corpus\.source='.*\\udcc4.*': must be text in UTF-8\. Rename the file or folder"):
        use_command.use("smoke", corpus=folder)
    assert not (tmp_path / "params.yaml").exists() and not (tmp_path / "sources.yaml").exists()


def test_B8_a_file_that_is_not_read_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "presets").symlink_to(ROOT / "presets")
    monkeypatch.setattr(use_command, "Layout", lambda: Layout(root=tmp_path))
    folder = tmp_path / "语料"
    folder.mkdir()
    (folder / "文.txt").write_text(ZH * 100)
    (folder / os.fsdecode(b"\xb1\xa8\xb8\xe6.docx")).write_text("报告, as a zip of Windows unpacks here")
    (tmp_path / "记录.jsonl").write_text('{"application": "classification", "prompt": "房间很好", "answer": "正面"}\n' * 3)
    use_command.use("smoke", corpus=folder, records=tmp_path / "记录.jsonl")
    assert "udcb1" in (tmp_path / "sources.yaml").read_text()


def test_B8_the_home_of_nobody_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(use_command, "Layout", lambda: Layout(root=tmp_path))
    (tmp_path / "presets").symlink_to(ROOT / "presets")
    with pytest.raises(UserError, match="--corpus ~nobody-here/x: .*home.*Give the path of your text"):
        use_command.use("smoke", corpus=Path("~nobody-here/x"))


def test_B9_a_full_folder_for_temporary_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": [f"{i} {ZH}" for i in range(5000)]}), sink, compression="none")
    (tmp_path / "大.parquet.gz").write_bytes(gzip.compress(sink.getvalue()))
    monkeypatch.setenv("TMPDIR", "/tiny")
    monkeypatch.setattr(readers.tempfile, "TemporaryFile", partial(open, "/dev/full", "wb"))
    with pytest.raises(UserError, match=r"大\.parquet\.gz cannot be expanded in /tiny: No space left on device\. .*TMPDIR") as caught:
        list(readers.read(tmp_path / "大.parquet.gz", "大.parquet.gz", Corpus())[1])
    assert "\n" not in str(caught.value)


def test_B1_B5_at_the_terminal_it_is_exit_2_one_message_and_no_traceback(tmp_path: Path):
    for folder in ("components", "commands"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for text, words in (("seed: 1\nsead: 2\n", "did you mean 'seed'?"), ("seed: !!python/object:os.system x\n", "params.yaml is not valid YAML")):
        (tmp_path / "params.yaml").write_text(text)
        done = subprocess.run([sys.executable, "-m", "commands", "run"], cwd=tmp_path, env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)}, text=True, capture_output=True)
        assert done.returncode == 2 and done.stderr.startswith("lmworks: params.yaml") and words in done.stderr and "Traceback" not in done.stderr
        assert done.stdout == "" and done.stderr.count("lmworks: ") == 1
