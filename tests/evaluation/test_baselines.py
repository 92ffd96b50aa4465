"""What the baselines promise."""

import lzma
import math

import numpy as np
import pytest

from components.evaluation import baselines

pytestmark = pytest.mark.code


def test_unigram_equals_the_computation_by_hand_and_sums_to_one():
    training = [np.array([1, 1, 2]), np.array([1])]
    nats = baselines.unigram_nats(training, [np.array([1, 2]), np.array([3])], vocab_size=4)
    assert nats == pytest.approx([-math.log(4 / 8) - math.log(2 / 8), -math.log(1 / 8)])
    each = baselines.unigram_nats(training, [np.array([i]) for i in range(4)], vocab_size=4)
    assert np.exp(-each).sum() == pytest.approx(1)


def test_xz_is_that_of_the_texts_joined_by_newlines():
    texts = ["好书" * 50, "a king " * 40]
    assert lzma.decompress(lzma.compress("\n".join(texts).encode(), preset=9 | lzma.PRESET_EXTREME)).decode() == "\n".join(texts)
    assert baselines.xz_bytes(texts) == len(lzma.compress("\n".join(texts).encode(), preset=9 | lzma.PRESET_EXTREME)) < 200


def test_majority_of_equals_is_the_smallest():
    assert baselines.majority(["b", "a", "a", "b"]) == "a"
    assert baselines.majority([]) == ""


@pytest.mark.parametrize(("language", "positive", "negative"), [
    ("zh", ["很好看，喜欢", "非常好的书", "好极了"], ["太差了，失望", "很差的质量", "差劲"]),
    ("en", ["a good fine book", "good and fine", "fine good play"], ["a bad poor book", "bad and poor", "poor bad play"])])
def test_tfidf_learns_words_and_characters(language, positive, negative):
    texts, labels = positive * 3 + negative * 3, ["pos"] * 9 + ["neg"] * 9
    asked = [positive[0], negative[0]]
    assert baselines.tfidf_labels(texts, labels, asked, language) == ["pos", "neg"]
    assert baselines.tfidf_labels(texts, ["pos"] * 18, asked, language) == ["pos", "pos"]


def test_nearest_question_answers_with_the_answer_of_the_most_similar_one():
    questions, answers = ["你是谁", "今天天气好吗"], ["我是机器人", "天气很好"]
    assert baselines.nearest_answers(questions, answers, ["天气怎么样", "xyz"], "zh") == ["天气很好", "天气很好"]
    assert baselines.nearest_answers(["who are you", "what is AI"], ["a robot", "a science"], ["tell me what AI is"], "en") == ["a science"]
    assert baselines.nearest_answers([], [], ["?"], "en") == [""]


def test_texts_without_a_single_word_fall_back_to_the_majority():
    assert baselines.tfidf_labels(["!!", "??"], ["a", "b"], ["…"], "en") == ["a"]
    assert baselines.nearest_answers(["!!", "??"], ["a", "b"], ["…"], "en") == ["a"]
