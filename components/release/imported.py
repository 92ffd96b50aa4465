"""A base model from outside: is it a causal language model that opens without code or pickles, and where it goes."""

from __future__ import annotations

import json
import os
import re
import reprlib
import shutil
from pathlib import Path
from typing import Any

from components import files
from components.errors import UserError
from components.layout import Layout

WANTED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
          "chat_template.jinja", "model.safetensors.index.json", "LICENSE", "LICENSE.txt", "LICENSE.md", "README.md")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".msgpack", ".h5")
MAX_JSON_BYTES = 256 * 2**20
# every key of a folder's JSON that would have transformers run code of the folder's own
CODE_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines", "custom_generate")
KERNEL = re.compile(r"_implementation(_internal)?$")


def _json(path: Path) -> Any:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; at most {MAX_JSON_BYTES:,} are read")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({type(error).__name__}: {str(error)[:100]}); it was damaged or cut short. "
                        "Fetch the model again") from None


def _code_key(value: Any, depth: int = 0) -> str | None:
    """The first key, at any depth, that asks for code."""
    if depth > 20:
        return "nesting deeper than 20"
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in CODE_KEYS and inner:
                return key
            # "attn_implementation": "owner/kernel" is compiled code of that owner's, from the hub
            if isinstance(key, str) and KERNEL.search(key) and isinstance(inner, str) and "/" in inner:
                return f"{key}: {inner[:60]}"
            if (found := _code_key(inner, depth + 1)) is not None:
                return found
    elif isinstance(value, list):
        for inner in value:
            if (found := _code_key(inner, depth + 1)) is not None:
                return found
    return None


def check_links(folder: Path, names: list[str]) -> None:
    """Links are followed inside the folder and, in a cache of the hub, to its blobs alone: a copy of what they name becomes part of the
    model, and a model is published. Raises UserError with the link and where it leads."""
    blobs = folder.parent.parent / "blobs"
    allowed = [folder.resolve(), *([blobs.resolve()] if folder.parent.name == "snapshots" and blobs.is_dir() else [])]
    for name in names:
        target = (folder / name).resolve()
        if (folder / name).is_symlink() and not any(target.is_relative_to(inside) for inside in allowed):
            raise UserError(f"{folder / name} is a link to {target}, which is outside this model's folder. Put a copy of the file there, or remove the link")


def shards(folder: Path) -> list[str]:
    """The weight files, all of them there. Raises UserError: none, only pickles, or a shard of the index is missing."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        wanted = _json(index)
        if not isinstance(wanted, dict) or not isinstance(wanted.get("weight_map"), dict):
            raise UserError(f"{index} has no weight_map. Fetch the model again")
        names = sorted({str(name): name for name in wanted["weight_map"].values()}.values(), key=str)
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise UserError(f"{index} names {name!r}: a *.safetensors file of the same folder was expected. Do not use this model")
            if not (folder / name).is_file():
                raise UserError(f"{folder} lacks {name}, which {index.name} lists ({len(names)} shards). Fetch the model again")
        return names
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    if pickled:
        raise UserError(f"{folder} has its weights only as {pickled[0]}, a format that can run code when it is opened; only safetensors is "
                        "read. Fetch the safetensors version, or convert it where you trust the file: model.save_pretrained(…)")
    raise UserError(f"{folder} has no model.safetensors (nor model.safetensors.index.json). A Hugging Face folder of a causal language model "
                    "was expected: config.json, tokenizer.json, *.safetensors")


def check(folder: Path) -> list[str]:
    """Names of the files to take from a Hugging Face folder, found fit without running anything of it.

    Raises UserError with what is wrong with it. Pickles beside safetensors are not taken.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Give a Hugging Face folder, models:/NAME@champion, or none")
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}. A Hugging Face folder of a causal language model was expected: "
                            "config.json, tokenizer.json, *.safetensors")
    check_links(folder, sorted(path.name for path in folder.iterdir() if path.name in WANTED or path.name.endswith(".safetensors")))
    for name in WANTED:
        if name.endswith("config.json") and (folder / name).exists():
            key = _code_key(_json(folder / name))
            if key is not None:
                raise UserError(f"{folder / name} asks for code of its own ({key}); models that bring code are refused. "
                                "Use a model of a class that transformers knows")
    config = _json(folder / "config.json")
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    named, kind = (config.get(key) if isinstance(config, dict) else None for key in ("architectures", "model_type"))
    found = named[0] if isinstance(named, list) and named else named
    classes = KNOWN.get(kind, ()) if isinstance(kind, str) else ()
    if not isinstance(found, str) or found not in ((classes,) if isinstance(classes, str) else classes):
        raise UserError(f"{folder / 'config.json'}: architectures={reprlib.repr(found)}, model_type={reprlib.repr(kind)} "
                        "is no causal language model that the installed transformers knows. Import e.g. a Llama, Qwen or GPT-2 folder")
    return sorted([name for name in WANTED if (folder / name).is_file()] + shards(folder))


def try_to_load(folder: Path, shown: Path | None = None) -> dict[str, Any]:
    """Open model and tokenizer for real. Returns {"parameters", "context", "vocabulary"}. Raises UserError, naming `shown`."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as bars

    bars.disable_progress_bar()
    shown = shown or folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model, info = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True, trust_remote_code=False,
                                                           output_loading_info=True)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001  the folder is anybody's, each damage raises another class, and a panic of Rust is no Exception
        raise UserError(f"{shown} does not open as a causal language model ({type(error).__name__}: {' '.join(str(error).replace(str(folder), str(shown)).split())[:200]}). "
                        "Fetch the model again") from None
    wrong = {kind: sorted(str(key) for key in keys)[:3] for kind, keys in info.items() if keys}
    if wrong:
        raise UserError(f"{shown}: weights and config.json do not fit together ({wrong}); transformers would fill the gaps with random "
                        "numbers. Fetch the model again")
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(f"{shown}: the tokenizer has {len(tokenizer):,} tokens, the model {model.config.vocab_size:,}; they do not belong "
                        "together. Fetch both from one place")
    _try_chat_template(tokenizer, shown)
    if any(not bool(torch.isfinite(tensor).all()) for tensor in model.parameters()):
        raise UserError(f"{shown}: some weights are not finite numbers. Fetch the model again, or use another")
    return {"parameters": sum(tensor.numel() for tensor in model.parameters()),
            "context": getattr(model.config, "max_position_embeddings", None), "vocabulary": model.config.vocab_size}


def _try_chat_template(tokenizer: Any, shown: Path) -> None:
    """A template is a program; transformers runs it in a sandbox, and one that breaks out of it or cannot write a chat is no use."""
    if not tokenizer.chat_template:
        return  # one is added later
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # noqa: BLE001  whatever a foreign template raises
        raise UserError(f"{shown}: its chat template does not write a chat ({type(error).__name__}: {' '.join(str(error).split())[:160]}). "
                        "Fetch the model again, or give it another template") from None


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "model"


def bring_in(folder: Path, called: str, layout: Layout) -> tuple[str, dict[str, Any]]:
    """Copy a checked folder to data/imported/, whole or not at all. Returns (its name there, facts of `try_to_load`).

    The copy is what is loaded and hashed, so nothing can change in between. Importing it again changes nothing.
    """
    names = check(folder)
    partial = layout.partial / "import"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        size = sum((folder / name).stat().st_size for name in names)
        room = shutil.disk_usage(partial).free
        if size > room:
            raise UserError(f"{folder} has {size / 2**20:,.0f} MiB to copy, {partial.parent.parent} has {room / 2**20:,.0f} MiB free. Free space")
        for name in names:
            shutil.copyfile(folder / name, partial / name)
        facts = try_to_load(partial, folder)
        identity = files.sha256_bytes(files.canonical_json({name: files.sha256_file(partial / name) for name in names}).encode())
        name = f"{slug(called)}-{identity[:8]}"
        final = layout.imported / name
        if not final.exists():
            files.publish(partial, final)
        files.verify_manifest(final)
        return name, facts
    except OSError as error:
        raise UserError(f"cannot copy {error.filename or folder} to {layout.imported}: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
