"""The validation page: told apart without colour, read by keyboard and on paper, and nothing in it comes alive."""

from __future__ import annotations

import itertools
import re

import pytest
from page_reading import Page

from components.corpus import page, validation_page

pytestmark = pytest.mark.code

BAD = "<script>alert('坏')</script>\0\x1b[31m \u202e味道"


def result(name: str, *, severity: str = "block", state: str = "passed", at_fault: int = 0, checked: int = 90, rows: int = 0, **more) -> dict:
    examples = [{"source": "评论/坏.jsonl", "row": 7 + i, "detail": "control ratio = 0.5", "text": BAD} for i in range(rows)]
    return {"name": name, "sentence": f"Sentence of {name}.", "severity": severity, "state": state, "success": state == "passed", "checked": checked,
            "blocks": state != "passed" and (severity == "block" or state != "failed"), "at_fault": at_fault, "detail": "", "advice": "Mend the rows",
            "examples": examples, **more}


FINE = [result("columns_present"), result("source_present", severity="quarantine")]
SET_ASIDE = [result("few_control_characters", severity="quarantine", state="failed", at_fault=37, rows=10),
             result("texts_differ", severity="warn", state="failed", at_fault=1, checked=1, detail="3.0% of 90 texts are distinct")]
SAID_NO = [result("min_documents", state="failed", at_fault=1, checked=1, detail="2 documents", advice="Give more text"),
           result("text_within_limit", severity="warn", state="could not be run", detail="ZeroDivisionError: <b>division</b>")]


def told(*results: dict, rows: int = 90, kept: int = 53) -> dict:
    return {"suite": "raw", "what": "raw documents", "success": not any(r["blocks"] for r in results), "rows": rows, "rows_kept": kept, "results": list(results)}


EVERYTHING = told(*FINE, *SET_ASIDE, *SAID_NO, result("languages_known", state="not run", checked=0))


# --- colours -------------------------------------------------------------------------------------

def linear(colour: str) -> list[float]:
    values = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    return [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, from 1 to 21."""
    low, high = sorted(sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear(c), strict=True)) for c in (one, other))
    return (high + 0.05) / (low + 0.05)


# How linear RGB looks without red, green or blue cones: Machado, Oliveira and Fernandes 2009, severity 1.
SEEN = {
    "all cones": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def lab(colour: str, eye: str) -> list[float]:
    r, g, b = (min(max(sum(m * v for m, v in zip(row, linear(colour), strict=True)), 0), 1) for row in SEEN[eye])
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505, 0.2126 * r + 0.7152 * g + 0.0722 * b, (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089))
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)]


@pytest.mark.parametrize("theme", page.THEMES)
def test_every_text_has_the_contrast_that_wcag_aa_asks_for(theme):
    inks = page.THEMES[theme]
    for ink, ground in itertools.product(("ink", "quiet", "link"), ("paper", "wash")):
        assert contrast(inks[ink], inks[ground]) >= 4.5, (theme, ink, ground)
    for badge in page.BADGES.values():
        assert contrast(badge.ink, badge.colour) >= 4.5, badge
    style = page.style()
    for name, value in inks.items():  # the colours computed are those of the style sheet, and it has no other
        assert f"--{name}:{value}" in style
    assert set(re.findall(r"#[0-9a-f]{3,8}\b", style)) == {v for inks in page.THEMES.values() for v in inks.values()}


@pytest.mark.parametrize("eye", SEEN)
def test_states_differ_for_every_eye(eye):
    for one, other in itertools.combinations(page.BADGES.values(), 2):
        distance = sum((a - b) ** 2 for a, b in zip(lab(one.colour, eye), lab(other.colour, eye), strict=True)) ** 0.5
        assert distance >= 15, f"{one.word} and {other.word} look alike: {distance:.1f} (2.3 is just noticeable)"


def test_states_differ_by_word_and_by_sign_too():
    assert len({b.word for b in page.BADGES.values()}) == len({b.sign for b in page.BADGES.values()}) == len(page.BADGES)
    text = Page(validation_page.render(EVERYTHING)).words
    for b in page.BADGES.values():
        assert f"{b.sign} {b.word}" in text
    assert set(validation_page.MEANINGS) == set(page.BADGES)


# --- what it says --------------------------------------------------------------------------------

def test_the_verdict_comes_first_in_one_sentence_then_counts_then_what_was_found():
    words = Page(validation_page.render(EVERYTHING)).words
    order = ["Validation of the raw documents", "✗ blocked The chain stops here: 2 expectations of 7 said no (min_documents, text_within_limit).",
             "✗ blocked 1 expectation: the chain stops here", "⊘ quarantined 1 expectation", "! warned 1 expectation", "✓ passed 2 expectations",
             "What was found", "Sentence of min_documents.", "2 documents. Give more text.", "Sentence of text_within_limit.",
             "Sentence of few_control_characters.", "37 of 90 rows are at fault. Mend the rows.", "Sentence of texts_differ.", "All expectations"]
    places = [words.find(part) for part in order]
    assert -1 not in places and places == sorted(places), dict(zip(order, places, strict=True))
    assert Page(validation_page.render(EVERYTHING)).row("90") == ["90", "37", "53"]


@pytest.mark.parametrize(("results", "kept", "sentence"), [
    (FINE, 90, "The chain may go on: every expectation holds."),
    ([*FINE, *SET_ASIDE], 53, "The chain may go on, with 37 rows set aside and 1 warning."),
    ([*FINE, SET_ASIDE[1]], 90, "The chain may go on, with 1 warning."),
])
def test_the_verdict_of_a_suite_that_passed(results, kept, sentence):
    assert validation_page.headline(told(*results, kept=kept)) == ("passed", sentence)
    words = Page(validation_page.render(told(*results, kept=kept))).words
    assert sentence in words and ("Nothing: every expectation" in words) == (results is FINE)


def test_ten_rows_stand_beside_their_expectation_and_the_page_says_how_many_more_there_are():
    read = Page(validation_page.render(EVERYTHING))
    assert read.words.count("评论/坏.jsonl") == 10 and "The first 10 of 37 rows at fault" in read.words
    html = validation_page.render(EVERYTHING)
    section = html[html.index('id="few_control_characters"'):html.index('id="texts_differ"')]
    assert section.count("<tr>") == 11 and "control ratio = 0.5" in section


# --- how it is read ------------------------------------------------------------------------------

def test_J12_nothing_comes_alive_and_no_link_leads_outside():
    html = validation_page.render(EVERYTHING)
    read = Page(html)
    read.check()
    assert html.count("<script") == 1 and "<b>" not in html and "\0" not in html and "\x1b" not in html and "\u202e" not in html
    assert r"\x00\x1b[31m \u202e味道" in read.words and "<script>alert('坏')</script>" in read.words
    assert "default-src 'none'" in html and "://" not in html
    assert len(read.links) > 8


def test_chinese_is_marked_as_chinese_and_has_fonts():
    read = Page(validation_page.render(told(result("texts_differ", severity="warn", state="failed", at_fault=2, examples=[
        {"source": "a.txt", "row": 1, "detail": "blank", "text": "今天天气很好"}, {"source": "a.txt", "row": 2, "detail": "blank", "text": "Добрый день"}]))))
    attributes = dict(read.cells)
    assert attributes["今天天气很好"]["lang"] == "zh" and attributes["Добрый день"] == {"class": "t", "lang": "", "dir": "auto"} and "lang" not in attributes["blank"]
    style = page.style()
    assert ":lang(zh){font-family:\"PingFang SC\"" in style and "Noto Sans CJK SC" in style and "WenQuanYi" in style
    assert 'charset="utf-8"' in validation_page.render(EVERYTHING)


def test_keyboard_dark_screens_and_paper_are_thought_of():
    html = validation_page.render(EVERYTHING)
    assert "prefers-color-scheme:dark" in html and "color-scheme:light dark" in html and "@media print" in html and ":focus-visible" in html
    assert "@media screen and (prefers-color-scheme:dark)" in html, "paper stays white"
    read = Page(html)
    scrolled = [attrs for _, attrs in read.tags if attrs.get("class") == "scroll"]
    assert scrolled and all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in scrolled)
    assert all(attrs.get("scope") == "col" for tag, attrs in read.tags if tag == "th")


def test_what_cannot_be_seen_or_written_is_shown_as_its_number():
    assert page.shown("a\udcffb\r\n\t\x85\u3000") == "a\\udcffb\\r\n\t\\x85\u3000"
