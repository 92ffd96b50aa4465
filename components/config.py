"""Every setting: its type, default, unit, bound and one sentence. Values live in params.yaml alone.

`presets/*.yaml` hold what differs from the defaults here; `lmworks use PRESET` writes the resolved,
complete `params.yaml` that the stages read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from components import problems as said
from components.errors import UserError
from components.plain_yaml import load_yaml

MAX_SETTINGS_BYTES = 2**20  # a complete params.yaml has 8 kB
MAX_SETTINGS = 5_000  # entries of a file: YAML's aliases can make millions out of a few lines

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def within(least: int, most: int) -> AfterValidator:
    """Bounds of a kind of setting. Not Field(ge=, le=): of two such bounds, the kind's and the setting's, pydantic keeps one."""
    def check(value: int) -> int:
        if value < least:
            raise PydanticCustomError("greater_than_equal", "Input should be greater than or equal to {least}", {"least": least})
        if value > most:
            raise PydanticCustomError("less_than_equal", "Input should be less than or equal to {most}", {"most": most})
        return value

    return AfterValidator(check)


MOST = 10**12  # what lies above is a slip of the finger, and no library takes it
Count = Annotated[int, within(0, MOST)]
AtLeastOne = Annotated[int, within(1, MOST)]
Seconds = Annotated[int, within(0, 315_360_000)]  # ten years: more than any clock of a library takes would be an error in the night


def setting(default: Any, sentence: str, **bounds: Any) -> Any:
    return Field(default, description=sentence, **bounds)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


class Corpus(Section):
    """Where text comes from and how much of it is read (fetch, ingest)."""

    source: str = setting("embedded", "'embedded' or the path of a file or folder of txt, md, jsonl, csv, tsv, parquet, gz", min_length=1)
    records: str = setting("embedded", "'embedded' or the path of application records (jsonl)", min_length=1)
    base: str = setting("none", "'none', or an imported base model (a folder under data/imported/)", min_length=1)
    text_field: str = setting("text", "column that holds the text in jsonl, csv, tsv and parquet", min_length=1)
    embedded_mb: Positive = setting(9.0, "how much embedded text is selected, in megabytes", le=12)
    embedded_zh_share: Share = setting(0.5, "share of Chinese in the embedded selection, in bytes")
    docstring_files_a_package: AtLeastOne = setting(60, "embedded source files read for docstrings, a package", le=400)
    max_document_chars: AtLeastOne = setting(20_000, "longer documents are cut at a line or sentence end, in characters", ge=200)
    text_document_chars: AtLeastOne = setting(2_000, "a txt or md file is cut into documents of at most this, at blank lines, else line or sentence ends, in characters", ge=200)
    max_undecodable_line_ratio: Share = setting(0.05, "a text file with more lines that are not valid UTF-8 than this is refused; fewer are quarantined")
    max_line_mb: Positive = setting(64.0, "a longer line is quarantined, in megabytes", le=1024)
    max_expanded_mb: Positive = setting(4096.0, "a compressed file may grow to this, in megabytes")


class Validation(Section):
    """When the suites of Great Expectations block the chain (ingest, clean, shards)."""

    max_quarantine_ratio: Share = setting(0.02, "rows at fault above this share block the chain")
    min_documents: AtLeastOne = setting(20, "fewer documents than this block the chain")
    min_corpus_bytes: AtLeastOne = setting(50_000, "less UTF-8 text than this blocks the chain, in bytes")
    max_replacement_char_ratio: Share = setting(0.05, "a document with more U+FFFD than this is quarantined")
    max_control_char_ratio: Share = setting(0.02, "a document with more control characters than this is quarantined")
    max_unknown_language_ratio: Share = setting(0.5, "warn when more documents than this have no known language")
    min_distinct_ratio: Share = setting(0.1, "warn when fewer of the texts than this share are distinct")
    free_quarantine_rows: Count = setting(3, "this many rows at fault never block, whatever their share")


class Cleaning(Section):
    """What is mended and what is dropped (clean)."""

    fix_mojibake: bool = setting(True, "mend text decoded with the wrong encoding (ftfy)")
    min_chars: AtLeastOne = setting(8, "shorter documents are dropped, in characters")
    min_letter_ratio: Share = setting(0.4, "documents with fewer letters or Han characters than this share are dropped")
    max_repeated_line_ratio: Share = setting(0.5, "documents with more repeated lines than this share are dropped")
    max_one_char_ratio: Share = setting(0.5, "documents in which one character makes up more than this share are dropped")
    near_duplicate_jaccard: Share = setting(0.8, "documents at least this similar count as near-duplicates (1 = off)", gt=0)
    shingle_chars_zh: AtLeastOne = setting(4, "characters a shingle, Chinese", le=32)
    shingle_words_en: AtLeastOne = setting(5, "words a shingle, other languages", le=32)
    minhash_permutations: AtLeastOne = setting(64, "hashes a MinHash signature; a multiple of minhash_bands", le=512)
    minhash_bands: AtLeastOne = setting(16, "LSH bands", le=256)


class Splits(Section):
    """How held-out documents are chosen, by hash of their id (clean)."""

    validation_share: Share = setting(0.04, "share of documents held out for validation", lt=0.5)
    test_share: Share = setting(0.06, "share of documents held out for the test", gt=0, lt=0.5)
    min_held_out_documents: AtLeastOne = setting(20, "at least this many held out a split and language, if the language has ten times as many")


class Tokenizer(Section):
    """Byte-level BPE trained on the train split (tokenizer)."""

    vocab_size: AtLeastOne = setting(6144, "entries of the vocabulary, special tokens included", ge=300, le=262_144)
    max_training_mb: Positive = setting(64.0, "text of the train split that the tokenizer sees, in megabytes")


class Model(Section):
    """The shape of the model that pretraining builds (a `transformers` class)."""

    architecture: Literal["llama", "gpt2"] = setting("llama", "llama (RoPE, RMSNorm, SwiGLU) or gpt2 (learned positions, LayerNorm, GELU)")
    n_layer: AtLeastOne = setting(4, "transformer blocks", le=256)
    n_head: AtLeastOne = setting(4, "attention heads; must divide n_embd", le=256)
    n_embd: AtLeastOne = setting(256, "width of the residual stream", le=65_536)
    context: AtLeastOne = setting(256, "longest sequence, in tokens", ge=8, le=1_048_576)
    tie_embeddings: bool = setting(True, "input and output embeddings share their weights")


class Training(Section):
    """How pretraining learns (pretrain)."""

    steps: AtLeastOne = setting(600, "optimizer updates")
    rows: AtLeastOne = setting(16, "rows a batch; a row is one packed sequence", le=65_536)
    row_tokens: AtLeastOne = setting(128, "tokens a row; at most model.context", ge=8)
    isolate_documents: bool = setting(True, "documents packed into one row do not see one another")
    accumulation: AtLeastOne = setting(1, "batches whose gradients are summed before an update", le=4096)
    optimizer: Literal["adamw", "muon"] = setting("adamw", "adamw, or muon (Muon on matrices, AdamW on the rest)")
    learning_rate: Positive = setting(2e-3, "peak learning rate of AdamW", le=1)
    muon_learning_rate: Positive = setting(0.02, "peak learning rate of Muon", le=1)
    min_learning_rate_ratio: Share = setting(0.1, "final learning rate as a share of the peak")
    warmup_steps: Count = setting(30, "steps over which the learning rate rises")
    weight_decay: float = setting(0.1, "decoupled weight decay of matrices", ge=0, le=1, allow_inf_nan=False)
    beta1: Share = setting(0.9, "AdamW: decay of the first moment", lt=1)
    beta2: Share = setting(0.95, "AdamW: decay of the second moment", lt=1)
    clip_norm: Positive = setting(1.0, "gradients are scaled down to this global norm")
    precision: Literal["auto", "float32", "bfloat16"] = setting("auto", "dtype of the matrix products; weights stay float32. auto: bfloat16 where the hardware multiplies it, else float32")
    compile: bool = setting(False, "torch.compile the model")
    device: Literal["cpu", "cuda"] = setting("cpu", "where to train")
    threads: AtLeastOne = setting(2, "CPU threads of torch; part of what makes weights reproducible", le=1024)
    validation_interval: AtLeastOne = setting(100, "steps between validations")
    validation_tokens: AtLeastOne = setting(16_384, "tokens a validation and language")
    checkpoint_interval: AtLeastOne = setting(100, "steps between checkpoints")
    log_interval: AtLeastOne = setting(10, "steps between logged points")


class Finetuning(Section):
    """Supervised fine-tuning on application records (finetune)."""

    applications: list[Literal["classification", "question_answering", "translation", "summarisation", "recommendation", "text_generation"]] = setting(
        ["classification", "question_answering"], "applications whose records are learned", min_length=1)
    max_records: AtLeastOne = setting(4000, "training records an application and language, at most")
    epochs: AtLeastOne = setting(2, "passes over the records")
    rows: AtLeastOne = setting(16, "records a batch")
    learning_rate: Positive = setting(5e-4, "peak learning rate of AdamW", le=1)
    min_learning_rate_ratio: Share = setting(0.1, "final learning rate as a share of the peak")
    beta1: Share = setting(0.9, "AdamW: decay of the first moment", lt=1)
    beta2: Share = setting(0.95, "AdamW: decay of the second moment", lt=1)
    warmup_steps: Count = setting(20, "steps over which the learning rate rises")
    weight_decay: float = setting(0.01, "decoupled weight decay of matrices", ge=0, le=1, allow_inf_nan=False)
    max_row_tokens: AtLeastOne = setting(128, "longer records are cut in the prompt, never in the answer", ge=16)
    checkpoint_interval: AtLeastOne = setting(100, "steps between checkpoints")
    log_interval: AtLeastOne = setting(10, "steps between logged points")


class Evaluation(Section):
    """What is measured on the test split (evaluate)."""

    max_test_bytes: AtLeastOne = setting(300_000, "test text a language, in bytes, at most", ge=1000)
    max_records: AtLeastOne = setting(400, "test records an application and language, at most")
    window_tokens: AtLeastOne = setting(128, "context a token is scored with, in tokens; at most the model's own, best the row_tokens of its training", ge=8)
    ngram_order: int = setting(5, "order of the Kneser-Ney baseline", ge=2, le=6)
    ngram_max_tokens: AtLeastOne = setting(10_000_000, "training tokens of the Kneser-Ney baseline, a language, at most (memory: 0.3 GB a million)")
    bootstrap_samples: AtLeastOne = setting(1000, "resamples behind each interval", ge=100)
    confidence: Share = setting(0.95, "width of the intervals", gt=0.5, lt=1)
    sample_tokens: AtLeastOne = setting(48, "tokens of a sample text", le=2048)
    device: Literal["cpu", "cuda"] = setting("cpu", "where the models are scored; only cpu repeats bit for bit")
    threads: AtLeastOne = setting(2, "CPU threads of torch", le=1024)


BaseGate = Literal["finite_loss", "verified_manifest", "below_unigram", "below_xz", "not_worse_than_champion"]
InstructGate = Literal["finite_loss", "verified_manifest", "above_majority", "not_worse_than_champion"]
ContractPart = Literal["inputs", "outputs", "params", "context", "chat_template", "requirements"]


class Gates(Section):
    """Which criteria a model must meet to become champion (release)."""

    base: list[BaseGate] = setting(["finite_loss", "verified_manifest", "below_unigram", "below_xz", "not_worse_than_champion"],
                                   "criteria of NAME", min_length=1)
    instruct: list[InstructGate] = setting(["finite_loss", "verified_manifest", "above_majority", "not_worse_than_champion"],
                                           "criteria of NAME-instruct", min_length=1)
    bits_per_byte_margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = setting(0.01, "NAME may be worse than the champion by this, in bits per byte")
    score_margin: Share = setting(0.02, "NAME-instruct may score lower than the champion by this")
    allow_contract_break: list[ContractPart] = setting(
        [], "parts of the champion's contract that a new version may break: inputs, outputs, params, context, chat_template, requirements")


class Operations(Section):
    """How long things may take (flow and commands)."""

    stage_timeout_s: Seconds = setting(86_400, "a stage that runs longer is ended, in seconds", ge=1)
    fetch_retries: Count = setting(2, "tries after a failed fetch", le=10)
    lock_wait_s: Seconds = setting(1800, "a scheduled run waits this long for another run to end, in seconds")
    late_alert_s: Seconds = setting(900, "a scheduled run that has not begun raises an alert after this, in seconds", ge=10)
    max_silence_s: Seconds = setting(93_600, "`lmworks status` warns when an active schedule brought no green run for longer than this, and than its next date and two hours, in seconds (0: never)")


class Config(Section):
    """The whole of params.yaml."""

    preset: str = setting("tiny", "the preset that params.yaml was resolved from")
    name: str = setting("tiny", "name of the registered model", pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    seed: int = setting(1, "seed of initialisation, order and sampling", ge=0, lt=2**31)
    corpus: Corpus = Corpus()
    validation: Validation = Validation()
    cleaning: Cleaning = Cleaning()
    splits: Splits = Splits()
    tokenizer: Tokenizer = Tokenizer()
    model: Model = Model()
    training: Training = Training()
    finetuning: Finetuning = Finetuning()
    evaluation: Evaluation = Evaluation()
    gates: Gates = Gates()
    operations: Operations = Operations()

    def contradictions(self) -> list[str]:
        """Values that are each in bounds but do not go together."""
        problems = []
        if self.model.n_embd % self.model.n_head:
            problems.append(f"model.n_head={self.model.n_head} must divide model.n_embd={self.model.n_embd}")
        elif self.model.architecture == "llama" and (self.model.n_embd // self.model.n_head) % 2:
            problems.append(f"model.n_embd/model.n_head={self.model.n_embd // self.model.n_head} must be even for rotary positions")
        if self.training.row_tokens > self.model.context:
            problems.append(f"training.row_tokens={self.training.row_tokens} must be at most model.context={self.model.context}")
        if self.finetuning.max_row_tokens > self.model.context and self.corpus.base == "none":
            problems.append(f"finetuning.max_row_tokens={self.finetuning.max_row_tokens} must be at most model.context={self.model.context}")
        if self.training.warmup_steps >= self.training.steps:
            problems.append(f"training.warmup_steps={self.training.warmup_steps} must be below training.steps={self.training.steps}")
        if self.cleaning.minhash_permutations % self.cleaning.minhash_bands:
            problems.append(f"cleaning.minhash_permutations={self.cleaning.minhash_permutations} must be a multiple of cleaning.minhash_bands={self.cleaning.minhash_bands}")
        if self.splits.validation_share + self.splits.test_share > 0.5:
            problems.append(f"splits.validation_share + splits.test_share = {self.splits.validation_share + self.splits.test_share:g} must be at most 0.5")
        if self.name.endswith("-instruct"):
            problems.append(f"name={self.name!r} must not end in '-instruct': that suffix names the fine-tuned model")
        return problems


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> dict[str, Any]:
    """Every dotted key and its pydantic field, sections left out."""
    keys: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys |= known_keys(kind, f"{prefix}{name}.")
        else:
            keys[f"{prefix}{name}"] = field
    return keys


def _coerce(value: Any, field: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text and 9 as an integer; both are numbers where a float is meant."""
    if "float" in str(field.annotation):
        if isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
            return float(value)
    return value


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{'training': {'steps': 5}} -> {'training.steps': 5}. A name that holds a dot itself is quoted, so that it is no setting.

    Deeper than settings lie it does not look. Raises UserError for more entries than any file of settings has (YAML bombs).
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = prefix + (key if isinstance(key, str) and "." not in key else repr(key))
        if isinstance(value, dict) and not prefix:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
        if len(flat) > MAX_SETTINGS:
            raise UserError(f"more than {MAX_SETTINGS:,} settings, where some hundred are known: no file of settings. Run: lmworks use tiny")
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def build(flat: dict[str, Any], *, where: str, complete: bool = False, noticed: list[str] | None = None) -> Config:
    """A Config from dotted keys; `noticed` is what the text that they come from has shown already.

    Raises UserError that lists every problem at once: secrets, unknown keys with the nearest known one,
    missing keys (when `complete`), wrong types, values out of bounds, values that contradict.
    """
    keys = known_keys()
    problems = noticed or said.secrets_in({key: value for key, value in flat.items() if isinstance(value, str)})
    problems = [*problems, *said.unknown_keys(flat, keys)]
    missing = [key for key in keys if key not in flat]
    if complete and missing:
        problems.append(f"missing keys: {', '.join(missing)}. Run: lmworks use --upgrade")
    good = {key: _coerce(value, keys[key]) for key, value in flat.items() if key in keys}
    try:
        config = Config.model_validate(unflatten(good))
    except ValidationError as error:
        for e in error.errors():
            key = ".".join(str(part) for part in e["loc"])
            problems.append(said.in_words(e))
            good = {k: v for k, v in good.items() if k != key and not key.startswith(f"{k}.")}
        config = Config.model_validate(unflatten(good))  # the rest, so that contradictions are told too
    problems += config.contradictions()
    if problems:
        raise UserError(f"{where}: {len(problems)} problem{'s' if len(problems) > 1 else ''}\n" + "\n".join(f"  - {p}" for p in problems))
    return config


def load(path: Path) -> Config:
    """The resolved, complete configuration of a checkout."""
    if not path.exists():
        raise UserError(f"no {path.name} in {path.parent}; it holds every setting. Run: lmworks use tiny")
    return build(read(path, mend="Run: lmworks use tiny"), where=path.name, complete=True, noticed=secrets_in(path))


def read(path: Path, *, mend: str) -> dict[str, Any]:
    """The entries of a file of settings by dotted key, whatever they are. Raises UserError: no YAML, no mapping."""
    tree = load_yaml(path, MAX_SETTINGS_BYTES) or {}
    if not isinstance(tree, dict):
        raise UserError(f"{path.name}: a mapping of settings was expected, found {type(tree).__name__}. {mend}")
    try:
        return flatten(tree)
    except UserError as error:
        raise UserError(f"{path.name}: {error}") from error


def secrets_in(path: Path) -> list[str]:
    """A sentence for each line of a file of settings, comments included, that looks as if it held a secret."""
    lines = path.read_text("utf-8", errors="replace").splitlines()
    return said.secrets_in({f"line {number}": line for number, line in enumerate(lines, 1)})


def resolve(preset_path: Path, overrides: dict[str, Any] | None = None) -> Config:
    """A preset over the defaults, then `overrides` (dotted keys)."""
    flat = read(preset_path, mend=f"Mend presets/{preset_path.name}, or use another preset")
    flat.setdefault("preset", preset_path.stem)
    flat.setdefault("name", preset_path.stem)
    return build(flat | (overrides or {}), where=f"preset {preset_path.stem}" + (" with --set" if overrides else ""), noticed=secrets_in(preset_path))


def render(config: Config) -> str:
    """params.yaml: every value, each with its sentence as a comment."""
    lines = ["# Every setting, resolved. Written by `lmworks use`; edit freely: `git diff` and `dvc params diff` show what changed."]

    def emit(model: BaseModel, indent: str) -> None:
        for name, field in type(model).model_fields.items():
            value = getattr(model, name)
            if isinstance(value, BaseModel):
                lines.append(f"\n{indent}# {(type(value).__doc__ or '').splitlines()[0]}")
                lines.append(f"{indent}{name}:")
                emit(value, indent + "  ")
            else:
                text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000).removesuffix("\n").removesuffix("\n...")
                lines.append(f"{indent}{name}: {text}  # {field.description}")

    emit(config, "")
    return "\n".join(lines) + "\n"
