"""A base of another shape, with a tokenizer and chat template of its own, is judged like ours."""

import json

import pytest

from components.config import Config
from components.corpus import tokenizer as bpe
from components.evaluation import judging

pytestmark = pytest.mark.code
CONFIG = Config.model_validate({
    "finetuning": {"applications": ["classification", "question_answering"], "max_row_tokens": 48},
    "evaluation": {"window_tokens": 32, "threads": 1, "max_test_bytes": 1000}})
TEXTS = ["To be, or not to be, that is the question.", "房间很干净，服务员很热情，下次还会来。"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama with fewer key heads than query heads: the lean module does not represent it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = tmp_path_factory.mktemp("imported")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=320, special_tokens=["</s>"], show_progress=False,
                                                             initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", clean_up_tokenization_spaces=False)
    wrapped.chat_template = bpe.PLAIN_CHAT_TEMPLATE
    wrapped.save_pretrained(path)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
                                 num_key_value_heads=1, max_position_embeddings=64, eos_token_id=0, bos_token_id=0)).save_pretrained(path)
    return path


def test_documents_and_answers_of_an_imported_shape_are_judged_and_repeat(folder):
    documents = [{"id": f"{i}", "text": text * 3, "language": "en" if i == 0 else "zh"} for i, text in enumerate(TEXTS)]
    records = [{"id": f"{a}{s}{i}", "application": a, "language": "zh", "prompt": f"问题 {i}", "answer": "好" if i else "坏", "metadata": json.dumps({}),
                "label": ("好" if i else "坏") if a == "classification" else "", "split": s}
               for a in CONFIG.finetuning.applications for s in ("train", "test") for i in range(2)]
    base, instruct = judging.judge_base(folder, documents, CONFIG), judging.judge_instruct(folder, records, CONFIG)
    assert [row["id"] for row in base.to_pylist()] == ["0", "1"] and min(base["value"].to_pylist()) > 0
    assert {(row["application"], row["metric"]) for row in instruct.to_pylist()} == {
        ("classification", "accuracy"), ("question_answering", "exact_match"), ("question_answering", "token_f1")}
    assert judging.judge_base(folder, documents, CONFIG).equals(base)
    assert judging.judge_instruct(folder, records, CONFIG).equals(instruct)
