"""Pictures: lengths say the numbers, series differ by more than colour, text is in ink."""

from __future__ import annotations

import re

import pytest
from page_reading import Page

from components.evaluation import charts

pytestmark = pytest.mark.code


def heights(svg: str) -> list[float]:
    """Of the bars alone, hatching left out."""
    return [float(h) for h in re.findall(r'<rect x="[\d.]+" y="[\d.]+" width="[\d.]+" height="([\d.]+)" fill="#', svg)]


def test_columns_are_as_high_as_their_values_and_the_second_series_is_hatched():
    svg = charts.columns("长度 & <b>", ["≤ 16", "≤ 32"], {"English": [10, 40], "中文": [20, 0]}, x_label="tokens", y_label="%")
    low, high, other = [h for h in heights(svg) if h != 14]  # 14: the legend
    assert high == pytest.approx(4 * low, abs=0.2) and other == pytest.approx(2 * low, abs=0.2)
    assert svg.count('fill="url(#hatch)"') == 2, "the bar of the second series that is not zero, and its legend"
    read = Page(svg)
    assert "中文" in read.words and "≤ 32" in read.words and dict(read.tags)["svg"]["aria-label"] == "长度 & <b>"
    assert charts.columns("none", [], {}, x_label="", y_label="").startswith("<svg")


def test_lines_are_named_in_ink_beside_a_piece_of_the_line():
    svg = charts.lines("Loss", [charts.Line("training", [(0, 4), (10, 2)]), charts.Line("validation", [(0, 5), (10, 3)])], x_label="step", y_label="loss")
    assert set(re.findall(r'<text [^>]*fill="([^"]+)"', svg)) == {charts.INK}
    for colour in (charts.MODEL_COLOUR, charts.OTHER_COLOURS[0]):
        assert svg.count(f'stroke="{colour}"') == 2, "the line and its piece beside the name"
    assert svg.count("stroke-dasharray") == 2
    assert charts.lines("empty", [charts.Line("x", [])], x_label="", y_label="") == ""
