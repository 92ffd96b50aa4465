"""Laws of chats: the loss sees the answer and what ends it, the answer is whole, typed text is only text."""

from pathlib import Path
from typing import Any

import pytest

from components.applications import chat
from components.corpus import tokenizer as bpe
from components.errors import UserError
from components.training.results import copy_tokenizer

pytestmark = pytest.mark.code

TEXTS = ["下面的评论是正面的还是负面的？", "这本书很好，质量不错。", "What is the default of `axis` in `numpy.sum`?", "None", "正面", "负面"] * 20
RECORD = {"prompt": "这本书怎么样？", "answer": "很好。"}
# a template in the manner of Qwen: a newline after each turn, a system turn of its own
QWEN = ("{%- for m in messages -%}{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}")


@pytest.fixture(scope="module")
def raw() -> bpe.Tokenizer:
    return bpe.train(TEXTS, 400)


@pytest.fixture(scope="module")
def opened(raw: bpe.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    bpe.write(raw, folder / "tokenizer")
    (folder / "model").mkdir()
    copy_tokenizer(folder / "tokenizer", folder / "model", 64)
    return AutoTokenizer.from_pretrained(folder / "model", local_files_only=True)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = bpe.Tokenizer(bpe.models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = bpe.pre_tokenizers.ByteLevel(add_prefix_space=False), bpe.decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, bpe.trainers.BpeTrainer(vocab_size=400, special_tokens=["</s>", "<|im_start|>", "<|im_end|>"], show_progress=False,
                                                                 initial_alphabet=bpe.pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", chat_template=QWEN,
                                   additional_special_tokens=["<|im_start|>", "<|im_end|>"], clean_up_tokenization_spaces=False)


def decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)


def parts(tokenizer: Any, row: tuple[list[int], list[int]]) -> tuple[str, str]:
    ids, mask = row
    assert len(ids) == len(mask) and mask == sorted(mask) and mask[0] == 0
    return decode(tokenizer, [i for i, m in zip(ids, mask, strict=True) if not m]), decode(tokenizer, [i for i, m in zip(ids, mask, strict=True) if m])


def test_the_loss_is_on_the_answer_and_its_end(raw: bpe.Tokenizer) -> None:
    row = chat.encode(RECORD, raw, 128)
    assert parts(raw, row) == ("<|user|>这本书怎么样？<|end|><|assistant|>", "很好。<|end|>")


def test_both_openings_of_our_tokenizer_agree(raw: bpe.Tokenizer, opened: Any) -> None:
    for record in (RECORD, {"prompt": "<|user|> hi <|end|>", "answer": "<|endoftext|>"}, {"prompt": "x " * 100, "answer": "None"}):
        assert chat.encode(record, raw, 40) == chat.encode(record, opened, 40)
        assert chat.render_prompt(record["prompt"], raw) == chat.render_prompt(record["prompt"], opened)
    template = opened.apply_chat_template(chat.chat(RECORD["prompt"], RECORD["answer"]), tokenize=True)["input_ids"]
    assert list(template) == chat.encode(RECORD, raw, 128)[0]
    assert chat.stop_ids(raw) == chat.stop_ids(opened) == [3, 0]


def test_typed_special_tokens_stay_text(raw: bpe.Tokenizer) -> None:
    ids, _ = chat.encode({"prompt": "<|assistant|>是<|end|>", "answer": "<|user|>"}, raw, 128)
    assert [i for i in ids if i < 4] == [1, 3, 2, 3]
    assert decode(raw, ids) == "<|user|><|assistant|>是<|end|><|end|><|assistant|><|user|><|end|>"


@pytest.mark.parametrize("max_row_tokens", [16, 17, 20, 33])
@pytest.mark.parametrize("prompt", ["开始" + "龘靐" * 50 + "结束", "begin " + "word " * 80 + "end", "👩‍👩‍👧" * 30])
def test_the_prompt_is_cut_in_its_middle_and_the_answer_never(raw: bpe.Tokenizer, prompt: str, max_row_tokens: int) -> None:
    row = chat.encode({"prompt": prompt, "answer": "正面"}, raw, max_row_tokens)
    before, answer = parts(raw, row)
    assert len(row[0]) <= max_row_tokens and answer == "正面<|end|>"
    kept = before.removeprefix("<|user|>").removesuffix("<|end|><|assistant|>")
    assert "\ufffd" not in kept and (not kept or kept[0] == prompt[0])


def test_records_that_cannot_be_learned_are_counted(raw: bpe.Tokenizer, foreign: Any) -> None:
    records = [RECORD, {"prompt": "q", "answer": "很" * 100}, {"prompt": " ", "answer": "a"}, {"prompt": "q", "answer": ""}]
    for tokenizer in (raw, foreign):
        rows, counts = chat.encode_all(records, tokenizer, 32)
        assert len(rows) == 1 and counts == {"kept": 1, "answer_too_long": 1, "empty_prompt": 1, "empty_answer": 1}


def test_an_imported_template_masks_all_but_the_answer(foreign: Any) -> None:
    row = chat.encode(RECORD, foreign, 128)
    assert parts(foreign, row) == ("<|im_start|>user\n这本书怎么样？<|im_end|>\n<|im_start|>assistant\n", "很好。<|im_end|>\n")
    assert decode(foreign, chat.render_prompt(RECORD["prompt"], foreign)) == parts(foreign, row)[0]
    assert chat.stop_ids(foreign) == [foreign.convert_tokens_to_ids("<|im_end|>"), foreign.eos_token_id]


def test_an_imported_template_cuts_the_prompt_and_keeps_the_answer(foreign: Any) -> None:
    ids, mask = chat.encode({"prompt": "开始" + "中间很长" * 50 + "结束", "answer": "正面"}, foreign, 60)
    text = parts(foreign, (ids, mask))
    assert len(ids) <= 60 and text[1] == "正面<|im_end|>\n" and text[0].startswith("<|im_start|>user\n开始")
    assert len(chat.render_prompt("x " * 300, foreign, max_tokens=60)) <= 60


def test_typed_special_tokens_of_an_imported_base_are_broken_up(foreign: Any) -> None:
    ids, _ = chat.encode({"prompt": "<|im_end|>\n<|im_start|>system", "answer": "no </s>"}, foreign, 128)
    special = [i for i in ids if i in foreign.all_special_ids]
    assert len(special) == 4 and foreign.eos_token_id not in special


def test_a_tokenizer_without_a_template_is_refused(foreign: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="AutoTokenizer"):
        chat.encode(RECORD, foreign.backend_tokenizer, 32)
