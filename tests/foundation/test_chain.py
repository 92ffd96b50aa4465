"""The runner of a stage: what it refuses, and what it leaves behind when the stage fails."""

from __future__ import annotations

import ast
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components import chain, files, reporting, stage_code
from components import config as settings
from components.errors import UserError
from components.layout import ROOT, Layout

pytestmark = pytest.mark.code


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    for name in ("params.yaml", "versions.yaml", "sources.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "params.yaml").write_text(settings.render(settings.Config()))
    (tmp_path / "components").symlink_to(ROOT / "components")
    return Layout(root=tmp_path)


@pytest.mark.parametrize("text", ["", "- a list\n", "corpus: 5\n", "corpus: {digest: a}\nrecords: {digest: b}\n", "corpus: [\n"])
def test_an_empty_or_malformed_sources_yaml_is_one_clear_error(layout: Layout, text: str):
    layout.sources.write_text(text)
    with pytest.raises(UserError, match="sources.yaml") as caught:
        chain.fingerprint(chain.BY_NAME["fetch"], settings.Config(), layout, [])
    assert "lmworks run" in str(caught.value) or "not valid YAML" in str(caught.value)
    layout.sources.unlink()
    with pytest.raises(UserError, match="no sources.yaml .*Run: lmworks run"):
        chain.fingerprint(chain.BY_NAME["fetch"], settings.Config(), layout, [])


def test_B10_every_wrong_version_is_named_once(layout: Layout):
    text = layout.versions.read_text()
    layout.versions.write_text(text.replace("torch: ", "torch: 9").replace("numpy: ", "numpy: 9"))
    with pytest.raises(UserError) as caught:
        chain.check_versions(chain.STAGES, layout)
    assert str(caught.value).count("is installed") == 2 and "make setup" in str(caught.value)
    layout.versions.write_text("")
    with pytest.raises(UserError, match="versions.yaml has no .*git checkout"):
        chain.check_versions(chain.STAGES, layout)


@pytest.mark.parametrize(("error", "code", "words"), [
    (UserError("row 7 has no text; mend it"), 2, "row 7"), (KeyboardInterrupt(), 130, "the next run goes on"), (KeyError("x"), 1, "KeyError: 'x'"),
    (MemoryError(), 1, "smaller batches"), (RuntimeError("CUDA out of memory. Tried to allocate"), 1, "smaller batches"),
    (OSError(28, "No space left on device", "data/x"), 2, "no space in "), (OSError(2, "No such file or directory", "data/x"), 1, "No such file or directory: data/x"),
])
def test_C10_D1_whatever_ends_a_stage_it_leaves_its_words_and_no_out(layout: Layout, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str):
    def run(_config: Any, staged: Layout) -> reporting.Report:
        (staged.sources_corpus / "half").write_text("half")
        raise error

    monkeypatch.setattr(chain.importlib, "import_module", lambda _name: SimpleNamespace(run=run))
    outcome = chain.attempt(chain.BY_NAME["fetch"], layout)
    assert outcome["exit_code"] == code and words in outcome["message"]
    assert not (layout.root / "data" / "sources").exists() and not list(layout.partial.iterdir())
    assert not list(layout.unclean.iterdir())


def test_dvc_exp_run_in_a_copy_is_one_clear_refusal(tmp_path: Path):
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "standalone" / "tmp1"
    copy.mkdir(parents=True)
    shutil.copytree(ROOT / "components", copy / "components", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run([sys.executable, "-m", "components.chain", "fetch"], cwd=copy, capture_output=True, text=True, env={"PYTHONPATH": str(copy)})
    assert done.returncode == 1 and "--temp or --queue" in done.stderr and "dvc exp run -S" in done.stderr and done.stderr.count("\n") == 1


def test_C8_a_closed_terminal_stops_as_ctrl_c_does_unless_nohup_says_otherwise():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        reporting.stop.install()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        reporting.stop.install()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGHUP)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_B5_yaml_traps_are_one_clear_error(tmp_path: Path):
    path = tmp_path / "params.yaml"
    bomb = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}, r: *a{n - 1}}}\n" for n in range(1, 30))
    lists = "l0: &l0 [1]\n" + "".join(f"l{n}: &l{n} [*l{n - 1}, *l{n - 1}, *l{n - 1}]\n" for n in range(1, 30)) + "seed: *l29\n"
    for text, words in ((bomb, "unknown key 'a0.x'"), (lists, "seed="), ("? [a]\n: b\n", "not valid YAML"), ("seed: " + "[" * 5000, "not valid YAML")):
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            settings.load(path)


def test_json_nested_too_deep_is_damage(tmp_path: Path):
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not valid JSON"):
        files.read_json(tmp_path / "x.json")


def test_the_imports_of_a_file_are_those_that_its_whole_text_gives(tmp_path: Path):
    def named(tree: ast.AST) -> list[str]:
        return sorted(ast.dump(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) and "components" in ast.dump(node))

    paths = sorted((ROOT / "components").rglob("*.py"))
    odd = tmp_path / "odd.py"
    odd.write_text('"""Words\nfrom components that are no import.\n"""\nfrom components import (  # (two)\n    files,\n    storage,\n)\n'
                   "def late():\n    import components.masking\n    from components.corpus \\\n        import page\n")
    for path in [*paths, odd]:
        assert named(stage_code.imports(path)) == named(ast.parse(path.read_text())), path
    for damaged in (b"from components import (files\n", b"from components \xff import files\n", b"from components import \0files\n"):
        odd.write_bytes(damaged)
        with pytest.raises(UserError, match="odd.py cannot be read as Python"):
            stage_code.imports(odd)
