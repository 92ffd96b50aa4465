"""Tiny random models and evaluations for the tests of release, serving and import."""

from __future__ import annotations

from pathlib import Path

CHAT = ("{% for message in messages %}{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}<|end|>"
        "{% else %}<|assistant|>{{ message['content'] }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}")
TEXTS = ["To be, or not to be, that is the question.", "房间很干净，服务员很热情，下次还会来。", "numpy.clip limits the values of an array.",
         "这个酒店的早餐不好吃，价格也贵。"]


def make_tokenizer(folder: Path, vocab_size: int = 400) -> None:
    """A byte-level BPE with the four special tokens and the chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS * 3, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|end|>"], clean_up_tokenization_spaces=False)
    wrapped.chat_template = CHAT
    wrapped.save_pretrained(folder)


def make_model(folder: Path, *, seed: int = 0, context: int = 64, architecture: str = "llama", scale: float = 1.0) -> Path:
    """A Hugging Face folder of a random model of about 30 thousand parameters."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging as bars

    bars.disable_progress_bar()
    make_tokenizer(folder)
    vocab_size = len(AutoTokenizer.from_pretrained(folder))
    torch.manual_seed(seed)
    if architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=context, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
            pad_token_id=0))
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=2, n_positions=context, bos_token_id=0,
                                           eos_token_id=0, pad_token_id=0))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(scale)
    model.save_pretrained(folder)
    return folder
