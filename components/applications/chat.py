"""How a record becomes a chat, and a chat becomes token ids with the loss on the answer alone.

Works for our own tokenizer (as `tokenizers.Tokenizer` or opened by transformers) and for that of an
imported base (a `PreTrainedTokenizerFast` with a chat template of its own).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer

from components.applications.template import ASSISTANT, CHAT_TEMPLATE, END, END_OF_TEXT, USER
from components.errors import UserError

Messages = list[dict[str, str]]
ANSWER_TOO_LONG, EMPTY_PROMPT, EMPTY_ANSWER = "answer_too_long", "empty_prompt", "empty_answer"
MIN_PROMPT_TOKENS = 4  # with less of the question left, an answer teaches nothing


def chat(prompt: str, answer: str | None = None) -> Messages:
    """The messages of a record; without `answer` those of a question that waits for one."""
    messages = [{"role": "user", "content": prompt}]
    return messages if answer is None else [*messages, {"role": "assistant", "content": answer}]


def encode(record: Mapping[str, Any], tokenizer: Any, max_row_tokens: int) -> tuple[list[int], list[int]] | str:
    """(token ids, loss mask) of one record, at most `max_row_tokens` long; or the reason why it is skipped.

    mask[i] = 1 where token i is a target: the answer and what ends it. A prompt that does not fit loses
    its middle, as instructions stand at its ends (LongBench, Bai et al. 2023); an answer is never cut.
    """
    prompt, answer = record["prompt"], record["answer"]
    if not prompt.strip():
        return EMPTY_PROMPT
    if not answer.strip():
        return EMPTY_ANSWER
    if _is_ours(tokenizer):
        return _encode_ours(prompt, answer, tokenizer, max_row_tokens)
    return _encode_by_template(prompt, answer, tokenizer, max_row_tokens)


def encode_all(records: Iterable[Mapping[str, Any]], tokenizer: Any,
               max_row_tokens: int) -> tuple[list[tuple[list[int], list[int]]], Counter[str]]:
    """`encode` of every record, in order, and counts: 'kept' and each reason to skip."""
    rows, counts = [], Counter()
    for record in records:
        row = encode(record, tokenizer, max_row_tokens)
        if isinstance(row, str):
            counts[row] += 1
        else:
            rows.append(row)
            counts["kept"] += 1
    return rows, counts


def render_prompt(prompt: str, tokenizer: Any, max_tokens: int | None = None) -> list[int]:
    """Token ids that wait for the assistant's answer; a prompt too long for `max_tokens` loses its middle."""
    if _is_ours(tokenizer):
        user, assistant, end = (_token_id(tokenizer, token) for token in (USER, ASSISTANT, END))
        ids = _plain(tokenizer, prompt)
        return [user, *_cut(ids, tokenizer, max(0, (max_tokens or len(ids) + 3) - 3)), end, assistant]
    return _fit(prompt, tokenizer, max_tokens, lambda text: _template_ids(chat(text), tokenizer, waiting=True))


def stop_ids(tokenizer: Any) -> list[int]:
    """The ids that end an answer: what the template puts after it, and end-of-text."""
    if _is_ours(tokenizer):
        return [_token_id(tokenizer, END), _token_id(tokenizer, END_OF_TEXT)]
    special = set(tokenizer.all_special_ids)
    after = [token for token in _template_ids(chat("?", "!"), tokenizer, waiting=False) if token in special][-1:]
    return list(dict.fromkeys([*after, tokenizer.eos_token_id]))


# --- our tokenizer: special tokens are put in by id, so text cannot become one ---------------------

def _is_ours(tokenizer: Any) -> bool:
    if isinstance(tokenizer, Tokenizer):
        if any(tokenizer.token_to_id(token) is None for token in (USER, ASSISTANT, END)):
            raise UserError("this tokenizer lacks <|user|>, <|assistant|> or <|end|>; one of an imported base must be opened "
                            "by transformers.AutoTokenizer, which knows its chat template")
        return True
    if not tokenizer.chat_template:
        raise UserError("the tokenizer of this model has no chat template, so a chat cannot be written. Run: lmworks run --from tokenizer")
    return tokenizer.chat_template == CHAT_TEMPLATE


def _token_id(tokenizer: Any, token: str) -> int:
    return tokenizer.token_to_id(token) if isinstance(tokenizer, Tokenizer) else tokenizer.convert_tokens_to_ids(token)


def _plain(tokenizer: Any, text: str) -> list[int]:
    """Ids of text alone; `<|user|>` typed by somebody stays five ordinary characters and more."""
    if isinstance(tokenizer, Tokenizer):
        tokenizer.encode_special_tokens = True
        return tokenizer.encode(text, add_special_tokens=False).ids
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def _encode_ours(prompt: str, answer: str, tokenizer: Any, max_row_tokens: int) -> tuple[list[int], list[int]] | str:
    user, assistant, end = (_token_id(tokenizer, token) for token in (USER, ASSISTANT, END))
    prompt_ids, answer_ids = _plain(tokenizer, prompt), [*_plain(tokenizer, answer), end]
    room = max_row_tokens - len(answer_ids) - 3
    if room < min(MIN_PROMPT_TOKENS, len(prompt_ids)):
        return ANSWER_TOO_LONG
    before = [user, *_cut(prompt_ids, tokenizer, room), end, assistant]
    return before + answer_ids, [0] * len(before) + [1] * len(answer_ids)


def _cut(ids: list[int], tokenizer: Any, max_tokens: int) -> list[int]:
    """At most `max_tokens` of ids, from both ends; no character is cut in two."""
    if len(ids) <= max_tokens:
        return ids
    head, tail = ids[:(max_tokens + 1) // 2], ids[len(ids) - max_tokens // 2:]
    for _ in range(3):  # a character has at most 4 bytes, so at most 3 tokens of a broken one
        if head and tokenizer.decode(head).endswith("\ufffd"):
            head = head[:-1]
        if tail and tokenizer.decode(tail).startswith("\ufffd"):
            tail = tail[1:]
    return head + tail


# --- an imported base: its own template writes the chat ---------------------------------------------

def sanitise(text: str, tokenizer: Any) -> str:
    """Break up every special-token string in `text` by a space after its first character."""
    for token in sorted({str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)):
        if len(token) > 1 and token.strip() and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def _template_ids(messages: Messages, tokenizer: Any, *, waiting: bool) -> list[int]:
    clean = [{**message, "content": sanitise(message["content"], tokenizer)} for message in messages]
    text = tokenizer.apply_chat_template(clean, tokenize=False, add_generation_prompt=waiting)
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _encode_by_template(prompt: str, answer: str, tokenizer: Any, max_row_tokens: int) -> tuple[list[int], list[int]] | str:
    """The answer is the difference between the whole chat and the chat that waits for it."""
    ids: list[int] = []

    def whole(text: str) -> list[int]:
        nonlocal ids, prompt
        ids, prompt = _template_ids(chat(text, answer), tokenizer, waiting=False), text
        return ids

    _fit(prompt, tokenizer, max_row_tokens, whole)
    if len(ids) > max_row_tokens:
        return ANSWER_TOO_LONG
    waiting = _template_ids(chat(prompt), tokenizer, waiting=True)
    shared = next((i for i, (a, b) in enumerate(zip(waiting, ids, strict=False)) if a != b), min(len(waiting), len(ids)))
    return ids, [0] * shared + [1] * (len(ids) - shared)


def _fit(prompt: str, tokenizer: Any, max_tokens: int | None, render: Any) -> list[int]:
    """`render(prompt)`, with less and less of the prompt's middle until it fits; the last try if none does."""
    ids = render(prompt)
    plain = _plain(tokenizer, prompt)
    room = len(plain)
    while max_tokens is not None and len(ids) > max_tokens and room > MIN_PROMPT_TOKENS:
        room = max(MIN_PROMPT_TOKENS, room - (len(ids) - max_tokens))
        ids = render(tokenizer.decode(_cut(plain, tokenizer, room)))
    return ids
