"""Tables and labelled lines that fit a terminal, count a Chinese character as two cells, and stay whole in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console
from rich.text import Text

GAP = 2  # cells between columns, and before a note
MIN_FLEXIBLE = 8  # a column that gives way keeps so many cells
LABEL = 12  # cells of the label before a fact
Shown = str | Text


@dataclass(frozen=True)
class Row:
    """One line of a table, and what stands below it."""

    cells: Sequence[Shown]
    notes: Sequence[Shown] = ()


def plain(value: object) -> str:
    """Somebody's text on one line, without characters that would steer the terminal."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in " ".join(str(value).split()))


def _text(value: Shown) -> Text:
    return value if isinstance(value, Text) else Text(plain(value))


def table(out: Console, heads: Sequence[str], rows: Sequence[Row], *, right: Sequence[int] = (), flexible: int = 0) -> None:
    """Columns as wide as their content. Where they do not fit, the `flexible` one is cut with an ellipsis.

    Columns named in `right` hold numbers. Nothing is printed behind the last sign of a line.
    """
    lines = [[Text(head, style="bold") for head in heads], *([_text(cell) for cell in row.cells] for row in rows)]
    widths = [max(line[n].cell_len for line in lines) for n in range(len(heads))]
    over = sum(widths) + GAP * (len(heads) - 1) - out.width
    if over > 0:
        widths[flexible] = max(MIN_FLEXIBLE, widths[flexible] - over)
    for line, row in zip(lines, [None, *rows], strict=True):
        out.print(_line(line, widths, right), no_wrap=True, overflow="ellipsis")
        for note in row.notes if row else ():
            paragraph(out, note, indent=GAP)


def _line(cells: list[Text], widths: list[int], right: Sequence[int]) -> Text:
    line = Text()
    for n, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        cell = cell.copy()
        if cell.cell_len > width:
            cell.truncate(width, overflow="ellipsis")
        room = " " * (width - cell.cell_len)
        line.append_text(Text(" " * GAP if n else "") + (Text(room) + cell if n in right else cell + Text(room)))
    line.rstrip()
    return line


def paragraph(out: Console, value: Shown, *, indent: int = 0, first: Shown = "") -> None:
    """A sentence below its indentation on every line; `first` takes the place of the first one. An address stays whole, and a
    Text that shall not wrap is cut to one line."""
    label = _text(first)
    text = _text(value)
    room = max(out.width - indent, MIN_FLEXIBLE)
    if text.no_wrap:
        text = text.copy()
        text.truncate(room, overflow="ellipsis")
    lines: Iterable[Text] = [text] if text.no_wrap or "://" in text.plain else text.wrap(out, room)
    for n, line in enumerate(lines):
        line = line.copy()
        line.rstrip()
        lead = label if n == 0 else Text("")
        out.print(Text.assemble(lead, " " * (indent - lead.cell_len), line), soft_wrap=True)


def fact(out: Console, label: str, *values: Shown) -> None:
    """`label      value`, further values below the first; nothing without values."""
    for n, value in enumerate(values):
        paragraph(out, value, indent=LABEL, first=label if n == 0 else "")


def heading(out: Console, text: str) -> None:
    out.print(Text(plain(text), style="bold"), no_wrap=True, overflow="ellipsis")


def duration(seconds: float | None) -> str:
    """`45 s`, `3.2 min`, `5.1 h`, `3 d`; nothing for what is not known."""
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} d"


def moment(seconds: float | None) -> str:
    """Local time to the minute of a Unix time; nothing for what is not known."""
    return "" if seconds is None else datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def unix_time(iso: str | None) -> float | None:
    """The Unix time of an ISO date with its zone (Z included); None for what is none."""
    try:
        return datetime.fromisoformat(str(iso).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None
