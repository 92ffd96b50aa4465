"""Laws of the tokenizer: nothing is lost, the same text gives the same tokenizer, text never becomes a special token."""

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.corpus import tokenizer as bpe
from components.errors import UserError
from components.training.results import copy_tokenizer

pytestmark = pytest.mark.code

TEXTS = ["我正在写这本书的心得，勘误和疑点，有兴趣的朋友可以访问我的网站。", "这本书很好，这本书值得读。", "The quick brown fox doesn't jump over 12345 lazy dogs.",
         "    def f(x_1):\n        return 3.14159\n", "房间很干净，服务员很热情。"] * 20


@pytest.fixture(scope="module")
def tokenizer() -> bpe.Tokenizer:
    return bpe.train(TEXTS, 400)


@given(st.text(st.characters(codec="utf-8"), max_size=200))
@settings(max_examples=200, deadline=None)
def test_decode_undoes_encode(tokenizer: bpe.Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["", " ", "\n\n  \t", "👩‍👩‍👧 🇨🇳", "中文English混排，２０２４年！", "é é\u0301", "\x00\x1f", "一" * 5000, "\r\n\u2028\u3000", "<|user|>x<|endoftext|>"])
def test_decode_undoes_encode_on_hard_text(tokenizer: bpe.Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert not set(ids) & {0, 1, 2, 3}


def test_special_tokens_have_the_first_ids(tokenizer: bpe.Tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in bpe.SPECIAL_TOKENS] == [0, 1, 2, 3]


def test_han_runs_stand_apart_and_words_are_learned(tokenizer: bpe.Tokenizer) -> None:
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("这本书，good书123456").ids]
    assert "这本书" in pieces
    split = [text for text, _ in bpe.pre_tokenizers.Split(bpe.Regex(bpe.PRE_TOKENS), "isolated").pre_tokenize_str("这本书，good书 1234567 it's")]
    assert split == ["这本书", "，", "good", "书", " ", "123", "456", "7", " it", "'s"]


def test_fewer_entries_than_asked_for_when_the_text_teaches_fewer(tokenizer: bpe.Tokenizer) -> None:
    assert bpe.vocab_size(tokenizer) == 400
    assert 260 < bpe.vocab_size(bpe.train(["abab abab"], 5000)) < 300


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    script = ("import sys, json; from pathlib import Path; from components.corpus import tokenizer as bpe; "
              "bpe.write(bpe.train(json.loads(sys.argv[2]), 400), Path(sys.argv[1]))")
    hashes = set()
    for seed in ("1", "2"):
        subprocess.run([sys.executable, "-c", script, str(tmp_path / seed), json.dumps(TEXTS)], check=True,
                       env=os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed}, cwd=Path(__file__).parents[2])
        hashes.add(bpe.sha256(tmp_path / seed))
    assert len(hashes) == 1


def test_auto_tokenizer_gives_the_same_ids_and_the_chat_of_the_contract(tokenizer: bpe.Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    bpe.write(tokenizer, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for text in [*TEXTS[:5], "👩‍👩‍👧 中文 English  12345 \n\n don't , . !"]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text).ids
        assert theirs.decode(tokenizer.encode(text).ids) == text
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id) == (0, 0, 0)
    messages = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "hi"}]
    assert theirs.apply_chat_template(messages, tokenize=False) == "<|user|>你好<|end|><|assistant|>hi<|end|>"
    assert theirs.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True) == "<|user|>你好<|end|><|assistant|>"
    whole = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert theirs.decode([i for i, m in zip(whole["input_ids"], whole["assistant_masks"], strict=True) if m]) == "hi<|end|>"


def test_model_max_length_goes_beside_the_model(tokenizer: bpe.Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    bpe.write(tokenizer, tmp_path / "tokenizer")
    (tmp_path / "model").mkdir()
    copy_tokenizer(tmp_path / "tokenizer", tmp_path / "model", 256)
    assert AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True).model_max_length == 256
    assert bpe.sha256(tmp_path / "model") == bpe.sha256(tmp_path / "tokenizer")


@pytest.mark.parametrize("text", ["", "{", '{"model": {"type": "BPE"}}', "[1, 2]"])
def test_A19_a_malformed_tokenizer_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="not a tokenizer") as caught:
        bpe.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_A19_a_tokenizer_damaged_anywhere_is_read_or_refused_in_one_line(tokenizer: bpe.Tokenizer, tmp_path: Path) -> None:
    whole, rng, ends = tokenizer.to_str(), random.Random(19), Counter()
    values = ("null", "-1", "1e99", "[]", "{}", '"x"', "true", "[[[1]]]", "18446744073709551616", '"\\ud800"')
    for _ in range(200):
        at = rng.randrange(len(whole))
        text = {"cut": whole[:at], "hole": whole[:at] + whole[at + rng.randint(1, 40):], "byte": whole[:at] + chr(ord(whole[at]) ^ 1 << rng.randrange(7)) + whole[at + 1:],
                "value": re.sub(r"(?<=[:,\[])(\d+|true|false|null|\"[^\"]*\")", lambda m: rng.choice(values) if rng.random() < 0.01 else m[0], whole)}[
                    kind := rng.choice(["cut", "hole", "byte", "value"])]
        (tmp_path / "tokenizer.json").write_text(text, errors="replace")
        try:
            assert bpe.load(tmp_path).encode("房间很干净 It's 3.14").ids is not None  # whatever it gives, it gives it without a crash
            ends[kind, "read"] += 1
        except UserError as error:
            assert "tokenizer.json is not a tokenizer that this version reads" in str(error) and "\n" not in str(error)
            ends[kind, "refused"] += 1
    assert ends["cut", "refused"] > 20 and ends["hole", "refused"] > 20 and ends["value", "refused"] > 10


def test_A19_an_outsized_or_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer.json"):
        bpe.load(tmp_path)
    with open(tmp_path / "tokenizer.json", "wb") as f:
        f.truncate(bpe.MAX_TOKENIZER_BYTES + 1)
    with pytest.raises(UserError, match="at most"):
        bpe.load(tmp_path)


def test_an_imported_tokenizer_passes_through_with_a_template(tokenizer: bpe.Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = tmp_path / "base"
    base.mkdir()
    plain = bpe.Tokenizer(bpe.models.BPE())
    plain.pre_tokenizer, plain.decoder = bpe.pre_tokenizers.ByteLevel(add_prefix_space=False), bpe.decoders.ByteLevel()
    plain.train_from_iterator(TEXTS, bpe.trainers.BpeTrainer(vocab_size=320, special_tokens=["</s>"], show_progress=False,
                                                             initial_alphabet=bpe.pre_tokenizers.ByteLevel.alphabet()))
    plain.save(str(base / "tokenizer.json"))
    (base / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="eos_token"):
        bpe.pass_through(base, tmp_path / "out")
    (base / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}')
    notes = bpe.pass_through(base, tmp_path / "out")
    assert any("chat template" in note for note in notes) and not (tmp_path / "out" / "model.safetensors").exists()
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert theirs.apply_chat_template([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], tokenize=False) == "User: q\nAssistant: a</s>"
    (base / "chat_template.jinja").write_text("{{ messages }}")
    bpe.pass_through(base, tmp_path / "own")
    assert (tmp_path / "own" / "chat_template.jinja").read_text() == "{{ messages }}"
    (base / "tokenizer_config.json").write_text('{"eos_token": "</s>", "auto_map": {"AutoTokenizer": ["x.Y", null]}}')
    with pytest.raises(UserError, match="auto_map"):
        bpe.pass_through(base, tmp_path / "code")
