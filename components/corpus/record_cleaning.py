"""Application records cleaned and split so that no prompt is in two splits."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from components.config import Splits
from components.corpus.normalisation import document_id, normalise, record_id
from components.corpus.splits import SPLITS, assign

HELD_OUT_FIRST = {split: -rank for rank, split in enumerate(SPLITS)}
Record = dict[str, Any]


@dataclass
class CleanedRecords:
    """kept: records with their new id and their split, sorted by id; dropped: (raw record, reason, id that stays or '')."""

    kept: list[Record] = field(default_factory=list)
    dropped: list[tuple[Record, str, str]] = field(default_factory=list)


def origin_key(record: Record) -> str:
    """Hash that decides the split of a record without a document: of the `group` in its metadata, else of its prompt.

    Records of one group (both directions of a translation) go together.
    """
    group = json.loads(record["metadata"] or "{}").get("group") if '"group"' in record["metadata"] else None
    return document_id(group if isinstance(group, str) and group.strip() else record["prompt"])


def clean_records(records: Sequence[Record], mend: Callable[[str], str], document_of: dict[str, str], split_of: dict[str, str],
                  splits: Splits) -> CleanedRecords:
    """Mend, drop what is empty or contradicts itself, give splits, drop what repeats.

    document_of: raw document id -> id of the document that stayed for it; split_of: that id -> its split.
    A record follows its document; the others go by `origin_key`, filled up to the minimum an application and
    language. Of records that share a prompt those in the most held-out split stay (prompt_of_test,
    prompt_of_validation for the rest), so that nothing asked in the test was seen in training.
    """
    out = CleanedRecords()
    whole = []
    for record in records:
        mended = record | {"prompt": mend(record["prompt"]), "answer": mend(record["answer"])}
        reason = next((f"empty_{name}" for name in ("prompt", "answer") if not mended[name].strip()), None)
        if reason:
            out.dropped.append((record, reason, ""))
        else:
            whole.append(mended)
    prompts = [normalise(r["prompt"]) for r in whole]
    agreeing = _without_contradictions(whole, prompts, out)
    splits_of_records = _splits([whole[i] for i in agreeing], [prompts[i] for i in agreeing], document_of, split_of, splits)

    by_prompt: dict[str, str] = {}
    for i, split in zip(agreeing, splits_of_records, strict=True):
        by_prompt[prompts[i]] = min(by_prompt.get(prompts[i], "train"), split, key=HELD_OUT_FIRST.__getitem__)
    seen: set[str] = set()
    for i, split in zip(agreeing, splits_of_records, strict=True):
        key = record_id(whole[i]["application"], whole[i]["prompt"], whole[i]["answer"])
        if split != by_prompt[prompts[i]]:
            out.dropped.append((whole[i], f"prompt_of_{by_prompt[prompts[i]]}", ""))
        elif key in seen:
            out.dropped.append((whole[i], "exact_duplicate", key))
        else:
            seen.add(key)
            out.kept.append(whole[i] | {"id": key, "split": split, "document": document_of.get(whole[i]["document"], "")})
    out.kept.sort(key=lambda r: r["id"])
    return out


def _without_contradictions(records: list[Record], prompts: list[str], out: CleanedRecords) -> list[int]:
    """Indices that stay. A prompt with two classes teaches nothing: all its records go (conflicting_labels)."""
    labels: dict[str, set[str]] = defaultdict(set)
    for record, prompt in zip(records, prompts, strict=True):
        if record["application"] == "classification":
            labels[prompt].add(record["label"] or record["answer"])
    kept = []
    for i, (record, prompt) in enumerate(zip(records, prompts, strict=True)):
        if record["application"] == "classification" and len(labels[prompt]) > 1:
            out.dropped.append((record, "conflicting_labels", ""))
        else:
            kept.append(i)
    return kept


def _splits(records: list[Record], prompts: list[str], document_of: dict[str, str], split_of: dict[str, str], splits: Splits) -> list[str]:
    """The split that each record's origin wants."""
    wanted: list[str] = [split_of.get(document_of.get(r["document"], ""), "") for r in records]
    inherited: dict[str, str] = {}  # prompt -> most held-out split of the documents that it came from
    for prompt, split in zip(prompts, wanted, strict=True):
        if split:
            inherited[prompt] = min(inherited.get(prompt, "train"), split, key=HELD_OUT_FIRST.__getitem__)
    strays: dict[str, str] = {}  # key -> application and language
    keys = ["" if split else origin_key(r) for r, split in zip(records, wanted, strict=True)]
    for record, key in sorted(zip(records, keys, strict=True), key=lambda x: (x[1], x[0]["application"], x[0]["language"])):
        if key and key not in split_of:  # a prompt that is a document itself goes with it
            strays.setdefault(key, f"{record['application']}/{record['language']}")
    assigned = split_of | dict(zip(strays, assign(list(strays), list(strays.values()), splits), strict=True))
    for i, key in enumerate(keys):
        if key:
            grouped = key != document_id(prompts[i])
            wanted[i] = assigned[key] if grouped else inherited.get(prompts[i], assigned[key])
    return wanted
