"""Markdown from text that others wrote: names, paths, settings and rows can never become markup, a link or a script (J12)."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterable
from typing import Any

# what MLflow's page (Showdown, in GitHub's manner) and Prefect's turn into links and pictures outside this machine: @names, addresses with
# and without https, :emoji:. No back-slash stops that, and before a dollar Showdown shows it.
LIVE = re.compile(r"[@$]|:(?=\S)|(?<=www)\.", re.IGNORECASE)


def escape(text: Any) -> str:
    """Text that Markdown and HTML show as it is, on one line (J12)."""
    flat = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return LIVE.sub(lambda sign: f"&#{ord(sign[0])};", re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", flat))


def code(text: Any) -> str:
    """Text in a code span that no back-tick of its own can end."""
    return "`" + " ".join(str(text).split()).replace("`", "'").replace("|", "¦") + "`"


def link(text: Any, url: str) -> str:
    """A link to an http or https address; of any other, the text alone."""
    if not url.startswith(("http://", "https://")):
        return escape(text)
    return f"[{escape(text)}]({urllib.parse.quote(url, safe=':/?#@&=%,;+$-._~')})"


def table(head: list[str], body: Iterable[list[str]]) -> str:
    """Cells are Markdown already."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)])
