"""Byte-level BPE, trained on the train split; the files that `transformers.AutoTokenizer` opens.

Method: byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) as `tokenizers` implements it, after
a split by regular expression in the manner of GPT-4's, with runs of Han characters apart.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from components.applications.template import (
    ASSISTANT,
    CHAT_TEMPLATE,
    END,
    END_OF_TEXT,
    PLAIN_CHAT_TEMPLATE,
    SPECIAL_TOKENS,
    USER,
)
from components.errors import UserError
from components.files import canonical_json, read_json, sha256_file, write_atomic, write_json

# A merge never crosses these borders. Han runs stand apart from everything, so BPE learns Chinese words
# but neither word-and-comma nor word-and-Latin; digits in groups of at most three; punctuation apart.
PRE_TOKENS = "|".join((
    r"\p{Han}+",
    r"'(?i:s|t|re|ve|m|ll|d)(?!\p{L})",  # English contractions
    r" ?(?:[^\P{L}\p{Han}]|\p{M})+",  # letters that are not Han, with their marks
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}\p{M}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
))

MAX_TOKENIZER_BYTES = 48 * 2**20  # the largest in use (256,000 entries) have 35 MB
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
                   "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model")


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """At most `vocab_size` entries, special tokens and the 256 bytes included; fewer if the text teaches fewer.

    The same texts give the same tokenizer: ties between pairs are decided by their ids, and the
    alphabet is given, so neither threads nor hash seeds decide anything.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PRE_TOKENS), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=2, special_tokens=list(SPECIAL_TOKENS),
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def take_bytes(texts: Iterable[str], max_bytes: float) -> Iterator[str]:
    """Texts until their UTF-8 bytes exceed `max_bytes`."""
    total = 0
    for text in texts:
        total += len(text.encode())
        if total > max_bytes:
            return
        yield text


def write(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json, chat_template.jinja, as AutoTokenizer opens them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "tokenizer.json", canonical_json(json.loads(tokenizer.to_str())))
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT,
        "additional_special_tokens": [USER, ASSISTANT, END],
        "clean_up_tokenization_spaces": False,
    })
    write_atomic(folder / "chat_template.jinja", CHAT_TEMPLATE)


def load_for_chat(folder: Path) -> Any:
    """The tokenizer as `applications.chat` wants it: ours by `tokenizers` alone; one with a chat template that is
    not ours by transformers, which costs seconds to import."""
    template = folder / "chat_template.jinja"
    if template.is_file() and template.read_text(encoding="utf-8") == CHAT_TEMPLATE:
        return load(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def load(folder: Path) -> Tokenizer:
    """The tokenizer of a folder. Text never becomes a special token: those are added by id.

    Raises UserError if tokenizer.json is missing, malformed or too large.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"no tokenizer.json in {folder}; only fast tokenizers are read. Convert it: "
                        "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)")
    if path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; at most {MAX_TOKENIZER_BYTES:,} are read. Give a smaller tokenizer")
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises plain Exception for what is wrong in the file; a panic of its Rust is not even one
        raise UserError(f"{path} is not a tokenizer that this version reads: {' '.join(str(error).split())[:200]}. "
                        "Save it again, or restore the file") from error
    tokenizer.encode_special_tokens = True
    return tokenizer


def sha256(folder: Path) -> str:
    """What names a tokenizer: the hash of tokenizer.json, which alone decides the ids."""
    return sha256_file(folder / "tokenizer.json")


def vocab_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id (an imported vocabulary may have gaps)."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def end_of_text_id(folder: Path, tokenizer: Tokenizer) -> int:
    """The id that ends a document. Raises UserError if tokenizer_config.json names none."""
    token = _special_token(folder, "eos_token")
    token_id = tokenizer.token_to_id(token) if token else None
    if token_id is None:
        raise UserError(f"{folder / 'tokenizer_config.json'} names no eos_token of its vocabulary (found {token!r}); "
                        "documents need one to end with. Add \"eos_token\"")
    return token_id


def _special_token(folder: Path, key: str) -> str | None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            value = read_json(folder / name).get(key)
            value = value.get("content") if isinstance(value, dict) else value
            if value:
                return value
    return None


def pass_through(base: Path, folder: Path) -> list[str]:
    """Copy the tokenizer files of an imported base; add a chat template if it has none. Returns notes.

    Raises UserError for a tokenizer without tokenizer.json, or one that needs code of its own.
    """
    tokenizer = load(base)
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    settings: dict[str, Any] = read_json(base / "tokenizer_config.json") if (base / "tokenizer_config.json").is_file() else {}
    if "auto_map" in settings:
        raise UserError(f"{base / 'tokenizer_config.json'} asks for code of its own (auto_map); only data is read. "
                        "Save the tokenizer as PreTrainedTokenizerFast")
    end_of_text_id(base, tokenizer)
    if not settings:
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _special_token(base, "eos_token"),
                    "clean_up_tokenization_spaces": False}
        write_json(folder / "tokenizer_config.json", settings)
    notes = [f"the imported base keeps its own tokenizer ({vocab_size(tokenizer):,} entries)"]
    if not settings.get("chat_template") and not (base / "chat_template.jinja").is_file():
        ours = all(tokenizer.token_to_id(token) is not None for token in SPECIAL_TOKENS)
        write_atomic(folder / "chat_template.jinja", CHAT_TEMPLATE if ours else PLAIN_CHAT_TEMPLATE)
        notes.append("it had no chat template; one was added")
    return notes
