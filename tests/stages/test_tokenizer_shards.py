"""The stages tokenizer and shards on a small clean corpus in two languages."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.config import Config
from components.corpus import shards as core
from components.corpus import tokenizer as bpe
from components.errors import UserError
from components.layout import Layout
from components.stages import shards, tokenizer

pytestmark = pytest.mark.code

SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "text", "source", "language", "metadata")])
ZH = "第{}本书写得很好，作者的文字非常流畅，值得每一位读者仔细阅读，推荐给大家。"
EN = "Scene {}: enter the king and his men, who speak of war and of the long winter that is to come."
CONFIG = Config.model_validate({"tokenizer": {"vocab_size": 420}, "training": {"rows": 2, "row_tokens": 64}})


def write_split(folder: Path, split: str, documents: int) -> None:
    rows = [{"id": f"{split}{i:04d}", "text": (ZH if i % 2 else EN).format(i), "source": "x.txt", "language": "zh" if i % 2 else "en",
             "metadata": "{}"} for i in range(documents)]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / f"{split}.parquet", compression="zstd")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    names = ("sources/base", "clean", "tokenizer", "tokens")
    layout = Layout(root=tmp_path, staged={name: tmp_path / "staged" / name for name in names})
    for name in names:
        layout.out(name).mkdir(parents=True)
    (layout.sources_base / "origin.json").write_text('{"kind": "none"}')
    for split, documents in (("train", 60), ("validation", 8), ("test", 8)):
        write_split(layout.clean, split, documents)
    return layout


def test_the_two_stages_end_in_shards_that_open(layout: Layout) -> None:
    report = tokenizer.run(CONFIG, layout)
    assert report.documents_in == 60 and report.counts["entries"] <= 420
    assert any(note.startswith("zh: ") for note in report.notes)
    report = shards.run(CONFIG, layout)
    assert report.documents_in == report.documents_out == 76
    index = core.read_index(layout.tokens)
    assert sorted(index["splits"]) == ["test", "train", "validation"] and sorted(index["splits"]["train"]) == ["en", "zh"]
    assert report.tokens == sum(entry["tokens"] for split in index["splits"].values() for entry in split.values())
    encoder = bpe.load(layout.tokenizer)
    tokens, offsets = core.open_split(layout.tokens, "train", "zh", layout.tokenizer)
    assert encoder.decode(tokens[offsets[0]:offsets[1] - 1].tolist()) == ZH.format(1)
    assert index["splits"]["train"]["zh"]["bytes"] == sum(len(ZH.format(i).encode()) for i in range(1, 60, 2))
    assert (layout.tokens / "validation.json").exists()


def test_two_runs_write_the_same_bytes(layout: Layout) -> None:
    def run() -> dict[str, bytes]:
        tokenizer.run(CONFIG, layout)
        shards.run(CONFIG, layout)
        return {path.name: path.read_bytes() for folder in (layout.tokenizer, layout.tokens) for path in folder.iterdir()}

    assert run() == run()


def test_A20_fewer_tokens_than_one_batch_say_both_counts(layout: Layout) -> None:
    tokenizer.run(CONFIG, layout)
    big = Config.model_validate({"training": {"rows": 1000, "row_tokens": 128}})
    with pytest.raises(UserError, match=r"train split has [\d,]+ tokens; one batch needs 128,000"):
        shards.run(big, layout)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_A20_an_empty_held_out_split_is_refused(layout: Layout, split: str) -> None:
    tokenizer.run(CONFIG, layout)
    write_split(layout.clean, split, 0)
    with pytest.raises(UserError, match=f"the {split} split has 0 tokens"):
        shards.run(CONFIG, layout)


def test_A20_an_empty_train_split_is_refused(layout: Layout) -> None:
    write_split(layout.clean, "train", 0)
    with pytest.raises(UserError, match="train split is empty"):
        tokenizer.run(CONFIG, layout)


def test_the_vocabulary_may_be_smaller_than_asked_for_and_that_is_said(layout: Layout) -> None:
    report = tokenizer.run(Config.model_validate({"tokenizer": {"vocab_size": 50_000}}), layout)
    assert report.counts["entries"] < 50_000 and "not 50,000" in report.notes[0]


def test_an_imported_base_keeps_its_tokenizer(layout: Layout) -> None:
    bpe.write(bpe.train([EN, ZH] * 3, 300), layout.sources_base)
    (layout.sources_base / "chat_template.jinja").unlink()
    (layout.sources_base / "origin.json").write_text(json.dumps({"kind": "imported"}))
    tokenizer.run(CONFIG, layout)
    assert bpe.sha256(layout.tokenizer) == bpe.sha256(layout.sources_base)
    assert (layout.tokenizer / "chat_template.jinja").read_text() == bpe.CHAT_TEMPLATE
    assert not (layout.tokenizer / "origin.json").exists()
    (layout.sources_base / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        tokenizer.run(CONFIG, layout)
