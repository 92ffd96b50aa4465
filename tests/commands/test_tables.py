"""Tables fit the terminal, count Chinese as two cells, stay whole in a pipe, and nobody's text steers the terminal."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from commands import display, tables

pytestmark = pytest.mark.code

ROWS = [tables.Row(["红楼梦", "passed", "12"], ["说明：这是一个很长的句子，" * 8]), tables.Row(["tiny-instruct", "failed", "3"]),
        tables.Row(["a-name-that-is-longer-than-any-terminal-is-wide-" * 3, "passed", "1,234"], ["why " * 60])]


def printed(width: int, rows: list[tables.Row] = ROWS) -> list[str]:
    out = Console(file=io.StringIO(), width=width, highlight=False)
    tables.table(out, ["model", "gate", "items"], rows, right=(2,))
    return out.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 80, 100])
def test_every_line_fits_and_columns_stand_below_each_other(width: int):
    lines = printed(width)
    assert max(map(cell_len, lines)) <= width and not any(line.endswith(" ") for line in lines)
    rows = [line for line in lines if not line.startswith("  ")]
    starts = {cell_len(line[:max(line.find("gate"), line.find("passed"), line.find("failed"))]) for line in rows}
    assert len(rows) == 4 and len(starts) == 1, lines
    ends = {cell_len(line) for line in rows}
    assert len(ends) == 1, "numbers end in one column"


def test_a_pipe_gets_whole_lines_and_COLUMNS_is_obeyed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert display.console().width == display.WHOLE
    lines = printed(display.WHOLE)
    assert ROWS[2].cells[0] in lines[-2] and len(lines) == 6 and "…" not in "".join(lines)
    monkeypatch.setenv("COLUMNS", "80")
    assert display.console().width == 80


def test_text_of_others_cannot_steer_the_terminal():
    assert tables.plain("a\x1b[31mb\x07\n c\u202e") == "a\N{REPLACEMENT CHARACTER}[31mb\N{REPLACEMENT CHARACTER} c\N{REPLACEMENT CHARACTER}"
    lines = printed(60, [tables.Row(["[red]x[/red] :smile:", "\x1b]0;title\x07", "1"], ["\x1b[2J[bold]note"])])
    assert lines[1].startswith("[red]x[/red] :smile:") and "[bold]note" in lines[2] and "\x1b" not in "".join(lines)


def test_facts_hang_below_their_label_and_addresses_stay_whole():
    out = Console(file=io.StringIO(), width=40, highlight=False)
    url = "http://127.0.0.1:4311/runs/flow-run/57a762d0-1b5c-480a-9c62-8b8eab364bb9"
    tables.fact(out, "last run", "a sentence that is longer than forty cells are", url, Text("语料" * 20))
    first, second, third, *chinese = out.file.getvalue().splitlines()
    assert first.startswith("last run    a sentence") and second.startswith(" " * tables.LABEL) and third.strip() == url
    assert len(chinese) == 3 and "".join(line.strip() for line in chinese) == "语料" * 20 and max(map(cell_len, chinese)) <= 40


def test_NO_COLOR_is_obeyed_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    for setting, coloured in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", setting)
        out = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80)
        tables.table(out, ["a"], [tables.Row([Text("x", style="green")])])
        assert ("\x1b[32m" in out.file.getvalue()) is coloured


def test_durations_and_moments_in_words():
    assert [tables.duration(s) for s in (None, 4, 99, 192, 7200, 200_000)] == ["", "4 s", "99 s", "3.2 min", "2.0 h", "2 d"]
    assert tables.moment(None) == "" and tables.unix_time("nonsense") is None and tables.unix_time("1970-01-01T00:01:00Z") == 60


def test_a_mark_before_a_paragraph_keeps_its_colour_to_itself():
    out = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80, no_color=False)
    tables.paragraph(out, "words", indent=4, first=Text("  ✗ ", style="red"))
    assert out.file.getvalue() == "\x1b[31m  ✗ \x1b[0mwords\n"
