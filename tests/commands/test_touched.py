"""An unchanged run hashes again what somebody touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import run
from components import chain, files
from components.errors import Damaged
from components.layout import Layout

pytestmark = pytest.mark.code


def test_A15_what_changes_while_it_is_hashed_is_hashed_again_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    layout = Layout(root=tmp_path)
    files.write_sealed(layout.receipt, {"format": 1})
    for folder in [layout.out(out) for stage in chain.STAGES for out in stage.outs]:
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text("text")
        files.write_manifest(folder)
    verify, first, last = files.verify_manifest, layout.sources_corpus, layout.evaluation

    def edited_behind(folder: Path) -> object:
        told = verify(folder)
        if folder == last:
            (first / "a.txt").write_text("edit")
        return told

    with monkeypatch.context() as patched:
        patched.setattr(files, "verify_manifest", edited_behind)
        run.verify_touched(layout)
    with pytest.raises(Damaged, match="a.txt"):
        run.verify_touched(layout)
