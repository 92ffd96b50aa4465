"""Scores against values worked out by hand."""

import pytest

from components.applications import catalogue, scoring
from components.errors import UserError

pytestmark = pytest.mark.code


def test_words_split_chinese_by_character() -> None:
    assert scoring.words("Numpy 数组，a_1！ＡＢ") == ["numpy", "数", "组", "a_1", "ab"]


def test_exact_match_ignores_case_punctuation_and_articles() -> None:
    assert scoring.exact_match("The Answer.", ["answer"]) == 1 and scoring.exact_match("很好", ["很好。", "x"]) == 1
    assert scoring.exact_match("很坏", ["很好"]) == 0


def test_token_f1() -> None:
    assert scoring.token_f1("很好看", ["很好"]) == pytest.approx(2 * 2 / 5)
    assert scoring.token_f1("x y", ["p q", "the x z"]) == pytest.approx(0.5)  # the best of the right answers
    assert scoring.token_f1("", ["x"]) == 0 and scoring.token_f1("...", ["!"]) == 1


def test_rouge_l_respects_order() -> None:
    assert scoring.rouge_l("police killed the gunman", ["police kill the gunman"]) == pytest.approx(0.75)  # Lin 2004, section 3.1
    assert scoring.rouge_l("the gunman kill police", ["police kill the gunman"]) == pytest.approx(0.5)


def test_chrf() -> None:
    assert scoring.chrf("复制链接", ["复制链接"]) == 1 and scoring.chrf("abc", ["xyz"]) == 0
    # order 1: 2 of 3 and 2 of 2; order 2: 1 of 2 and 1 of 1; F2 of the means 7/12 and 1
    precision, recall = (2 / 3 + 1 / 2) / 2, 1.0
    assert scoring.chrf("abc", ["ab"]) == pytest.approx(5 * precision * recall / (4 * precision + recall))


def test_right_answers_and_the_answers_that_say_a_label() -> None:
    record = {"prompt": "q", "answer": "很好", "label": "pos", "metadata": '{"answers": ["很好", "不错"]}'}
    other = {"prompt": "q", "answer": "很坏", "label": "neg", "metadata": "{}"}
    assert catalogue.right_answers(record) == ["很好", "不错"] and catalogue.right_answers(other) == ["很坏"]
    assert catalogue.label_answers([record, other, {"answer": "不知道", "label": ""}]) == {"neg": "很坏", "pos": "很好"}


def test_every_application_of_the_settings_is_in_the_catalogue() -> None:
    from components.config import Finetuning, known_keys

    literal = str(known_keys()["finetuning.applications"].annotation)
    assert all(f"'{name}'" in literal for name in catalogue.APPLICATIONS) and Finetuning()
    with pytest.raises(UserError, match="no application 'chess'"):
        catalogue.application("chess")
