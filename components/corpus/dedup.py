"""Near-duplicates: MinHash and LSH propose pairs, the real Jaccard similarity of shingles decides.

Broder 1997 (resemblance), Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3. Everything
is arithmetic on arrays with fixed constants, so the same texts give the same pairs on every machine.
Memory: one uint32 a shingle plus one signature a document; work arrays are bounded by BATCH.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from components.config import Cleaning
from components.corpus.splits import SPLITS

BATCH = 2**21  # characters, or shingles, worked on at a time
MAX_STEPS = 16  # a bucket is compared with this many neighbours; larger buckets hang together as a chain
_NOT_WORD = re.compile(r"[\W_]+")
_PRIME = np.uint64(0x9E3779B97F4A7C15)  # odd; the golden ratio in 64 bits


@dataclass(frozen=True)
class Shingles:
    """Distinct shingles of N documents: those of document i are hashes[starts[i]:starts[i + 1]], sorted."""

    hashes: np.ndarray  # uint32
    starts: np.ndarray  # int64, N + 1

    def sizes(self) -> np.ndarray:
        return np.diff(self.starts)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _windows(values: np.ndarray, owners: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Hash of each run of `width` values with one owner -> (hashes uint64, owners).

    An owner with fewer values than `width` gives one shorter run, so that short texts compare as a whole.
    """
    n = len(values)
    if not n:
        return values, owners
    first = np.flatnonzero(np.r_[True, owners[1:] != owners[:-1]])
    ends = np.repeat(np.r_[first[1:], n], np.diff(np.r_[first, n]))  # end of the owner of each position
    positions = np.arange(n)
    hashes = np.zeros(n, np.uint64)
    for step in range(width):
        inside = positions + step < ends
        part = np.zeros(n, np.uint64)
        part[inside] = _mix(values[positions[inside] + step] + np.uint64(step + 1))
        hashes = _mix(hashes * _PRIME + part)
    kept = positions + width <= ends
    kept[first] = True
    return hashes[kept], owners[kept]


def _words(codes: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Code points with spaces between words -> (hash of each word, its owner)."""
    letters = codes != 32
    if not letters.any():
        return codes[:0], owners[:0]
    before = np.r_[False, letters[:-1]] & np.r_[False, owners[1:] == owners[:-1]]
    starts = np.flatnonzero(letters & ~before)
    word = np.cumsum(letters & ~before)[letters] - 1
    at = np.flatnonzero(letters)
    parts = _mix(codes[at] * _PRIME + (at - starts[word]).astype(np.uint64))
    return np.add.reduceat(parts, np.flatnonzero(np.r_[True, word[1:] != word[:-1]])), owners[starts]


def _batches(lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    """Slices of documents whose lengths add up to about BATCH (one longer document makes its own)."""
    sums, begin = np.cumsum(lengths), 0
    while begin < len(lengths):
        done = sums[begin - 1] if begin else 0
        end = max(int(np.searchsorted(sums, done + BATCH, side="right")), begin + 1)
        yield begin, end
        begin = end


def shingle(normalised: Sequence[str], languages: Sequence[str], cleaning: Cleaning) -> Shingles:
    """Distinct shingles of texts under `normalise`; punctuation makes no difference.

    Chinese: `shingle_chars_zh` characters in a row. Others: `shingle_words_en` words in a row.
    """
    chinese = np.array([language == "zh" for language in languages], bool)
    texts = [_NOT_WORD.sub("" if zh else " ", text) for text, zh in zip(normalised, chinese, strict=True)]
    lengths = np.array([len(t) for t in texts], np.int64)
    hashes, sizes = [], np.zeros(len(texts), np.int64)
    for begin, end in _batches(lengths):
        codes = np.frombuffer("".join(texts[begin:end]).encode("utf-32-le"), np.uint32).astype(np.uint64)
        owners = np.repeat(np.arange(begin, end), lengths[begin:end])
        zh = chinese[owners]
        pairs = [_windows(codes[zh], owners[zh], cleaning.shingle_chars_zh),
                 _windows(*_words(codes[~zh], owners[~zh]), cleaning.shingle_words_en)]
        # owner above, hash below, in one number: sorting it groups documents and finds repeats
        keys = np.sort(np.concatenate([((o - begin).astype(np.uint64) << np.uint64(32)) | (h >> np.uint64(32))
                                       for h, o in pairs]))
        keys = keys[np.r_[True, keys[1:] != keys[:-1]]] if len(keys) else keys  # np.unique hashes: 8 times slower
        hashes.append(keys.astype(np.uint32))
        sizes[begin:end] = np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=end - begin)
    return Shingles(np.concatenate(hashes) if hashes else np.zeros(0, np.uint32), np.r_[0, np.cumsum(sizes)])


def signatures(shingles: Shingles, permutations: int) -> np.ndarray:
    """MinHash: [documents with a shingle or more, permutations] uint32. Multiply-shift hashing, fixed seeds."""
    seeds = _mix(np.arange(1, 2 * permutations + 1, dtype=np.uint64) * _PRIME)
    factors, terms = seeds[:permutations] | np.uint64(1), seeds[permutations:]
    sizes = shingles.sizes()
    filled = np.flatnonzero(sizes)
    out = np.empty((len(filled), permutations), np.uint32)
    for begin, end in _batches(sizes[filled]):
        low, high = shingles.starts[filled[begin]], shingles.starts[filled[end - 1] + 1]
        values = _mix(shingles.hashes[low:high].astype(np.uint64) + _PRIME)
        firsts = shingles.starts[filled[begin:end]] - low
        for p in range(permutations):
            hashed = ((values * factors[p] + terms[p]) >> np.uint64(32)).astype(np.uint32)
            out[begin:end, p] = np.minimum.reduceat(hashed, firsts)
    return out


def jaccard(shingles: Shingles, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The real Jaccard similarity of each pair of documents -> float64, one a pair."""
    sizes, result = shingles.sizes(), np.zeros(len(left))
    for begin, end in _batches(sizes[left] + sizes[right]):
        members = np.concatenate([left[begin:end], right[begin:end]])
        counts = sizes[members]
        total = int(counts.sum())
        if not total:
            continue
        offsets = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
        pair = np.tile(np.arange(end - begin), 2)
        keys = np.sort((np.repeat(pair, counts).astype(np.uint64) << np.uint64(32))
                       | shingles.hashes[np.repeat(shingles.starts[members], counts) + offsets])
        shared = keys[1:][keys[1:] == keys[:-1]] >> np.uint64(32)
        both = np.bincount(shared.astype(np.int64), minlength=end - begin)
        union = sizes[left[begin:end]] + sizes[right[begin:end]] - both
        result[begin:end] = both / np.maximum(union, 1)
    return result


def components(shingles: Shingles, cleaning: Cleaning) -> np.ndarray:
    """Label of the group of near-duplicates of each document -> int32, N.

    Documents hang together when a chain of pairs, each at least `near_duplicate_jaccard` similar, joins them.
    A pair at the threshold 0.8 is proposed with a chance of 0.9998 (64 permutations, 16 bands); no pair below
    the threshold is ever joined, as the real similarity decides.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n, threshold = len(shingles.starts) - 1, cleaning.near_duplicate_jaccard
    labels = np.arange(n, dtype=np.int32)
    filled = np.flatnonzero(shingles.sizes())
    if threshold >= 1 or len(filled) < 2:
        return labels
    signature = signatures(shingles, cleaning.minhash_permutations)
    sizes, rows = shingles.sizes(), cleaning.minhash_permutations // cleaning.minhash_bands
    edges: list[np.ndarray] = []
    for band in range(cleaning.minhash_bands):
        keys = np.zeros(len(filled), np.uint64)
        for column in range(band * rows, (band + 1) * rows):
            keys = _mix(keys * _PRIME + signature[:, column])
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for step in range(1, MAX_STEPS + 1):
            same = np.flatnonzero(keys[step:] == keys[:-step])
            if not len(same):
                break
            left, right = filled[order[same]], filled[order[same + step]]
            small, large = np.minimum(sizes[left], sizes[right]), np.maximum(sizes[left], sizes[right])
            open_ = (labels[left] != labels[right]) & (small >= threshold * large)  # the rest cannot matter
            left, right = left[open_], right[open_]
            close = jaccard(shingles, left, right) >= threshold
            if close.any():
                edges.append(np.stack([left[close], right[close]]))
                joined = np.concatenate(edges, axis=1)
                graph = coo_array((np.ones(joined.shape[1], np.int8), tuple(joined)), shape=(n, n))
                labels = connected_components(graph, directed=False)[1]
    return labels


def near_duplicates(ids: Sequence[str], normalised: Sequence[str], languages: Sequence[str], splits: Sequence[str],
                    cleaning: Cleaning) -> dict[int, tuple[str, str]]:
    """Which documents to drop -> {index: (reason, id of the one that stays)}. ids: distinct.

    Of a group of near-duplicates one stays: a test document before a validation document before a train
    document, then the smallest id. The reason names the split of the winner where that is not train.
    """
    labels = components(shingle(normalised, languages, cleaning), cleaning)
    held_out_first = {split: -rank for rank, split in enumerate(SPLITS)}
    groups: dict[int, list[int]] = {}
    for index in np.flatnonzero(np.bincount(labels, minlength=1)[labels] > 1).tolist():
        groups.setdefault(int(labels[index]), []).append(index)
    dropped = {}
    for members in groups.values():
        winner = min(members, key=lambda i: (held_out_first[splits[i]], ids[i]))
        reason = "near_duplicate" if splits[winner] == "train" else f"near_duplicate_of_{splits[winner]}"
        dropped |= {i: (reason, ids[winner]) for i in members if i != winner}
    return dropped


def exact_duplicates(ids: Sequence[str], labels: Sequence[str]) -> tuple[list[int], dict[int, tuple[str, str]]]:
    """Documents that share an id -> (indices that stay, {index: (reason, id that stays or '')}).

    Of equal documents the first stays. labels: the class of each document, '' for none. Copies whose labels
    contradict are all dropped (conflicting_labels): none of them can be trusted.
    """
    copies: dict[str, list[int]] = {}
    for index, key in enumerate(ids):
        copies.setdefault(key, []).append(index)
    kept, dropped = [], {}
    for key, members in copies.items():
        if len({labels[i] for i in members} - {""}) > 1:
            dropped |= {i: ("conflicting_labels", "") for i in members}
        else:
            kept.append(members[0])
            dropped |= {i: ("exact_duplicate", key) for i in members[1:]}
    return kept, dropped
