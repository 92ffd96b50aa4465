"""Near-duplicates: what is similar enough is found, what is not is left, and held-out documents win."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from components.config import build
from components.corpus import dedup
from components.corpus.normalisation import document_id, normalise

pytestmark = pytest.mark.code
CLEANING = build({}, where="test").cleaning
DATA = Path(__file__).parents[2].parent / "shared" / "data"
HAN = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜金生丽水玉出昆冈剑号巨阙珠称夜光果珍李柰菜重芥姜海咸河淡鳞潜羽翔"


def shingles_in_words(text: str, language: str) -> set:
    """The definition, slowly: sets of strings."""
    if language == "zh":
        units, width = list(re.sub(r"[\W_]+", "", text)), CLEANING.shingle_chars_zh
    else:
        units, width = re.sub(r"[\W_]+", " ", text).split(), CLEANING.shingle_words_en
    return {tuple(units[i:i + width]) for i in range(max(len(units) - width + 1, 1))} if units else set()


def random_texts(language: str, n: int, rng: random.Random) -> list[str]:
    """n texts of 30 to 120 units, each followed by a copy with a few units changed."""
    units = list(HAN) if language == "zh" else [f"word{i}" for i in range(300)]
    texts = []
    for _ in range(n):
        text = [rng.choice(units) for _ in range(rng.randint(30, 120))]
        changed = list(text)
        for _ in range(rng.randint(0, 3)):
            changed[rng.randrange(len(changed))] = rng.choice(units)
        texts += [("" if language == "zh" else " ").join(t) for t in (text, changed)]
    return texts


@pytest.mark.parametrize("language", ["zh", "en"])
def test_jaccard_is_that_of_the_sets_and_the_pairs_found_are_those_above_the_threshold(language):
    texts = random_texts(language, 60, random.Random(5))
    shingles = dedup.shingle(texts, [language] * len(texts), CLEANING)
    sets = [shingles_in_words(t, language) for t in texts]
    assert shingles.sizes().tolist() == [len(s) for s in sets]
    pairs = list(itertools.combinations(range(len(texts)), 2))
    left, right = (np.array(side) for side in zip(*pairs, strict=True))
    real = np.array([len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a, b in pairs])
    assert dedup.jaccard(shingles, left, right) == pytest.approx(real)
    labels = dedup.components(shingles, CLEANING)
    assert (real >= CLEANING.near_duplicate_jaccard).sum() > 20
    assert [(labels[a] == labels[b]) for a, b in pairs] == (real >= CLEANING.near_duplicate_jaccard).tolist()


def test_batches_and_order_change_nothing(monkeypatch):
    rng = random.Random(6)
    texts = random_texts("zh", 40, rng) + random_texts("en", 40, rng) + ["", "。。。", "好", "one"]
    languages = ["zh"] * 80 + ["en"] * 80 + ["zh", "zh", "zh", "en"]
    ids = [document_id(f"{i} {t}") for i, t in enumerate(texts)]
    splits = [rng.choice(("train", "train", "validation", "test")) for _ in texts]
    found = dedup.near_duplicates(ids, texts, languages, splits, CLEANING)
    monkeypatch.setattr(dedup, "BATCH", 500)
    assert dedup.near_duplicates(ids, texts, languages, splits, CLEANING) == found and len(found) > 40
    order = rng.sample(range(len(texts)), len(texts))
    again = dedup.near_duplicates(*([column[i] for i in order] for column in (ids, texts, languages, splits)), CLEANING)
    assert {ids[order[k]]: v for k, v in again.items()} == {ids[k]: v for k, v in found.items()}


@pytest.mark.parametrize(("splits", "winner", "reason"), [
    (("train", "train", "test"), 2, "near_duplicate_of_test"),
    (("train", "validation", "train"), 1, "near_duplicate_of_validation"),
    (("validation", "test", "train"), 1, "near_duplicate_of_test"),
    (("train", "train", "train"), 0, "near_duplicate"),
])
@pytest.mark.parametrize("text", ["房间很干净，服务员态度也很好，早餐种类丰富，离地铁站走路只要五分钟，下次还会选择这里入住",
                                  "The room was clean, the staff were kind, breakfast was rich, the station is five minutes away "
                                  "and we would gladly come back here with the whole family next summer"])
def test_A8_held_out_wins_then_the_smallest_id(text, splits, winner, reason):
    language = "en" if text.isascii() else "zh"
    texts = [normalise(t) for t in (text, text + "！", text + ("了" if language == "zh" else " again"))]
    ids = [f"{i:016x}" for i in (1, 2, 3)]
    found = dedup.near_duplicates([*ids, "f" * 16], [*texts, "完全不同的一篇文章" if language == "zh" else "something else entirely, for once"],
                                  [language] * 4, [*splits, "test"], CLEANING)
    assert found == {i: (reason, ids[winner]) for i in range(3) if i != winner}


def test_thousands_of_copies_of_one_template_hang_together():
    text = "本店所有商品均为正品，支持七天无理由退换货，请放心购买，如有问题请随时联系客服为您处理，祝您购物愉快，欢迎再次光临本店，编号"
    texts = [text + HAN[i % 60] + HAN[i // 60] for i in range(2000)]
    labels = dedup.components(dedup.shingle(texts, ["zh"] * 2000, CLEANING), CLEANING)
    assert len(set(labels.tolist())) == 1


def test_exact_copies_and_labels_that_contradict():
    kept, dropped = dedup.exact_duplicates(["a", "b", "a", "c", "c", "b"], ["pos", "", "pos", "pos", "neg", "neg"])
    assert kept == [0, 1]
    assert dropped == {2: ("exact_duplicate", "a"), 3: ("conflicting_labels", ""), 4: ("conflicting_labels", ""), 5: ("exact_duplicate", "b")}


def test_off_and_empty():
    off = build({"cleaning.near_duplicate_jaccard": 1.0}, where="test").cleaning
    assert dedup.near_duplicates(["a", "b"], ["same text here"] * 2, ["en"] * 2, ["train"] * 2, off) == {}
    assert dedup.near_duplicates([], [], [], [], CLEANING) == {}
    assert dedup.exact_duplicates([], []) == ([], {})


@pytest.mark.data
@pytest.mark.skipif(not DATA.exists(), reason="development data is not here")
def test_poems_that_two_anthologies_share_are_found():
    folder = DATA / "chinese-poetry" / "宋词"
    famous = json.loads((folder / "宋词三百首.json").read_text(encoding="utf-8"))
    others = [p for path in sorted(folder.glob("ci.song.*.json")) for p in json.loads(path.read_text(encoding="utf-8"))]
    poems = [normalise("\n".join(p["paragraphs"])) for p in [*famous, *others]]
    squeezed = [re.sub(r"[\W_]+", "", p) for p in poems]
    elsewhere = set(squeezed[len(famous):])
    shared = [i for i in range(len(famous)) if squeezed[i] in elsewhere]
    found = dedup.near_duplicates([f"{i:016x}" for i in range(len(poems), 0, -1)], poems, ["zh"] * len(poems), ["train"] * len(poems), CLEANING)
    assert shared and set(shared) <= set(found)
