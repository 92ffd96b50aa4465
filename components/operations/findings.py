"""What `lmworks verify` looks at, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from components.errors import UserError
from components.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong, or (`damaged` False) that a person should know; `todo` says what to do about it."""

    kind: str
    where: str
    wrong: str
    todo: str
    damaged: bool = True


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing to look at: `look` yields what is wrong with it."""

    kind: str
    bytes: int
    look: Callable[[], Iterator[Problem]]


def size_of(path: Path) -> int:
    if path.is_dir():
        return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
    return path.stat().st_size if path.exists() else 0


def said(error: UserError, layout: Layout) -> str:
    """The error without the checkout's path and without its advice: `todo` has that."""
    text = str(error).replace(f"{layout.root}/", "")
    for end in (". Run: ", ". Remove it, or run: ", " Release it again", ". Mend "):
        text = text.partition(end)[0]
    return text.rstrip(".")
