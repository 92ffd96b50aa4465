"""What a model must beat, as strong as it can simply be made: none is softened.

Language: unigram and Kneser-Ney over the model's own tokens (`ngram.py`), and xz. Applications: the most
frequent answer, TF-IDF with logistic regression, and the answer of the most similar training question.
"""

from __future__ import annotations

import lzma
from collections import Counter

import numpy as np


def unigram_nats(training: list[np.ndarray], documents: list[np.ndarray], vocab_size: int) -> np.ndarray:
    """-log p of each document in nats; p = (count in training + 1) / (tokens in training + vocabulary)."""
    counts_V = np.bincount(
        np.concatenate([np.asarray(ids, dtype=np.int64) for ids in training] or [np.zeros(0, np.int64)]),
        minlength=vocab_size,
    )
    nats_V = -np.log((counts_V + 1) / (counts_V.sum() + vocab_size))
    return np.array([float(nats_V[np.asarray(ids, dtype=np.int64)].sum()) for ids in documents])


def xz_bytes(texts: list[str]) -> int:
    """Size of `xz -9e` of the texts joined by newlines, container included."""
    return len(lzma.compress("\n".join(texts).encode(), preset=9 | lzma.PRESET_EXTREME))


def majority(answers: list[str]) -> str:
    """The most frequent answer; of equals the smallest."""
    return min(Counter(answers).items(), key=lambda item: (-item[1], item[0]))[0] if answers else ""


def vectorizer(language: str, min_documents: int):
    """TF-IDF: characters (1 to 2) for Chinese, words (1 to 2) elsewhere; logarithmic counts.

    `min_documents`: rarer terms are left out.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    if language == "zh":
        return TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True, min_df=min_documents)
    # one-letter words count too: "x" and "a" are questions here
    return TfidfVectorizer(
        analyzer="word", token_pattern=r"\w+", ngram_range=(1, 2), sublinear_tf=True, min_df=min_documents
    )


def tfidf_labels(texts: list[str], labels: list[str], asked: list[str], language: str) -> list[str]:
    """Labels for `asked` by logistic regression on TF-IDF of the training `texts`. Deterministic."""
    if len(set(labels)) < 2:
        return [majority(labels)] * len(asked)
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    # terms of one document teach nothing about another; with few documents nearly all are such
    vectors = vectorizer(language, min_documents=2 if len(texts) >= 200 else 1)
    try:
        known = vectors.fit_transform(texts)
    except ValueError:  # no text holds a single word
        return [majority(labels)] * len(asked)
    model = LogisticRegression(C=10.0, max_iter=300, solver="lbfgs", tol=1e-3)
    with threadpool_limits(1):  # vectors this short are slower on many threads, by far when cores are shared
        return [str(label) for label in model.fit(known, labels).predict(vectors.transform(asked))]


def nearest_answers(texts: list[str], answers: list[str], asked: list[str], language: str) -> list[str]:
    """For each question the answer of the training question with the highest cosine of TF-IDF vectors.

    Of equals the first; with no word in common, the most frequent answer.
    """
    if not texts:
        return [""] * len(asked)
    vectors = vectorizer(language, min_documents=1)
    try:
        known = vectors.fit_transform(texts)
    except ValueError:
        return [majority(answers)] * len(asked)
    fallback, found = majority(answers), []
    rows = 64  # dense similarities of this many questions are held at once
    questions = vectors.transform(asked)
    for start in range(0, len(asked), rows):
        similarity = (questions[start : start + rows] @ known.T).toarray().round(9)
        best = similarity.argmax(axis=1)
        found += [answers[b] if similarity[i, b] > 0 else fallback for i, b in enumerate(best)]
    return found
