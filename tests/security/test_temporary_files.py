"""Temporary files that others could read, or could have prepared (J15)."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from components import chain, files
from components.errors import UserError
from components.layout import Layout
from components.operations import environment
from components.release import package

pytestmark = pytest.mark.code


@pytest.fixture
def open_to_all() -> Iterator[None]:
    """A umask that hides nothing."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_J15_a_link_prepared_under_the_temporary_name_is_not_followed(tmp_path: Path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    prepared = tmp_path / f".params.yaml.{os.getpid()}.partial"
    prepared.symlink_to(precious)
    with pytest.raises(UserError, match=r"cannot write .*params\.yaml: .*symbolic links"):
        files.write_atomic(tmp_path / "params.yaml", "seed: 1\n")
    assert precious.read_text() == "mine" and not (tmp_path / "params.yaml").exists()
    files.write_atomic(tmp_path / "params.yaml", "seed: 1\n")  # the same again: the link is gone
    assert precious.read_text() == "mine" and (tmp_path / "params.yaml").read_text() == "seed: 1\n"


def test_J15_what_is_private_is_so_whatever_the_umask(tmp_path: Path, open_to_all: None):
    layout = Layout(root=tmp_path)
    layout.prefect_home.mkdir(mode=0o777)
    layout.prefect_home.chmod(0o777)  # of a checkout that an earlier version made
    environment.make_private(layout)
    for folder in (layout.prefect_home, layout.prefect_home / "storage", layout.state, layout.logs):
        assert mode(folder) == 0o700, folder
    with files.lock(layout.run_lock, what="a run"):
        assert mode(layout.run_lock) == 0o600


def test_J15_a_model_is_packed_where_nobody_else_looks(tmp_path: Path, open_to_all: None):
    from types import SimpleNamespace

    out = tmp_path / "data" / "pretrained"
    (out / "model").mkdir(parents=True)
    (out / "model" / "config.json").write_text("{}")
    subject = SimpleNamespace(kind="base", out=out, name="x", weights_sha256="0" * 64)
    with package.packed(subject, Layout(root=tmp_path)) as folder:
        assert mode(folder.parent) == 0o700 and folder.is_relative_to(tmp_path / "work")
    assert not folder.exists()


def test_J15_no_file_of_ours_has_a_name_in_a_shared_folder():
    """What is temporary lies below the checkout, or is made by tempfile, which takes a name that nobody can foresee, and mode 0700."""
    named = re.compile(r"(?<!or )[\"'](?:/var)?/tmp\b|gettempdir\(|mktemp\(|/dev/shm")
    found = [f"{path.name}: {hit.group()}" for room in ("components", "flows", "commands") for path in (chain.ROOT / room).rglob("*.py") for hit in named.finditer(path.read_text())]
    assert found == []
    for path in (chain.ROOT / "infra").glob("*.sh"):
        assert "/tmp" not in path.read_text(), path.name
