"""Branch and commit as git itself tells them, without asking git; the corpus as the lock has it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from components import provenance
from components.layout import Layout

pytestmark = pytest.mark.code


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    return subprocess.run(["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    return folder


def test_a_branch_loose_packed_and_of_two_words(repository: Path):
    commit = git(repository, "rev-parse", "HEAD")
    assert provenance.git_head(repository) == ("main", commit)
    git(repository, "pack-refs", "--all")
    assert provenance.git_head(repository) == ("main", commit)
    git(repository, "checkout", "-q", "-b", "feature/长一点")
    assert provenance.git_head(repository) == ("feature/长一点", commit)
    (repository / "inside" / "deeper").mkdir(parents=True)
    assert provenance.git_head(repository / "inside" / "deeper") == ("feature/长一点", commit)


def test_a_worktree_has_a_branch_of_its_own(repository: Path, tmp_path: Path):
    git(repository, "worktree", "add", "-q", "-b", "nightly", str(tmp_path / "tree"))
    git(tmp_path / "tree", "commit", "-q", "--allow-empty", "-m", "second")
    assert provenance.git_head(tmp_path / "tree") == ("nightly", git(tmp_path / "tree", "rev-parse", "HEAD"))
    assert provenance.git_head(repository) == ("main", git(repository, "rev-parse", "HEAD"))


def test_a_detached_head_has_no_branch_and_a_new_repository_no_commit(repository: Path, tmp_path: Path):
    commit = git(repository, "rev-parse", "HEAD")
    git(repository, "checkout", "-q", "--detach")
    assert provenance.git_head(repository) == (None, commit)
    (tmp_path / "new").mkdir()
    git(tmp_path / "new", "init", "-q")
    assert provenance.git_head(tmp_path / "new") == ("main", None)


def test_no_repository_and_a_damaged_one_are_no_error(tmp_path: Path):
    assert provenance.git_head(tmp_path) == (None, None)
    (tmp_path / ".git").write_bytes(b"gitdir: /nowhere\xff\n")
    assert provenance.git_head(tmp_path) == (None, None)


def test_the_corpus_is_the_one_that_the_data_was_made_from(tmp_path: Path):
    layout = Layout(root=tmp_path)
    assert provenance.corpus_digest(layout) is None
    layout.sources.write_text("corpus:\n  digest: bbbbbbbbbbbbbbbb\n")
    assert provenance.corpus_digest(layout) == "b" * 12
    layout.dvc_lock.write_text("stages:\n  fetch:\n    params:\n      sources.yaml:\n        corpus.digest: aaaaaaaaaaaaaaaa\n")
    assert provenance.corpus_digest(layout) == "a" * 12


def test_a_run_outside_prefect_keeps_what_an_earlier_one_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LMWORKS_FLOW_RUN", raising=False)
    assert provenance.prefect_tags() == {}
    monkeypatch.setenv("LMWORKS_FLOW_RUN", "http://127.0.0.1:4200/runs/flow-run/1")
    monkeypatch.setenv("LMWORKS_DEPLOYMENT", "")
    assert provenance.prefect_tags() == {provenance.PREFECT_RUN: "http://127.0.0.1:4200/runs/flow-run/1", provenance.DEPLOYMENT: None}
