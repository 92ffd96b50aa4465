"""DVC's answer in words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.errors import UserError
from components.layout import Layout
from components.operations import environment, staleness

pytestmark = pytest.mark.code

DVC_YAML = """\
stages:
  one:
    cmd: cp in.txt data/one
    deps: [in.txt, code.py]
    params: [training, name]
    outs: [data/one]
  two:
    cmd: cp data/one data/two
    deps: [data/one]
    outs: [data/two]
"""


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    for name in [n for n in environment.child(Layout(root=tmp_path)) if os.environ.get(n) is None]:
        monkeypatch.delenv(name, raising=False)  # what apply() sets goes again
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "in.txt").write_text("文本 text")
    (tmp_path / "code.py").write_text("x = 1\n")
    (tmp_path / "params.yaml").write_text("name: a\ntraining: {steps: 5, rows: 2}\n")
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    environment.allow_no_git(Layout(root=tmp_path))
    return Layout(root=tmp_path)


def repro(layout: Layout) -> None:
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=layout.root, env=environment.child(layout), check=True)


def test_reasons_name_what_changed_and_later_stages_follow(layout: Layout):
    assert staleness.stale(layout) == {"one": ["it never ran"], "two": ["it never ran"]}
    repro(layout)
    assert staleness.stale(layout) == {} and staleness.why(layout, "one") == []

    (layout.root / "params.yaml").write_text("# a comment\ntraining: {rows: 2, steps: 6}\nname: a\n")
    assert staleness.stale(layout) == {"one": ["params.yaml training.steps: 5 -> 6"],
                                       "two": ["its input data/one comes from one, which runs first"]}
    assert staleness.why(layout, "two") == [], "local: asked again just before it runs"
    (layout.root / "params.yaml").write_text("name: a\ntraining: {steps: 5, rows: 2}\n")
    (layout.root / "code.py").write_text("x = 2\n")
    assert staleness.why(layout, "one") == ["code code.py changed"]
    (layout.root / "code.py").write_text("x = 1\n")
    (layout.root / "data" / "two").unlink()
    assert staleness.stale(layout) == {"two": ["its output data/two is missing"]}


def test_no_pipeline_is_one_clear_error(tmp_path: Path):
    with pytest.raises(UserError, match="no dvc.yaml"):
        staleness.names(Layout(root=tmp_path))


@pytest.mark.parametrize(("name", "advice"), [("params.yaml", "Mend that, then run again"), ("sources.yaml", "Run: lmworks run")])
def test_a_file_that_dvc_cannot_read_is_one_line_with_what_to_do(layout: Layout, name: str, advice: str):
    (layout.root / "sources.yaml").write_text("corpus: {digest: a}\n")
    (layout.root / "dvc.yaml").write_text(DVC_YAML.replace("params: [training, name]", "params: [training, {sources.yaml: [corpus.digest]}]"))
    repro(layout)
    (layout.root / name).write_text("training: [\n")
    with pytest.raises(UserError, match=f"DVC cannot read this checkout: .*{name}.*{advice}") as caught:
        staleness.stale(layout)
    assert "\n" not in str(caught.value)
