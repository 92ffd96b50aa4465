"""Which documents are held out: by hash of their id, so that growing data moves no other document."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from components.config import Splits
from components.corpus.normalisation import ID_HEX

SPLITS = ("train", "validation", "test")
_END = 16**ID_HEX


def by_share(key: str, splits: Splits) -> str:
    """The split of one id (hex digits of a hash) by the shares alone; other documents play no part.

    The test split takes the smallest hashes and validation the largest: neither border moves the other.
    """
    value = int(key, 16)
    if value < splits.test_share * _END:
        return "test"
    return "validation" if value >= _END - splits.validation_share * _END else "train"


def minimum(documents: int, splits: Splits) -> int:
    """How many a split and group holds out at least: `min_held_out_documents` if the group has ten times
    as many documents; else one of ten or more (a loss needs something to be measured on); else none."""
    if documents >= 10 * splits.min_held_out_documents:
        return splits.min_held_out_documents
    return 1 if documents >= 10 else 0


def assign(keys: Sequence[str], groups: Sequence[str], splits: Splits) -> list[str]:
    """The split of every key. keys: distinct ids (16 hex digits); groups: the language of each.

    The shares decide first (`by_share`), then each group is filled up to `minimum`: the train documents with
    the smallest hashes go to test, those with the largest to validation. What holds, exactly:
    - a document whose hash lies within a share keeps its split for ever, whatever is added;
    - nothing ever moves between validation and test;
    - a document held out by the minimum alone may return to train when its group grows;
    - a train document is held out later only when its group reaches 10 documents, or ten times the minimum,
      or when a removed document leaves the group short of its minimum;
    - once the shares alone give a group its minimum, adding documents moves none.
    """
    chosen = [by_share(key, splits) for key in keys]
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    for indices in members.values():
        wanted = minimum(len(indices), splits)
        for split, from_the_end in (("test", False), ("validation", True)):
            short = wanted - sum(chosen[i] == split for i in indices)
            if short > 0:
                spare = sorted((i for i in indices if chosen[i] == "train"), key=lambda i: keys[i], reverse=from_the_end)
                for i in spare[:short]:
                    chosen[i] = split
    return chosen
