"""Batches by number: the same step always gives the same batch, so a resumed run needs only its step.

B rows, T tokens a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

IGNORED = -100  # a target that is not scored


@dataclass(frozen=True)
class Batch:
    """Rows for one forward pass. `weights_BT` is None where every scored target counts alike."""

    inputs_BT: Tensor  # int64
    targets_BT: Tensor  # int64, IGNORED where nothing is learned
    positions_BT: Tensor | None  # int64, restarting at each document; None: every row is one sequence
    weights_BT: Tensor | None = None  # float32

    def weight(self) -> float:
        """What the sum of the losses is divided by."""
        if self.weights_BT is not None:
            return float(self.weights_BT.double().sum())
        return float((self.targets_BT != IGNORED).sum())

    def to(self, device: str) -> Batch:
        if device == "cpu":
            return self
        move = lambda x: None if x is None else x.pin_memory().to(device, non_blocking=True)  # noqa: E731
        return Batch(move(self.inputs_BT), move(self.targets_BT), move(self.positions_BT), move(self.weights_BT))


def shuffled(n: int, seed: int, epoch: int, salt: int) -> np.ndarray:
    """A permutation of n that depends on the three numbers alone."""
    return np.random.Generator(np.random.PCG64([seed, epoch, salt])).permutation(n)


def positions_in_documents(inputs_BT: np.ndarray, eot_id: int) -> np.ndarray:
    """Distance from the last end-of-text (which opens the next document) or from the start of the row."""
    index_T = np.arange(inputs_BT.shape[1])
    return index_T - np.maximum.accumulate(np.where(inputs_BT == eot_id, index_T, 0), axis=1)


class PackedRows:
    """Pretraining rows, cut from documents laid end to end.

    Each epoch has its own order of documents, all languages shuffled together, so every stretch holds
    them in proportion, and its own order of rows. Every token is the target once an epoch: the last
    row reaches back into the one before it, and what it repeats is not scored.
    """

    def __init__(self, tokens: Sequence[np.ndarray], offsets: Sequence[np.ndarray], *, eot_id: int,
                 rows: int, row_tokens: int, seed: int, isolate: bool = True):
        """`tokens` and `offsets` by language: ids end to end, and where each document starts, plus the end.

        Raises ValueError if there is less than one row of text.
        """
        self.tokens, self.eot_id, self.rows, self.row_tokens, self.seed, self.isolate = list(tokens), eot_id, rows, row_tokens, seed, isolate
        bases = np.cumsum([0, *(len(t) for t in tokens)])
        # places in the languages' tokens laid end to end
        self.starts = np.concatenate([o[:-1] + base for o, base in zip(offsets, bases, strict=False)])
        self.lengths = np.concatenate([np.diff(o) for o in offsets])
        self.bases, self.total = bases, int(self.lengths.sum())
        self.rows_an_epoch = -(-self.total // row_tokens)
        if self.total < row_tokens:
            raise ValueError(f"{self.total} tokens are less than one row of {row_tokens}")
        self._epoch: tuple[int, np.ndarray, np.ndarray, np.ndarray] | None = None

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(end of each document in the epoch's stream, shift from stream to tokens, order of rows)."""
        if self._epoch is None or self._epoch[0] != epoch:
            documents = shuffled(len(self.starts), self.seed, epoch, salt=0)
            ends = np.cumsum(self.lengths[documents])
            shift = self.starts[documents] - (ends - self.lengths[documents])
            self._epoch = (epoch, ends, shift, shuffled(self.rows_an_epoch, self.seed, epoch, salt=1))
        return self._epoch[1:]

    def _gather(self, epoch: int, first_R: np.ndarray) -> np.ndarray:
        """Ids (R, T + 1) of the stream from place `first - 1`; before the first place stands end-of-text."""
        ends, shift, _ = self._order(epoch)
        place = first_R[:, None] - 1 + np.arange(self.row_tokens + 1)
        inside = np.maximum(place, 0).ravel()
        source = inside + shift[np.searchsorted(ends, inside, side="right")]
        if len(self.tokens) == 1:
            ids = self.tokens[0][source].astype(np.int64)
        else:
            ids = np.empty(len(source), dtype=np.int64)
            language = np.searchsorted(self.bases, source, side="right") - 1
            for i, tokens in enumerate(self.tokens):
                mine = language == i
                ids[mine] = tokens[source[mine] - self.bases[i]]
        ids = ids.reshape(place.shape)
        ids[place < 0] = self.eot_id
        return ids

    def batch(self, index: int) -> Batch:
        """Batch number `index`, counted over all epochs; it may straddle two."""
        numbers = np.arange(index * self.rows, (index + 1) * self.rows)
        ids = np.empty((self.rows, self.row_tokens + 1), dtype=np.int64)
        repeated = np.zeros(self.rows, dtype=np.int64)
        for epoch in np.unique(numbers // self.rows_an_epoch):
            mine = numbers // self.rows_an_epoch == epoch
            row = self._order(int(epoch))[2][numbers[mine] % self.rows_an_epoch]
            first = row * self.row_tokens
            repeated[mine] = np.maximum(first + self.row_tokens - self.total, 0)
            ids[mine] = self._gather(int(epoch), first - repeated[mine])
        inputs, targets = ids[:, :-1], ids[:, 1:].copy()
        targets[np.arange(self.row_tokens) < repeated[:, None]] = IGNORED
        positions = torch.from_numpy(positions_in_documents(inputs, self.eot_id)) if self.isolate else None
        return Batch(torch.from_numpy(np.ascontiguousarray(inputs)), torch.from_numpy(targets), positions)


def scored_rows(tokens: np.ndarray, offsets: np.ndarray, *, eot_id: int, row_tokens: int, max_tokens: int, rows: int) -> tuple[list[Batch], int]:
    """Batches that score the first documents once each, and how many documents those are.

    As many whole documents as fit `max_tokens`, at least one. Each token is a target once, given what
    stands before it in its document inside its row.
    """
    documents = max(1, int(np.searchsorted(offsets, max_tokens, side="right")) - 1)
    end = int(offsets[documents])
    ids = np.concatenate([[eot_id], np.asarray(tokens[:end], dtype=np.int64)])
    count = -(-end // row_tokens)
    inputs, targets = np.full(count * row_tokens, eot_id), np.full(count * row_tokens, IGNORED)
    inputs[:end], targets[:end] = ids[:-1], ids[1:]
    inputs_BT, targets_BT = inputs.reshape(count, row_tokens), targets.reshape(count, row_tokens)
    positions_BT = positions_in_documents(inputs_BT, eot_id)
    return [Batch(*(torch.from_numpy(np.ascontiguousarray(x[i:i + rows])) for x in (inputs_BT, targets_BT, positions_BT)))
            for i in range(0, count, rows)], documents


class RecordRows:
    """Fine-tuning batches: records of similar length padded on the right, loss on the answers only.

    Each record of a batch weighs the same, however long its answer, so that one-word labels are learned
    beside paragraphs. Every record is seen once an epoch.
    """

    POOL = 16  # batches whose records are sorted by length together

    def __init__(self, records: Sequence[tuple[Sequence[int], Sequence[int]]], *, rows: int, seed: int, pad_id: int):
        """`records` are (ids, loss_mask) pairs; mask[i] says whether id i is learned."""
        self.records, self.rows, self.seed, self.pad_id = records, rows, seed, pad_id
        self.batches_an_epoch = -(-len(records) // rows)
        self._epoch: tuple[int, list[np.ndarray]] | None = None

    def _order(self, epoch: int) -> list[np.ndarray]:
        if self._epoch is None or self._epoch[0] != epoch:
            order, batches = shuffled(len(self.records), self.seed, epoch, salt=2), []
            lengths = np.array([len(ids) for ids, _ in self.records])
            for start in range(0, len(order), self.POOL * self.rows):
                pool = order[start:start + self.POOL * self.rows]
                pool = pool[np.argsort(lengths[pool], kind="stable")]
                batches += [pool[i:i + self.rows] for i in range(0, len(pool), self.rows)]
            self._epoch = (epoch, [batches[i] for i in shuffled(len(batches), self.seed, epoch, salt=3)])
        return self._epoch[1]

    def batch(self, index: int) -> Batch:
        """Batch number `index`, counted over all epochs."""
        return self.padded(self._order(index // self.batches_an_epoch)[index % self.batches_an_epoch])

    def in_order(self) -> list[Batch]:
        """Every record once, the shortest first."""
        order = sorted(range(len(self.records)), key=lambda i: (len(self.records[i][0]), i))
        return [self.padded(order[i:i + self.rows]) for i in range(0, len(order), self.rows)]

    def padded(self, members: Sequence[int]) -> Batch:
        """The given records as one batch; T is a multiple of 8."""
        longest = max(len(self.records[i][0]) for i in members) - 1
        T = -(-longest // 8) * 8
        inputs = np.full((len(members), T), self.pad_id, dtype=np.int64)
        targets = np.full((len(members), T), IGNORED, dtype=np.int64)
        weights = np.zeros((len(members), T), dtype=np.float32)
        for row, i in enumerate(members):
            ids, mask = (np.asarray(x) for x in self.records[i])
            learned = mask[1:].astype(bool)
            inputs[row, :len(ids) - 1] = ids[:-1]
            targets[row, :len(ids) - 1] = np.where(learned, ids[1:], IGNORED)
            weights[row, :len(ids) - 1] = learned / max(1, learned.sum())
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), None, torch.from_numpy(weights))
