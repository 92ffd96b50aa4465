"""What a person sees while the chain runs: one line a finished stage, a bar for the one that works."""

from __future__ import annotations

import os
import re
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

# a stage's progress line (components/reporting.py): NAME N/TOTAL DETAIL
PROGRESS = re.compile(r"^(\w[\w -]*?) (\d+)/(\d+) ?(.*)$")
MARKS = {"ran": ("✓", "green"), "cached": ("·", "dim"), "restored": ("↺", "cyan"), "healed": ("+", "cyan"), "failed": ("✗", "red"), "skipped": ("-", "dim")}


WHOLE = 10_000  # cells: where nobody says how wide, no line is wrapped or cut


def console(stderr: bool = False) -> Console:
    """The terminal as wide as it is; a pipe or a file gets whole lines, unless COLUMNS says otherwise. NO_COLOR is rich's business."""
    out = Console(stderr=stderr, highlight=False, soft_wrap=False, emoji=False)
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = WHOLE
    return out


def counts(summary: dict[str, Any]) -> str:
    """A stage's numbers in words: `42,137 -> 38,112 documents · 2,913,004 tokens`."""
    parts = []
    into, out = summary.get("documents_in"), summary.get("documents_out")
    if into is not None and out is not None:
        parts.append(f"{into:,} -> {out:,} documents" if into != out else f"{out:,} documents")
    elif out is not None:
        parts.append(f"{out:,} documents")
    if summary.get("tokens") is not None:
        parts.append(f"{summary['tokens']:,} tokens")
    if summary.get("steps") is not None:
        parts.append(f"{summary['steps']:,} steps")
    return " · ".join(parts)


class Live:
    """Listens to the flow. On a terminal: a bar; in a log: the lines as they come."""

    def __init__(self, out: Console):
        self.out = out
        self.live = out.is_terminal
        self.progress = Progress(TextColumn("  {task.description:<10}"), BarColumn(bar_width=24), TextColumn("{task.fields[detail]}"),
                                 console=out, transient=True)
        self.bar: Any = None
        self.started_s = time.monotonic()

    def __enter__(self) -> Live:
        if self.live:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.progress.stop()

    def stage_started(self, stage: str, why: list[str]) -> None:
        self._clear()
        if self.live:
            self.bar = self.progress.add_task(stage, total=None, detail="")
        reason = why[0] if why else "asked for"
        more = f" (+{len(why) - 1} more)" if len(why) > 1 else ""
        self.out.print(Text(f"  {stage:<10} {reason}{more}", style="dim"), overflow="ellipsis", no_wrap=True)

    def line(self, stage: str, line: str) -> None:
        match = PROGRESS.match(line)
        if match and self.live:
            name, n, total, detail = match.groups()
            if self.bar is not None:
                self.progress.update(self.bar, description=name, completed=int(n), total=int(total), detail=f"{n}/{total} {detail}")
        elif match:
            self.out.print(Text(f"    {line}"), soft_wrap=True)
        elif line.strip():
            self.out.print(Text(f"    {line.rstrip()}", style="dim" if self.live else ""), soft_wrap=True)

    def stage_ended(self, record: Any) -> None:
        self._clear()
        mark, style = MARKS.get(record.state, ("?", ""))
        seconds = f"{record.elapsed_s:6.1f} s" if record.state in ("ran", "restored", "healed", "failed") else f"{record.state:>8}"
        self.out.print(Text.assemble((f"{mark} ", style), f"{record.stage:<10} {seconds}  {'healed  ' * (record.state == 'healed')}{counts(record.summary)}"), no_wrap=True, overflow="ellipsis")

    def _clear(self) -> None:
        if self.bar is not None:
            self.progress.remove_task(self.bar)
            self.bar = None
