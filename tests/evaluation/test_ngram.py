"""Laws of the Kneser-Ney baseline."""

import math

import numpy as np
import pytest

from components.evaluation import ngram

pytestmark = pytest.mark.code
EOT, V = 0, 12


def corpus(seed: int = 3, documents: int = 60) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.minimum(rng.geometric(0.3, rng.integers(1, 20)), V - 1) for _ in range(documents)]


def probability(model: ngram.NgramModel, context: list[int], token: int) -> float:
    """p(token | a document that began with context)."""
    return float(ngram.probabilities(model, ngram.features(model, [np.array([*context, token])]))[-1])


@pytest.mark.parametrize("order", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("context", [[], [1], [1, 2, 1, 1], [11, 11, 11, 11, 11], [1, 1, 1, 1, 1, 1, 1, 10]])
def test_probabilities_sum_to_one_over_the_vocabulary(order, context):
    model = ngram.tune(ngram.train(corpus(), order=order, vocab_size=V, eot_id=EOT), corpus(9, 20))
    p = [probability(model, context, token) for token in range(V)]
    assert sum(p) == pytest.approx(1, abs=1e-12)
    assert min(p) > 0


def test_order_one_equals_the_computation_by_hand():
    model = ngram.train([np.array([1, 1, 1, 2]), np.array([1, 3])], order=1, vocab_size=5, eot_id=EOT)
    # counts: eot 2 (two ends), 1: 4, 2: 1, 3: 1, 4: 0; nothing has count 3, so D = 0.5, 1, 1.5
    mass = 0.5 * 2 + 1.0 * 1 + 1.5 * 1
    for token, by_hand in {1: 4 - 1.5, 2: 1 - 0.5, 3: 1 - 0.5, 0: 2 - 1.0, 4: 0}.items():
        assert probability(model, [], token) == pytest.approx((by_hand + mass / 5) / 8)


def test_known_bigram_example():
    # eot a b eot a c eot with a=1 b=2 c=3. Distinct predecessors: eot {2,3} 2, a {eot} 1, b {1} 1, c {1} 1
    model = ngram.train([np.array([1, 2]), np.array([1, 3])], order=2, vocab_size=4, eot_id=EOT)
    d1, d2, _ = model.discounts_K3[0]
    mass = 3 * d1 + d2
    low = {t: ((1 - d1) + mass / 4) / 5 for t in (1, 2, 3)}
    e1, e2, _ = model.discounts_K3[1]
    assert probability(model, [1], 2) == pytest.approx(((1 - e1) + 2 * e1 * low[2]) / 2)
    assert probability(model, [], 1) == pytest.approx(((2 - e2) + e2 * low[1]) / 2)
    assert probability(model, [2], 3) == pytest.approx(e1 * low[3])  # b was seen before an end only


def slow_kneser_ney(documents: list[list[int]], order: int) -> dict[int, dict[tuple[int, ...], int]]:
    """Adjusted counts with dictionaries, straight from the definition."""
    seen: list[set] = [set() for _ in range(order + 1)]
    raw: dict[tuple[int, ...], int] = {}
    for document in documents:
        text = [EOT, *document, EOT]
        for end in range(1, len(text)):
            for k in range(1, min(order, end + 1) + 1):
                gram = tuple(text[end - k + 1:end + 1])
                raw[gram] = raw.get(gram, 0) + 1
                seen[k].add(gram)
    adjusted: dict[int, dict[tuple[int, ...], int]] = {}
    for k in range(1, order + 1):
        adjusted[k] = {g: raw[g] if k == order or (k > 1 and g[0] == EOT) else sum(h[1:] == g for h in seen[k + 1])
                       for g in seen[k]}
    return adjusted


@pytest.mark.parametrize("order", [2, 3, 4])
def test_vectorised_counts_equal_the_definition(order):
    documents = corpus(5, 25)
    model = ngram.train(documents, order=order, vocab_size=V, eot_id=EOT)
    adjusted = slow_kneser_ney([d.tolist() for d in documents], order)
    for k, level in enumerate(model.levels, start=1):
        found = sorted(int(c) for c in level.counts_N if c)
        assert found == sorted(adjusted[k].values())


def test_predicts_a_repeated_text_and_reports_nats_a_document():
    documents = [np.array([1, 2, 3, 4, 5, 6])] * 30
    model = ngram.train(documents, order=5, vocab_size=V, eot_id=EOT)
    known, strange = ngram.document_nats(model, [documents[0], np.array([6, 5, 4, 3, 2, 1])])
    assert known < 6 * 0.2 < 6 * math.log(V) < strange


def test_tuning_is_never_worse_on_what_it_is_tuned_on_and_keeps_the_bounds():
    held_out = corpus(11, 30)
    model = ngram.train(corpus(), order=4, vocab_size=V, eot_id=EOT)
    tuned = ngram.tune(model, held_out)
    assert ngram.document_nats(tuned, held_out).sum() <= ngram.document_nats(model, held_out).sum()
    assert (tuned.discounts_K3 > 0).all() and (tuned.discounts_K3 <= [1, 2, 3]).all()
    assert np.array_equal(tuned.discounts_K3, ngram.tune(model, held_out).discounts_K3)


def test_context_never_crosses_a_document():
    model = ngram.train(corpus(), order=5, vocab_size=V, eot_id=EOT)
    a, b = np.array([1, 2, 3]), np.array([2, 2, 1, 4])
    together, alone = ngram.document_nats(model, [a, b]), [ngram.document_nats(model, [d])[0] for d in (a, b)]
    assert together == pytest.approx(alone)


def test_large_vocabularies_do_not_overflow():
    big = 262_144
    documents = [np.array([big - 1, big - 2, big - 3, big - 4, big - 5, big - 6])] * 3
    model = ngram.train(documents, order=6, vocab_size=big, eot_id=EOT)
    assert ngram.document_nats(model, documents[:1])[0] < 6 * math.log(big)


def test_empty_documents_and_texts_shorter_than_the_order():
    model = ngram.train([np.array([1]), np.array([], dtype=np.int64)], order=5, vocab_size=V, eot_id=EOT)
    nats = ngram.document_nats(model, [np.array([1, 2, 3, 4, 5, 6]), np.array([], dtype=np.int64)])
    assert np.isfinite(nats).all() and nats[1] == 0


def test_an_id_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="outside the vocabulary"):
        ngram.train([np.array([V])], order=2, vocab_size=V, eot_id=EOT)


def test_take_tokens_counts_the_separators_and_cuts_the_last():
    kept = ngram.take_tokens([np.arange(4), np.arange(4), np.arange(4)], 7)
    assert [len(k) for k in kept] == [4, 2]
