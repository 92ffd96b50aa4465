"""What users wrote stays text where a program would read it: spreadsheets and templates (J12). Pages and Markdown: beside their own tests."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from commands import tables
from components.layout import Layout
from components.stages import evaluate

pytestmark = pytest.mark.code

FORMULAS = ["=cmd|' /C calc'!A0", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "=HYPERLINK(\"http://evil.example\")"]


def test_J12_a_label_that_begins_like_a_formula_is_none_in_a_spreadsheet(tmp_path: Path):
    layout = Layout(root=tmp_path)
    evaluate._write_csv(layout, "confusion_zh.csv", ("expected", "answered", "records"), [(label, "正面", 3) for label in FORMULAS] + [("正面", "a=b", -1)])
    with open(layout.evaluation / "plots" / "confusion_zh.csv", newline="", encoding="utf-8") as f:
        rows = list(csv.reader(f))
    assert [row[0] for row in rows[1:-1]] == [f"'{label}" for label in FORMULAS]
    assert rows[-1] == ["正面", "a=b", "-1"], "numbers and other words stay as they are"


@pytest.mark.parametrize("text", ["\x1b]0;evil\x07", "\x1b[2J\x1b[H", "a\rb", "a\x08\x08b", "\u202egnp.exe"])
def test_J12_a_terminal_gets_no_commands_from_names(text: str):
    shown = tables.plain(f"model {text} 正面")
    assert not any(ord(sign) < 32 or sign in "\x7f\u202e" for sign in shown) and "正面" in shown
