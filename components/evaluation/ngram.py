"""Interpolated modified Kneser-Ney over token ids, in numpy.

Chen & Goodman 1998, "An empirical study of smoothing techniques for language modeling", with the counts
of KenLM (Heafield et al. 2013): the highest order, and n-grams that begin at a document's start, keep
their counts; every other n-gram counts the distinct tokens seen before it.

    p(w | h) = (a(hw) - D(a(hw)) + sum_v D(a(hv)) * p(w | h')) / sum_v a(hv),    h' = h less its first token

and below the unigrams stands 1 / vocab_size, so every token has a probability above zero. A document is
`<|endoftext|> t1 … tn <|endoftext|>`: the first is context only, the last an event of training.

N-grams are numbered as in a trie: number(w1…wk) = rank of number(w1…wk-1) * V + wk among those seen, so
orders beyond 64 bits of packed ids need no hashing and nothing collides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

MAX_ORDER = 6
TUNING_TOKENS = 50_000  # validation tokens that the discounts are tuned on, at most
MIN_DISCOUNT = 1e-3  # above 0, so that lower orders always get some mass


@dataclass(frozen=True)
class Level:
    """The n-grams of one order k. N of them; M of order k - 1, which are their contexts."""

    keys_N: np.ndarray  # int64, sorted: number of the first k-1 tokens * V + last token
    counts_N: np.ndarray  # int32, adjusted counts
    totals_M: np.ndarray  # int64, sum of adjusted counts after each context
    kinds_M3: np.ndarray  # int32, how many n-grams after each context have count 1, 2, 3 or more


@dataclass(frozen=True)
class NgramModel:
    levels: tuple[Level, ...]  # order 1 first
    discounts_K3: np.ndarray  # discount of counts 1, 2, 3 or more, an order a row
    vocab_size: int
    eot_id: int
    training_tokens: int

    @property
    def order(self) -> int:
        return len(self.levels)


def stream_of(documents: list[np.ndarray], eot_id: int) -> np.ndarray:
    """`eot d1 eot d2 eot …` as int64."""
    parts = [np.array([eot_id], dtype=np.int64)]
    for ids in documents:
        parts += [np.asarray(ids, dtype=np.int64), parts[0]]
    return np.concatenate(parts)


def standard_discounts(counts: np.ndarray) -> np.ndarray:
    """D1, D2, D3+ from how many n-grams have count 1, 2, 3, 4 (Chen & Goodman, equation 26).

    Small corpora leave some of these at zero; then 0.5, 1, 1.5 stand in.
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == c)) for c in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return np.array([0.5, 1.0, 1.5])
    y = n1 / (n1 + 2 * n2)
    return clamp(np.array([1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]))


def clamp(discounts: np.ndarray) -> np.ndarray:
    """A discount lies above 0 and takes no more than the count itself."""
    return np.clip(discounts, MIN_DISCOUNT, np.array([1.0, 2.0, 3.0]))


def _level(keys_N: np.ndarray, counts_N: np.ndarray, contexts: int, vocab_size: int) -> Level:
    prefix_N = keys_N // vocab_size
    kinds_M3 = np.stack(
        [
            np.bincount(prefix_N[(counts_N == c) if c < 3 else (counts_N >= 3)], minlength=contexts)
            for c in (1, 2, 3)
        ],
        axis=1,
    ).astype(np.int32)
    totals_M = np.bincount(prefix_N, weights=counts_N, minlength=contexts).astype(np.int64)
    return Level(keys_N, counts_N.astype(np.int32), totals_M, kinds_M3)


def train(documents: list[np.ndarray], *, order: int, vocab_size: int, eot_id: int) -> NgramModel:
    """Count, adjust, estimate the discounts. `documents` hold token ids without `<|endoftext|>`.

    3 M tokens at order 5: a few seconds and some hundred megabytes. Raises ValueError for an id outside
    the vocabulary or an order outside 1 to 6.
    """
    if not 1 <= order <= MAX_ORDER:
        raise ValueError(f"order={order}: 1 to {MAX_ORDER} was expected")
    tokens_T = stream_of(documents, eot_id)
    if len(tokens_T) and (tokens_T.min() < 0 or tokens_T.max() >= vocab_size):
        raise ValueError(f"token id {int(tokens_T.max())} is outside the vocabulary of {vocab_size}")
    # number_T: which (k-1)-gram starts here, -1 where none may (it would run over a document's end)
    number_T, unadjusted = tokens_T.copy(), []
    for k in range(2, order + 1):
        end_T = np.full(len(tokens_T), -1, dtype=np.int64)
        end_T[: len(tokens_T) - k + 1] = tokens_T[k - 1 :]
        valid_T = (number_T >= 0) & (end_T >= 0)
        if k > 2:  # an inner <|endoftext|> ends the document
            inner_T = np.roll(tokens_T, -(k - 2)) == eot_id
            valid_T &= ~inner_T
        starts = np.flatnonzero(valid_T)
        keys_N, first, inverse, counts = np.unique(
            number_T[starts] * vocab_size + end_T[starts],
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        unadjusted.append((keys_N, starts[first], counts))
        number_T = np.full(len(tokens_T), -1, dtype=np.int64)
        number_T[starts] = inverse
        unadjusted[-1] += (number_T,)
    return _adjust(tokens_T, unadjusted, vocab_size, eot_id)


def _adjust(
    tokens_T: np.ndarray, unadjusted: list[tuple[np.ndarray, ...]], vocab_size: int, eot_id: int
) -> NgramModel:
    """Counts of occurrences to counts of distinct predecessors, below the highest order."""
    order = len(unadjusted) + 1
    unigrams = np.bincount(tokens_T[1:], minlength=vocab_size)
    levels: list[Level] = []
    contexts = 1
    for k in range(1, order + 1):
        if k == 1:
            keys_N, counts, first = np.arange(vocab_size), unigrams, None
        else:
            keys_N, first, counts, _ = unadjusted[k - 2]
        if k < order:
            starts_above = unadjusted[k - 1][1]
            suffix = (tokens_T if k == 1 else unadjusted[k - 2][3])[starts_above + 1]
            predecessors = np.bincount(suffix, minlength=len(keys_N))
            counts = (
                predecessors if first is None else np.where(tokens_T[first] == eot_id, counts, predecessors)
            )
        levels.append(_level(keys_N, counts, contexts, vocab_size))
        contexts = len(keys_N)
    discounts = np.stack([standard_discounts(level.counts_N) for level in levels])
    return NgramModel(tuple(levels), discounts, vocab_size, eot_id, len(tokens_T) - 1)


@dataclass(frozen=True)
class Features:
    """What each token of a text meets at each order: all that scoring needs, discounts apart."""

    counts_KT: np.ndarray  # int64, adjusted count of the n-gram
    totals_KT: np.ndarray  # int64, of its context; 0: the context was never seen or runs over the start
    kinds_KT3: np.ndarray  # int64
    documents_T: np.ndarray  # which document the token is of


def features(model: NgramModel, documents: list[np.ndarray]) -> Features:
    """Look the tokens up, `<|endoftext|>` being the context of each document's first."""
    tokens_S = stream_of(documents, model.eot_id)
    lengths = np.array([len(ids) for ids in documents], dtype=np.int64)
    documents_T = np.repeat(np.arange(len(documents)), lengths)
    # one <|endoftext|> stands before each document
    at_T = np.arange(int(lengths.sum())) + documents_T + 1
    within_T = at_T - np.repeat(np.cumsum(lengths + 1) - lengths, lengths)  # tokens before it in its document
    shape = (model.order, len(at_T))
    counts_KT, totals_KT, kinds_KT3 = (
        np.zeros(shape, np.int64),
        np.zeros(shape, np.int64),
        np.zeros((*shape, 3), np.int64),
    )
    number_S = np.zeros(len(tokens_S), dtype=np.int64)  # the empty context is number 0
    for k, level in enumerate(model.levels, start=1):
        start_T = at_T - k + 1
        reachable = np.flatnonzero(
            within_T + 1 >= k - 1
        )  # the context begins at the <|endoftext|> or after it
        context = number_S[start_T[reachable]]
        seen = reachable[context >= 0]
        context = context[context >= 0]
        totals_KT[k - 1, seen] = level.totals_M[context]
        kinds_KT3[k - 1, seen] = level.kinds_M3[context]
        number_S = _extend(level, number_S, tokens_S, k, model.vocab_size)
        number = number_S[start_T[seen]]
        counts_KT[k - 1, seen[number >= 0]] = level.counts_N[number[number >= 0]]
    return Features(counts_KT, totals_KT, kinds_KT3, documents_T)


def _extend(level: Level, number_S: np.ndarray, tokens_S: np.ndarray, k: int, vocab_size: int) -> np.ndarray:
    """Number of the k-gram that starts at each place of the text; -1: not seen in training."""
    extended_S = np.full(len(tokens_S), -1, dtype=np.int64)
    starts = np.flatnonzero(number_S[: len(tokens_S) - k + 1] >= 0)
    if not len(starts) or not len(level.keys_N):
        return extended_S
    keys = number_S[starts] * vocab_size + tokens_S[starts + k - 1]
    place = np.minimum(np.searchsorted(level.keys_N, keys), len(level.keys_N) - 1)
    extended_S[starts] = np.where(level.keys_N[place] == keys, place, -1)
    return extended_S


def _step(lower_T: np.ndarray, found: Features, discounts_3: np.ndarray, k: int) -> np.ndarray:
    """Probabilities of order k from those of order k - 1."""
    counts, totals = found.counts_KT[k], found.totals_KT[k]
    taken = np.concatenate([[0.0], discounts_3])[np.minimum(counts, 3)]
    mass = found.kinds_KT3[k] @ discounts_3
    return np.where(totals > 0, (counts - taken + mass * lower_T) / np.maximum(totals, 1), lower_T)


def probabilities(model: NgramModel, found: Features) -> np.ndarray:
    """The probability of each token, shape (T,)."""
    p_T = np.full(found.counts_KT.shape[1], 1 / model.vocab_size)
    for k in range(model.order):
        p_T = _step(p_T, found, model.discounts_K3[k], k)
    return p_T


def document_nats(model: NgramModel, documents: list[np.ndarray]) -> np.ndarray:
    """-log p of each document's tokens, in nats; its `<|endoftext|>` at the end is not counted."""
    found = features(model, documents)
    return np.bincount(
        found.documents_T, weights=-np.log(probabilities(model, found)), minlength=len(documents)
    )


def tune(model: NgramModel, documents: list[np.ndarray]) -> NgramModel:
    """The discounts that code held-out documents best, sought from the standard ones.

    Pattern search, one discount at a time, steps 0.2, 0.1, 0.05 of its range; at most TUNING_TOKENS tokens
    of `documents` are used. Deterministic; never worse than the standard ones on those tokens.
    """
    kept = take_tokens(documents, TUNING_TOKENS)
    found = features(model, kept)
    if not len(found.documents_T):
        return model
    discounts = model.discounts_K3.copy()

    def nats_from(k: int, lower_T: np.ndarray, tried: np.ndarray) -> float:
        for level in range(k, model.order):
            lower_T = _step(lower_T, found, tried[level], level)
        return float(-np.log(lower_T).sum())

    uniform_T = np.full(found.counts_KT.shape[1], 1 / model.vocab_size)
    best = nats_from(0, uniform_T, discounts)
    for step in (0.2, 0.1, 0.05):
        lower_T = uniform_T
        for k in range(model.order):
            for c in range(3):
                for direction in (1, -1):
                    while True:
                        tried = discounts.copy()
                        tried[k, c] += direction * step * (c + 1)
                        tried[k] = clamp(tried[k])
                        nats = nats_from(k, lower_T, tried)
                        if nats >= best - 1e-9:
                            break
                        best, discounts = nats, tried
            lower_T = _step(lower_T, found, discounts[k], k)
    return replace(model, discounts_K3=discounts)


def take_tokens(documents: list[np.ndarray], tokens: int) -> list[np.ndarray]:
    """The first documents up to `tokens` tokens with their `<|endoftext|>`, the last one cut."""
    kept: list[np.ndarray] = []
    for ids in documents:
        if tokens <= 0:
            break
        kept.append(ids[:tokens])
        tokens -= len(ids) + 1
    return kept
