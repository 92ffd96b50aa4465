"""The served model, as MLflow runs it (models from code): text in, text out.

Logged as it stands with `mlflow.pyfunc.log_model(python_model=<this file>)`, so it imports nothing of this
repository: whoever loads it needs mlflow, torch and transformers. The artifact folder `model` is a Hugging Face
folder with `manifest.json` (sha256 of every file) and `serving.json` ({"kind": "base" | "instruct", "name", "weights_sha256"}).

Who answers: `model.unwrap_python_model().about()` where it was loaded, and `"params": {"about": true}` where it is served
(each prediction then is what `about` gives, as JSON).
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import re
from pathlib import Path
from typing import Any

import mlflow
import torch
import yaml
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR

PARAMS = {"max_new_tokens": 64, "temperature": 0.8, "top_k": 0, "top_p": 1.0, "seed": 0, "about": False}
MAX_TEMPERATURE = 10.0
MAX_SEED = 2**63 - 1
MAX_NEW_TOKENS = 65_536  # where the model itself states no longest sequence
# as components/release/imported.py has them; this file stands alone
CODE_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines", "custom_generate")
KERNEL = re.compile(r"_implementation(_internal)?$")
VOUCHED = "vouched.json"  # {file: sha256} of a released model, in its root
USER_TEXT = "\ue000user text\ue001"  # stands for the prompt while the chat template is rendered


class Answer(MlflowException):
    """An error that keeps its own line: the scoring server would put the caller's whole input in front of it."""

    @property
    def message(self) -> str:
        return self.line

    @message.setter
    def message(self, text: str) -> None:
        self.__dict__.setdefault("line", text)


def refuse(sentence: str) -> MlflowException:
    """A 400 with one line."""
    return Answer.invalid_parameter_value(sentence)


def unusable(sentence: str) -> MlflowException:
    """A 500 with one line."""
    return Answer(sentence, INTERNAL_ERROR)


def verify(folder: Path) -> None:
    """Hash every file of the folder. Raises MlflowException that names the first file at fault and both hashes."""
    try:
        listed = json.loads((folder / "manifest.json").read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unusable(f"model refused: {folder / 'manifest.json'} is missing or damaged ({type(error).__name__})") from None
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"manifest.json"}
    for name, entry in sorted(listed.items()):
        if name not in found:
            raise unusable(f"model refused: {name} is missing; manifest.json lists it with sha256 {entry['sha256']}")
        with open(folder / name, "rb") as f:
            actual = hashlib.file_digest(f, "sha256").hexdigest()
        if actual != entry["sha256"]:
            raise unusable(f"model refused: {name} is damaged: sha256 {actual} found, {entry['sha256']} was registered")
    if found - set(listed):
        raise unusable(f"model refused: {min(found - set(listed))} is not in manifest.json; somebody added it")


def verify_around(folder: Path) -> None:
    """The same for what lies around the model's folder (MLmodel, this file, the requirements), by the list that a release put there;
    MLflow itself looks at none of it. Raises MlflowException."""
    root = folder.parents[1]
    if not (root / VOUCHED).exists():
        return  # not stored yet: MLflow tries a model before it uploads it
    try:
        listed = json.loads((root / VOUCHED).read_bytes())
        whole = (root / VOUCHED).read_bytes() == listing(listed).encode()
    except (OSError, ValueError, TypeError):
        whole = False
    if not whole:
        raise unusable(f"model refused: {VOUCHED} is damaged; it lists what was registered")
    for name, wanted in listed.items():
        actual = hashlib.sha256((root / name).read_bytes()).hexdigest() if (root / name).is_file() else "no such file"
        if actual != wanted:
            raise unusable(f"model refused: {name} is damaged: sha256 {actual} found, {wanted} was registered")


def listing(files: dict[str, str]) -> str:
    """The text of VOUCHED, in the one way that it is written."""
    return json.dumps(files, indent=1, sort_keys=True) + "\n"


def registered_version(folder: Path) -> int | None:
    """The version as which MLflow fetched these files from its registry; None for files that came another way."""
    try:
        return int(yaml.safe_load((folder / "registered_model_meta").read_bytes())["model_version"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None


def code_key(value: Any, depth: int = 0) -> str | None:
    """The first key, at any depth, for which transformers would run code of the folder's own, or a kernel from the hub."""
    if depth > 20:
        return "nesting deeper than 20"
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in CODE_KEYS and inner:
                return key
            # "attn_implementation": "owner/kernel" is compiled code of that owner's
            if isinstance(key, str) and KERNEL.search(key) and isinstance(inner, str) and "/" in inner:
                return f"{key}: {inner[:60]}"
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for inner in inside if (found := code_key(inner, depth + 1)) is not None), None)


def refuse_code(folder: Path) -> None:
    """Raises MlflowException for a folder whose settings ask for code, or whose weights are not all safetensors."""
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        if (folder / name).exists() and (key := code_key(json.loads((folder / name).read_bytes()))):
            raise unusable(f"model refused: {name} asks for code of its own ({key})")
    index = folder / "model.safetensors.index.json"
    if index.exists() and any(not str(name).endswith(".safetensors") or "/" in str(name) for name in json.loads(index.read_bytes())["weight_map"].values()):
        raise unusable(f"model refused: {index.name} names weights that are no *.safetensors of its own folder")


def load(folder: Path, device: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a verified Hugging Face folder: safetensors only, no code of the folder's own.

    Raises MlflowException when a tensor is missing or left over (transformers would fill it with noise).
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as bars

    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        refuse_code(folder)
        # tensors of another shape are named below with the missing ones; transformers itself says only that there are some
        model, info = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True, trust_remote_code=False,
                                                           output_loading_info=True, ignore_mismatched_sizes=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except MlflowException:
        raise
    except Exception as error:  # noqa: BLE001  whatever a library makes of bytes that a manifest vouches for and that are no model
        raise unusable(f"model refused: it does not open ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from None
    finally:
        if shown:
            bars.enable_progress_bar()
    problems = {kind: sorted(str(key) for key in keys)[:3] for kind, keys in info.items() if keys}
    if problems:
        raise unusable(f"model refused: its weights do not fit its config.json: {problems}")
    return model.to(device).eval(), tokenizer


def next_token(logits_V: torch.Tensor, settings: dict[str, Any], generator: torch.Generator) -> int:
    """Draw one token id; temperature 0 takes the likeliest. Top-k, then nucleus (Holtzman et al. 2020)."""
    logits_V = logits_V.float().cpu()
    if not bool(torch.isfinite(logits_V).all()):
        raise unusable("the model computed numbers that are not finite; its weights are unusable")
    if settings["temperature"] == 0:
        return int(logits_V.argmax())
    # the maximum goes to 0 first, so that a tiny temperature cannot overflow
    scaled_V, ids_V = torch.sort((logits_V - logits_V.max()) / settings["temperature"], descending=True, stable=True)
    if settings["top_k"]:
        scaled_V = scaled_V[: settings["top_k"]]
    chances_V = torch.softmax(scaled_V, dim=-1)
    if settings["top_p"] < 1:
        before_V = chances_V.cumsum(-1) - chances_V
        chances_V = torch.where(before_V < settings["top_p"], chances_V, 0.0)  # the first one always stays
    return int(ids_V[torch.multinomial(chances_V, 1, generator=generator)])


class LanguageModel(mlflow.pyfunc.PythonModel):
    """Continues texts (base) or answers prompts (instruct). Rule of length: prompt + max_new_tokens <= context."""

    def load_context(self, context: Any) -> None:
        folder = Path(context.artifacts["model"])
        verify(folder)
        verify_around(folder)
        self.device = str((getattr(context, "model_config", None) or {}).get("device", "cpu"))
        self.model, self.tokenizer = load(folder, self.device)
        serving = json.loads((folder / "serving.json").read_bytes())
        self.instruct = serving["kind"] == "instruct"
        config = self.model.config
        self.context_tokens = getattr(config, "max_position_embeddings", None)
        self.vocabulary = int(config.vocab_size)
        ends = [self.model.generation_config.eos_token_id, config.eos_token_id, self.tokenizer.eos_token_id]
        self.tokens = self.tokenizer.backend_tokenizer  # "<|end|>" is the special token
        # what a user types is text: "<|end|>" in a prompt must not end the turn. A copy, as the switch is not a request's own
        self.plain_tokens = type(self.tokens).from_str(self.tokens.to_str())
        self.plain_tokens.encode_special_tokens = True
        if self.instruct:
            self.before, self.after = self.chat_frame()
            ends.append(self.end_of_answer())
        self.stops = {int(i) for end in ends if end is not None for i in (end if isinstance(end, list) else [end])}
        self.takes_logits_to_keep = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self.identity = {"name": serving.get("name"), "version": registered_version(folder.parents[1]), "kind": serving["kind"],
                         "weights_sha256": serving.get("weights_sha256"), "context": self.context_tokens}

    def about(self) -> dict[str, Any]:
        """Who answers: {"name", "version" (None outside a registry), "kind", "weights_sha256", "context" (longest text, in tokens)}."""
        return dict(self.identity)

    def predict(self, context: Any, model_input: list[str], params: dict[str, Any] | None = None) -> list[str]:
        """One text a prompt, each the same whatever else is in the request or running beside it."""
        try:
            settings = self.settings(params)
            if settings["about"]:
                return [json.dumps(self.about(), ensure_ascii=False)] * len(model_input)
            requests = [self.encode(n, prompt, settings) for n, prompt in enumerate(model_input)]
            return [self.generate(ids, settings) for ids in requests]
        except MlflowException:
            raise
        except Exception as error:  # MLflow would answer with the stack trace and file paths
            logging.getLogger("lmworks.model").exception("generation failed")
            raise unusable(f"generation failed inside the model ({type(error).__name__}); the server's log says more") from None

    def settings(self, params: dict[str, Any] | None) -> dict[str, Any]:
        """Defaults and the caller's params, each within its bounds. Raises a 400 that names field, value and bounds."""
        longest = self.context_tokens or MAX_NEW_TOKENS
        merged = PARAMS | {"max_new_tokens": min(PARAMS["max_new_tokens"], longest // 2)} | {key: value for key, value in (params or {}).items() if value is not None}
        bounds = {"max_new_tokens": (1, longest), "temperature": (0, MAX_TEMPERATURE), "top_k": (0, self.vocabulary),
                  "top_p": (0, 1), "seed": (0, MAX_SEED)}
        for field, (lowest, highest) in bounds.items():
            value = merged[field]
            kinds = (int, float) if isinstance(PARAMS[field], float) else int
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise refuse(f"{field}={str(value)[:40]!r}: a number from {lowest} to {highest} was expected")
            if not lowest <= value <= highest or (field == "top_p" and value == 0):
                above = " (above 0)" if field == "top_p" else " (0 = off)" if field == "top_k" else ""
                raise refuse(f"{field}={value} is out of range: from {lowest} to {highest}{above}")
        if not isinstance(merged["about"], bool):
            raise refuse(f"about={str(merged['about'])[:40]!r}: true (say who answers) or false was expected")
        return merged

    def chat(self, messages: list[dict[str, str]], waiting: bool) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=waiting)

    def chat_frame(self) -> tuple[str, str]:
        """What the model's own chat template puts before and after the user's text."""
        before, found, after = self.chat([{"role": "user", "content": USER_TEXT}], True).partition(USER_TEXT)
        if not found:
            raise unusable("model refused: its chat template drops the user's text")
        return before, after

    def end_of_answer(self) -> int | None:
        """The special token that the template puts after an answer."""
        whole = self.chat([{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}], False)
        special = set(self.tokenizer.all_special_ids)
        return next((i for i in reversed(self.tokens.encode(whole, add_special_tokens=False).ids) if i in special), None)

    def encode_chat(self, prompt: str) -> list[int]:
        """Token ids that wait for the answer, as in training; the user's text cannot bring in a special token."""
        before, after = (self.tokens.encode(part, add_special_tokens=False).ids for part in (self.before, self.after))
        special = set(self.tokenizer.all_special_ids)
        if before and after and before[-1] in special and after[0] in special:
            return [*before, *self.plain_tokens.encode(prompt, add_special_tokens=False).ids, *after]
        # other templates merge text and frame into common tokens, so both are encoded at once, special strings broken up
        for token in sorted({str(t) for t in self.tokenizer.added_tokens_decoder.values()} | set(self.tokenizer.all_special_tokens)):
            if len(token) > 1 and token.strip():
                prompt = prompt.replace(token, f"{token[0]} {token[1:]}")
        return self.tokens.encode(self.chat([{"role": "user", "content": prompt}], True), add_special_tokens=False).ids

    def encode_text(self, prompt: str) -> list[int]:
        """Token ids of the beginning of a document: in training, each came after `<|endoftext|>`."""
        ids = self.plain_tokens.encode(prompt).ids
        start = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        return ids if start is None or ids[:1] == [start] else [start, *ids]

    def encode(self, n: int, prompt: str, settings: dict[str, Any]) -> list[int]:
        """Token ids of prompt number n. Raises a 400 when it is empty (instruct), no text, or too long."""
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise refuse(f"prompt {n} holds half of a surrogate pair and is no valid Unicode text") from None
        if self.instruct and not prompt.strip():
            raise refuse(f"prompt {n} is empty; this model answers a question or instruction")
        ids = self.encode_chat(prompt) if self.instruct else self.encode_text(prompt)
        if not ids:
            raise refuse(f"prompt {n} is empty, and this model has no token that starts a text")
        wanted = len(ids) + settings["max_new_tokens"]
        if self.context_tokens and wanted > self.context_tokens:
            room = self.context_tokens - len(ids)
            advice = f"ask for at most max_new_tokens={room}" if room > 0 else "shorten the prompt"
            raise refuse(f"prompt {n} has {len(ids)} tokens, and with max_new_tokens={settings['max_new_tokens']} the text would have "
                         f"{wanted}; the model's context is {self.context_tokens}: {advice}")
        return ids

    @torch.inference_mode()
    def generate(self, ids: list[int], settings: dict[str, Any]) -> str:
        """Sample with a key-value cache and a generator of this request's own."""
        generator = torch.Generator().manual_seed(settings["seed"])
        keep = {"logits_to_keep": 1} if self.takes_logits_to_keep else {}
        new: list[int] = []
        inputs, cache = ids, None
        while len(new) < settings["max_new_tokens"]:
            mask = torch.ones(1, len(ids) + len(new), dtype=torch.long, device=self.device)
            out = self.model(input_ids=torch.tensor([inputs], device=self.device), attention_mask=mask, past_key_values=cache,
                             use_cache=True, **keep)
            token = next_token(out.logits[0, -1], settings, generator)
            if token in self.stops:
                break
            new.append(token)
            inputs, cache = [token], out.past_key_values
        return self.decode(ids, new)

    def decode(self, ids: list[int], new: list[int]) -> str:
        """Text of the new tokens. A character that the length limit cut in the middle is left out."""
        prompt = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        whole = self.tokenizer.decode([*ids, *new], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        # in company of the prompt, so that tokenizers that swallow a leading space keep it
        text = whole[len(prompt):] if whole.startswith(prompt) else \
            self.tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        tail = len(text) - len(text.rstrip("\ufffd"))
        return text[: len(text) - min(tail, 3)] if tail else text


mlflow.models.set_model(LanguageModel())
