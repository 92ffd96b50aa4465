"""Records follow their documents, no prompt is in two splits, and every record is accounted for."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from components.config import Splits
from components.corpus.normalisation import document_id, normalise
from components.corpus.record_cleaning import clean_records

pytestmark = pytest.mark.code


def record(n: int = 0, **values: str) -> dict:
    return {"id": f"classification:评论.csv#{n:08d}", "application": "classification", "language": "zh", "prompt": f"这条评论是好是坏？第{n}条",
            "answer": "正面", "label": "正面", "source": "评论.csv", "document": "", "metadata": "{}"} | values


def clean(records: list[dict], document_of: dict | None = None, split_of: dict | None = None):
    return clean_records(records, str.strip, document_of or {}, split_of or {}, Splits())


def test_a_record_follows_its_document_or_the_one_that_stayed_for_it():
    done = clean([record(1, document="a#1"), record(2, document="a#2"), record(3, document="a#3")],
                 {"a#1": "d1", "a#2": "d2"}, {"d1": "test", "d2": "validation"})
    found = {r["prompt"][-2]: (r["split"], r["document"]) for r in done.kept}
    assert found["1"] == ("test", "d1") and found["2"] == ("validation", "d2")
    assert found["3"][1] == "" and found["3"][0] in ("train", "validation", "test")


@pytest.mark.parametrize(("english", "chinese"), [("Hello  There", "你好啊"), ("ＯＫ", "好的")])
def test_no_prompt_and_no_group_is_in_two_splits(english, chinese):
    rng = random.Random(3)
    split_of = {f"d{i}": rng.choice(("train", "validation", "test")) for i in range(50)}
    records = []
    for i in range(600):
        n = rng.randrange(200)
        records.append(record(i, application="question_answering", label="", prompt=f"{rng.choice((english, english.lower(), chinese))} {n}", answer=f"{i}",
                              document=rng.choice(("", f"d{n % 50}"))))
    for i in range(100):
        group = f'{{"group": "pair {i}"}}'
        records += [record(i, application="translation", label="", prompt=f"translate {english} {i}", answer=chinese, metadata=group),
                    record(i, application="translation", label="", prompt=f"翻译 {chinese} {i}", answer=english, metadata=group)]
    done = clean(records, {d: d for d in split_of}, split_of)
    splits, groups = defaultdict(set), defaultdict(set)
    for r in done.kept:
        splits[normalise(r["prompt"])].add(r["split"])
        if "group" in r["metadata"]:
            groups[r["metadata"]].add(r["split"])
        if r["document"]:
            assert r["split"] == split_of[r["document"]]
    assert len(splits) > 300 and all(len(s) == 1 for s in splits.values())
    assert len(groups) == 100 and all(len(s) == 1 for s in groups.values())
    assert len(done.kept) + len(done.dropped) == len(records)
    assert {reason for _, reason, _ in done.dropped} <= {"prompt_of_test", "prompt_of_validation", "exact_duplicate"}


def test_a_prompt_that_is_a_document_goes_with_it():
    poem = "床前明月光，疑是地上霜"
    for split in ("train", "validation", "test"):
        done = clean([record(prompt=poem, application="text_generation", label="")], {}, {document_id(poem): split})
        assert done.kept[0]["split"] == split


def test_records_that_repeat_or_contradict_are_dropped_with_their_reason():
    done = clean([record(1), record(1, id="classification:b#00000009"), record(2), record(2, label="负面", answer="负面"),
                  record(3, prompt=" \n"), record(4, answer=""), record(5, application="question_answering", label="", answer="a"),
                  record(5, application="question_answering", label="", answer="b")])
    assert sorted((r["id"], reason) for r, reason, _ in done.dropped) == [
        ("classification:b#00000009", "exact_duplicate"), ("classification:评论.csv#00000002", "conflicting_labels"),
        ("classification:评论.csv#00000002", "conflicting_labels"), ("classification:评论.csv#00000003", "empty_prompt"),
        ("classification:评论.csv#00000004", "empty_answer")]
    assert len(done.kept) == 3, "two answers to one question may both be right"
    assert next(k for _, reason, k in done.dropped if reason == "exact_duplicate") in {r["id"] for r in done.kept}
    assert [r["id"] for r in done.kept] == sorted(r["id"] for r in done.kept)


def test_strays_fill_the_minimum_of_their_application_and_language():
    records = [record(i, prompt=f"第{i}个问题", application="question_answering", label="") for i in range(200)]
    records += [record(i, prompt=f"question {i}", application="question_answering", label="", language="en") for i in range(200)]
    held_out = defaultdict(int)
    for r in clean(records).kept:
        held_out[r["language"], r["split"]] += 1
    assert min(held_out.values()) >= Splits().min_held_out_documents and len(held_out) == 6
