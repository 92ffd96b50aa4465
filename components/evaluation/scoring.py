"""How much a model is surprised by tokens: nats of documents and of answers, in fixed batches.

B rows, T tokens a row, V vocabulary. Rows are sorted by length, so that padding is small, and the batches
depend on the rows alone: the same documents give the same bits on one machine with the same threads.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from components.training.threads import keep_memory

MAX_LOGITS = 2**25  # numbers of one batch's logits: 128 MiB in float32
MAX_BATCH_TOKENS = 4096  # inputs of one batch


@dataclass(frozen=True)
class Row:
    """Token ids, of which those from `first_scored` on are scored; everything before is context."""

    ids: np.ndarray
    first_scored: int
    owner: int  # which document or answer the nats belong to


@contextlib.contextmanager
def exact(threads: int) -> Iterator[None]:
    """Pinned threads, deterministic algorithms, no gradients; what was set before comes back."""
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # without it, CUDA refuses to be deterministic
    before = (
        torch.get_num_threads(),
        torch.get_deterministic_debug_mode(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    keep_memory()
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(
        "error"
    )  # what use_deterministic_algorithms does, without its import of the compiler (2 s)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing reads memory that nobody wrote
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_deterministic_debug_mode(before[1])
        torch.utils.deterministic.fill_uninitialized_memory = before[2]


def windows(ids: np.ndarray, eot_id: int, window: int, owner: int) -> list[Row]:
    """Cut `<|endoftext|>` + document into rows of at most `window` inputs; each token is scored once.

    After the first window a new one starts every window // 2 tokens and scores what the one before did
    not reach, so such a token has at least window // 2 tokens of context.
    """
    if not len(ids):
        return []
    text = np.concatenate([[eot_id], np.asarray(ids, dtype=np.int64)])
    stride = max(1, window // 2)
    rows, scored_to = [], 1
    for start in range(0, len(text), stride):
        end = min(start + window + 1, len(text))  # window inputs have window targets, one place on
        rows.append(Row(text[start:end], scored_to - start, owner))
        scored_to = end
        if end == len(text):
            break
    return rows


def _batches(rows: list[Row], vocab_size: int) -> Iterator[list[Row]]:
    limit = max(1, min(MAX_BATCH_TOKENS, MAX_LOGITS // vocab_size))
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].ids), i))
    while order:
        count = max(1, limit // max(1, len(rows[order[0]].ids) - 1))
        yield [rows[i] for i in order[:count]]
        order = order[count:]


def row_nats(
    model: torch.nn.Module,
    rows: list[Row],
    owners: int,
    *,
    vocab_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Nats of the scored tokens, summed by owner; shape (owners,), float64.

    `model(inputs_BT, None, select_N)` gives the logits (N, V) of the flat places `select_N`. Raises
    ValueError for a row without context.
    """
    nats = np.zeros(owners)
    device = next(model.parameters()).device
    done = 0
    for batch in _batches(rows, vocab_size):
        if any(row.first_scored < 1 for row in batch):
            raise ValueError("a row needs at least one token of context before the first that is scored")
        size = max(len(row.ids) for row in batch) - 1
        inputs = np.zeros((len(batch), size), dtype=np.int64)
        targets = np.full((len(batch), size), -1, dtype=np.int64)
        for i, row in enumerate(batch):  # padding on the right: a causal model never looks there
            inputs[i, : len(row.ids) - 1] = row.ids[:-1]
            targets[i, row.first_scored - 1 : len(row.ids) - 1] = row.ids[row.first_scored :]
        scored_N = np.flatnonzero(targets.ravel() >= 0)
        logits_NV = model(
            torch.from_numpy(inputs).to(device), None, torch.from_numpy(scored_N).to(device)
        ).float()
        losses_N = F.cross_entropy(
            logits_NV, torch.from_numpy(targets.ravel()[scored_N]).to(device), reduction="none"
        )
        owner_N = np.array([row.owner for row in batch])[scored_N // size]
        nats += np.bincount(owner_N, weights=losses_N.double().cpu().numpy(), minlength=owners)
        done += len(batch)
        progress(done)
    return nats


def document_nats(
    model: torch.nn.Module,
    documents: list[np.ndarray],
    *,
    eot_id: int,
    window: int,
    vocab_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Nats of each document's tokens given its `<|endoftext|>`; see `windows` for the context."""
    rows = [row for owner, ids in enumerate(documents) for row in windows(ids, eot_id, window, owner)]
    return row_nats(
        model, rows, len(documents), vocab_size=vocab_size, progress=lambda done: progress(done, len(rows))
    )
