"""Laws of the shards: what is read is what was written, and any disagreement is named before the first step."""

import json
from pathlib import Path

import numpy as np
import pytest

from components.corpus import shards
from components.corpus import tokenizer as bpe
from components.errors import Damaged, UserError

pytestmark = pytest.mark.code

TEXTS = ["这本书很好。", "The quick brown fox.", "", "emoji 👩‍👩‍👧 和中文", "<|endoftext|> typed by a person"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = bpe.train(TEXTS * 5, 300)
    bpe.write(tokenizer, tmp_path / "tokenizer")
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    entry, rows = shards.write_shard(tokens, "train-zh", TEXTS, tokenizer, 0, 300)
    assert [row.bytes for row in rows] == [len(text.encode()) for text in TEXTS]
    index = {"dtype": "uint16", "vocab_size": 300, "eot_id": 0, "tokenizer_sha256": bpe.sha256(tmp_path / "tokenizer"), "splits": {"train": {"zh": entry}}}
    (tokens / "index.json").write_text(json.dumps(index))
    return tokens


def test_every_document_comes_back_and_ends_with_end_of_text(folder: Path) -> None:
    tokens, offsets = shards.open_split(folder, "train", "zh", folder.parent / "tokenizer")
    tokenizer = bpe.load(folder.parent / "tokenizer")
    documents = [tokens[a:b].tolist() for a, b in zip(offsets, offsets[1:], strict=False)]
    assert [document[-1] for document in documents] == [0] * len(TEXTS)
    assert [tokenizer.decode(document[:-1], skip_special_tokens=False) for document in documents] == TEXTS
    assert sum(document.count(0) for document in documents) == len(TEXTS)  # a typed <|endoftext|> ends nothing
    assert tokens.dtype == np.uint16 and offsets.dtype == np.int64
    assert shards.languages(folder, "train") == ["zh"] and shards.languages(folder, "test") == []


def test_chunks_do_not_change_the_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (folder / "train-zh.bin").read_bytes()
    monkeypatch.setattr(shards, "ENCODED_TOGETHER_CHARS", 1)
    shards.write_shard(folder, "train-zh", TEXTS, bpe.load(folder.parent / "tokenizer"), 0, 300)
    assert (folder / "train-zh.bin").read_bytes() == whole


def test_a_large_vocabulary_takes_four_bytes() -> None:
    assert shards.dtype_for(65_536) == "<u2" and shards.dtype_for(65_537) == "<u4"


def test_A17_a_truncated_shard_is_refused(folder: Path) -> None:
    path = folder / "train-zh.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(Damaged, match="bytes; .* need"):
        shards.open_split(folder, "train", "zh")


def test_A17_an_id_outside_the_vocabulary_is_refused(folder: Path) -> None:
    data = np.fromfile(folder / "train-zh.bin", dtype="<u2")
    data[3] = 300
    data.tofile(folder / "train-zh.bin")
    with pytest.raises(Damaged, match="id 300"):
        shards.open_split(folder, "train", "zh")


def test_A17_a_wrong_dtype_is_refused(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"dtype": "uint32"}))
    with pytest.raises(Damaged, match="uint32"):
        shards.open_split(folder, "train", "zh")


@pytest.mark.parametrize("damage", [lambda a: a[:-1], lambda a: a[::-1].copy(), lambda a: a.astype(np.float64)])
def test_A17_offsets_that_do_not_fit_are_refused(folder: Path, damage) -> None:
    offsets = np.load(folder / "train-zh.offsets.npy")
    np.save(folder / "train-zh.offsets.npy", damage(offsets))
    with pytest.raises(Damaged, match="offsets"):
        shards.open_split(folder, "train", "zh")


def test_A18_another_tokenizer_than_made_the_shards_is_refused(folder: Path) -> None:
    bpe.write(bpe.train(["something else entirely"], 280), folder.parent / "tokenizer")
    with pytest.raises(UserError, match="made by tokenizer"):
        shards.open_split(folder, "train", "zh", folder.parent / "tokenizer")


def test_a_missing_shard_names_what_there_is(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it has zh"):
        shards.open_split(folder, "train", "en")
    with pytest.raises(UserError, match="no token shards"):
        shards.open_split(tmp_path / "nowhere", "train", "en")
