"""Mending changes what is broken and nothing else; every reason to drop has a text that earns it."""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.config import build
from components.corpus import cleaning
from components.corpus.normalisation import document_id, normalise, record_id

pytestmark = pytest.mark.code
SETTINGS = build({}, where="test").cleaning
DATA = Path(__file__).parents[2].parent / "shared" / "data"


def mend(text: str) -> str:
    return cleaning.mend(text, fix_mojibake=True)


@pytest.mark.parametrize(("broken", "whole"), [
    ("schÃ¶n und grÃ¼n", "schön und grün"),
    ("它说：ä½\xa0å¥½", "它说：你好"),
    ("è¿™æ˜¯ä¸€ä¸ªæµ‹è¯•ã€‚", "这是一个测试。"),
    ("first line\r\nä½\xa0å¥½\x85", "first line\n你好…"),  # U+0085 alone: Windows wrote an ellipsis there
    ("Cafe\u0301", "Café"),
    ("a\r\nb\rc\u2028d\u2029e é", "a\nb\nc\nd\ne é"),
    ("zero\u200bwidth\ufeff and soft\u00adhyphen", "zerowidth and softhyphen"),
    ("\u202eevil\u202c direction 中", "evil direction 中"),
    ("bell\x07 and \x1b[1m", "bell and [1m"),
    ("非\u00a0断\u2003空格", "非 断 空格"),
    ("def f():\n    return 1  \n\n\n\n\nend \n", "def f():\n    return 1\n\nend"),
    ("　　段首缩进\n第二行　", "　　段首缩进\n第二行"),
    ("👨\u200d👩\u200d👧 می\u200cخواهم", "👨\u200d👩\u200d👧 می\u200cخواهم"),
    ("全角ＡＢＣ，标点。「引号」", "全角ＡＢＣ，标点。「引号」"),
])
def test_mending(broken, whole):
    assert mend(broken) == whole


def test_mojibake_is_left_alone_where_the_setting_says_so():
    assert cleaning.mend("schÃ¶n", fix_mojibake=False) == "schÃ¶n"


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("aé Ã\x00\x07\t\n\r\u0085\u00a0\u200b\u0301\u3000\ufeff。好哈1-"), max_size=40))
def test_A4_mended_text_is_nfc_without_control_characters_and_mending_again_changes_nothing(text):
    once = cleaning.mend(text, fix_mojibake=False)
    assert cleaning.mend(once, fix_mojibake=False) == once
    assert unicodedata.is_normalized("NFC", once)
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in once)


@pytest.mark.parametrize(("text", "reason"), [
    ("", "empty"), (" \u3000\n", "empty"), ("好吃。", "too_short"), ("OK then", "too_short"),
    ("2015-07-04 12:33 (+86) 010-5555", "low_letter_ratio"), ("还行。。。。。。。。。。。。", "low_letter_ratio"),
    ("赞！赞！赞！赞！赞！赞！", "too_repetitive"), ("哈哈哈哈哈哈哈哈哈哈", "too_repetitive"), ("buy now\nbuy now\nbuy now\n", "too_repetitive"),
    ("味道不错，送餐也快，下次再来。", None), ("The tea was warm; the room was not.", None),
    ("床前明月光，\n疑是地上霜。\n举头望明月，\n低头思故乡。", None),
])
def test_reasons_to_drop(text, reason):
    assert cleaning.reason_to_drop(text, SETTINGS) == reason


def test_each_filter_gives_its_own_name_as_the_reason():
    examples = {"empty": "", "too_short": "a", "low_letter_ratio": "12345678", "too_repetitive": "哈" * 9}
    assert {name: judge(examples[name], SETTINGS) for name, judge in cleaning.FILTERS.items()} == {name: name for name in examples}


def test_ids_are_frozen_and_blind_to_case_width_and_spacing():
    assert document_id("Hello, world") == document_id("  hello,\n WORLD ") == "09ca7e4eaa6e8ae9"
    assert document_id("ＡＢＣ１２３ 你好") == document_id("abc123 你好") == "596ec3f21bf7216a"
    assert document_id("你好") != document_id("您好")
    assert record_id("classification", "好吃吗", "好") != record_id("question_answering", "好吃吗", "好")
    assert record_id("x", "a", "b c") != record_id("x", "a b", "c")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_normalising_twice_changes_nothing_more(text):
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.data
@pytest.mark.skipif(not DATA.exists(), reason="development data is not here")
def test_real_reviews_and_articles_are_mended_once_and_hardly_dropped():
    with open(DATA / "waimai-10k" / "waimai_10k.csv", encoding="utf-8-sig", newline="") as f:
        reviews = [row[1] for row in csv.reader(f)][1:3000]
    articles = [line for line in (DATA / "wikitext-2" / "valid.txt").read_text(encoding="utf-8").split("\n") if len(line) > 200]
    for texts in (reviews, articles):
        mended = [mend(t) for t in texts]
        assert all(mend(t) == t for t in mended)
        reasons = [cleaning.reason_to_drop(t, SETTINGS) for t in mended]
        assert sum(r in ("low_letter_ratio", "too_repetitive") for r in reasons) < 0.03 * len(texts)
