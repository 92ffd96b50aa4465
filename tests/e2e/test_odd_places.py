"""The whole chain where nobody would put it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from tests.checkout import Checkout, copy_checkout

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@dataclass(frozen=True)
class Homeless(Checkout):
    """As on a server where the user has no home, or one that cannot be written to, and no folder for temporary files."""

    home_variable: str | None = None

    @property
    def env(self) -> dict[str, str]:
        env = super().env | {"TMPDIR": "/nonexistent"}
        del env["HOME"]
        return env | ({"HOME": self.home_variable} if self.home_variable else {})


def test_B8_B9_the_chain_ends_with_a_champion_in_a_long_chinese_path_with_a_read_only_home(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("odd")
    while len(str(folder)) < 300:
        folder /= "我的 目录 it's #1 (100) & co. " + "long " * 10
    made = copy_checkout(folder / "检出")
    read_only, none = Homeless(made.root, made.home, "/proc"), Homeless(made.root, made.home)
    try:
        read_only.lmworks("use", "smoke")
        done = read_only.lmworks("run", timeout_s=900)
        said = done.stdout + done.stderr
        assert not re.search(r"Traceback|Warning|WARNING|\bERROR\b", said), said
        assert read_only.aliases("smoke") == {"candidate": "1", "champion": "1"}
        for command in (("generate", "国王", "--max-new-tokens", "8"), ("status",), ("verify",), ("run",)):
            done = none.lmworks(*command)
            assert not re.search(r"Traceback|Warning|WARNING|\bERROR\b", done.stdout + done.stderr), (command, done)
        assert "Nothing changed" in done.stdout and not list(made.root.glob("~"))
    finally:
        none.lmworks("down", "--force", code=None)
