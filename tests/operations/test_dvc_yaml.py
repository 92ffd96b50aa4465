"""dvc.yaml, cut or edited: told before anything leans on it, at the terminal and in a flow."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from components import chain
from components import config as settings
from components.errors import Damaged, UserError
from components.layout import ROOT, Layout
from components.operations import staleness

pytestmark = pytest.mark.code


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A checkout before its first run."""
    for folder in ("components", "commands", ".dvc"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "cache", "tmp", "site", "config.local"))
    for name in ("versions.yaml", "dvc.yaml", "sources.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    (tmp_path / "params.yaml").write_text(settings.render(settings.Config()))
    return Layout(root=tmp_path)


def first_stages(text: str) -> str:
    return text[:text.index("  tokenizer:\n")]


def test_D4_an_emptied_cut_or_edited_dvc_yaml_is_named_with_what_is_wrong(layout: Layout):
    whole = layout.dvc_yaml.read_text()
    staleness.check_dvc_yaml(layout)
    later = list(chain.BY_NAME)[3:]
    number = 1 + whole[:whole.index("    - components/stages/clean.py")].count("\n")
    for text, told in (("", f"it lacks {', '.join(chain.BY_NAME)}"), (first_stages(whole), f"it lacks {', '.join(later)}"),
                       (whole.replace("    - components/stages/clean.py\n", "", 1), f"line {number} is another"), (whole + "# mine\n", "is another")):
        layout.dvc_yaml.write_text(text)
        with pytest.raises(Damaged) as caught:
            staleness.check_dvc_yaml(layout)
        assert told in str(caught.value) and "-m components.chain --generate" in str(caught.value)
    layout.dvc_yaml.write_bytes(whole.encode().replace(b"cmd", b"c\xffd", 1))
    with pytest.raises(Damaged, match="is another"):
        staleness.check_dvc_yaml(layout)


@pytest.mark.parametrize("text", ["", "words\n", "stages:\n", "stages: []\n"])
def test_D4_no_stages_are_no_chain(layout: Layout, text: str):
    layout.dvc_yaml.write_text(text)
    for ask in (staleness.names, staleness.stale):
        with pytest.raises(UserError, match="dvc.yaml"):
            ask(layout)


def test_D4_every_command_that_asks_what_would_run_tells_it_and_the_remedy_works(layout: Layout):
    whole = layout.dvc_yaml.read_text()
    layout.dvc_yaml.write_text(first_stages(whole))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(layout.venv / "bin" / "python"), "-m", *arguments], cwd=layout.root, text=True, capture_output=True, timeout=120)

    for arguments in (("run",), ("run", "--dry-run"), ("why",)):
        done = run("commands", *arguments)
        assert done.returncode == 4 and "dvc.yaml is not what the stage table" in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert done.stdout == "" and done.stderr.count("\n") == 1, "one message, and no server was started"
    assert run("components.chain", "--generate").returncode == 0 and layout.dvc_yaml.read_text() == whole
    assert run("commands", "why").stdout.count("would run") == len(chain.STAGES)
