"""Held out by hash: growing data moves no other document, as far as the docstring of `assign` says."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.config import Splits
from components.corpus.normalisation import document_id
from components.corpus.splits import SPLITS, assign, by_share, minimum

pytestmark = pytest.mark.code


def keys(n: int, salt: str = "") -> list[str]:
    return [document_id(f"文档 {salt} {i}") for i in range(n)]


def test_shares_hold():
    splits = Splits()
    counts = Counter(assign(keys(20_000), ["zh"] * 20_000, splits))
    assert counts["test"] / 20_000 == pytest.approx(splits.test_share, abs=0.006)
    assert counts["validation"] / 20_000 == pytest.approx(splits.validation_share, abs=0.006)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 600), st.integers(0, 600), st.randoms())
def test_adding_documents_moves_only_what_the_minimum_alone_held_out(before, added, rng: random.Random):
    splits = Splits()
    pool = keys(before + added, salt=str(rng.random()))
    languages = [rng.choice(("zh", "en")) for _ in pool]
    old = dict(zip(pool[:before], assign(pool[:before], languages[:before], splits), strict=True))
    new = dict(zip(pool, assign(pool, languages, splits), strict=True))
    sizes = {language: (languages[:before].count(language), languages.count(language)) for language in ("zh", "en")}
    for key, language in zip(pool[:before], languages, strict=False):
        if by_share(key, splits) != "train":
            assert old[key] == new[key] == by_share(key, splits)  # within a share: for ever
        elif old[key] != new[key]:
            assert "train" in (old[key], new[key]), "nothing moves between validation and test"
            if old[key] == "train":  # held out later only where the group reached a new minimum
                assert minimum(sizes[language][0], splits) < minimum(sizes[language][1], splits)


def test_once_the_shares_give_the_minimum_adding_moves_no_document():
    splits, pool = Splits(), keys(3000)
    old = assign(pool[:1500], ["en"] * 1500, splits)
    assert min(Counter(old)[s] for s in ("test", "validation")) > splits.min_held_out_documents
    assert assign(pool, ["en"] * 3000, splits)[:1500] == old
    assert old == [by_share(key, splits) for key in pool[:1500]]


@pytest.mark.parametrize("n", [200, 333])
def test_each_language_with_ten_times_the_minimum_has_the_minimum(n):
    splits = Splits()
    chosen = assign(keys(2 * n), ["zh", "en"] * n, splits)
    counts = Counter(zip(["zh", "en"] * n, chosen, strict=True))
    assert all(counts[language, split] >= splits.min_held_out_documents for language in ("zh", "en") for split in SPLITS)


def test_A20_ten_documents_have_something_held_out_and_order_plays_no_part():
    pool = keys(10)
    chosen = dict(zip(pool, assign(pool, ["zh"] * 10, Splits()), strict=True))
    assert set(chosen.values()) == set(SPLITS)
    assert dict(zip(pool[::-1], assign(pool[::-1], ["zh"] * 10, Splits()), strict=True)) == chosen
    assert assign([], [], Splits()) == []
