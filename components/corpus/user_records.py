"""Application records of the user's: one JSON object a line, {application, prompt, answer, answers?, language?, label?}."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.config import Corpus
from components.corpus import encodings
from components.corpus.documents import APPLICATIONS, Fault, metadata_json
from components.corpus.language import LANGUAGES, language_of
from components.corpus.readers import checked, json_objects, normal_newlines

Record = dict[str, str]
KEYS = ("application", "prompt", "answer", "answers", "language", "label")


def read_records(path: Path, name: str, corpus: Corpus) -> tuple[str, Iterator[Record | Fault]]:
    """(how the file was decoded, where that is worth saying; its records). Raises UserError as readers.read does."""
    encoding = encodings.detect(path, name, corpus)
    return encoding.words, _records(path, name, corpus, encoding)


def _records(path: Path, name: str, corpus: Corpus, encoding: encodings.Encoding) -> Iterator[Record | Fault]:
    for item in json_objects(encodings.open_utf8(path, name, corpus, encoding), corpus):
        yield item if isinstance(item, Fault) else to_record(*item, name)


def to_record(number: int, value: dict[str, Any], source: str) -> Record | Fault:
    """A row of records.parquet out of the object in line `number`, or the Fault of the first thing wrong with it.

    The label of a classification is its answer, unless one is given. `answers` are further right ones, and go into the metadata as other keys do.
    """
    where, shown = f"line {number}", metadata_json(value)
    application = value.get("application")
    if application not in APPLICATIONS:
        return Fault(number, "application_is_known", f"{where}: application {application!r}; known: {', '.join(APPLICATIONS)}", shown)
    for key in ("prompt", "answer"):
        if fault := _not_text(number, value.get(key), where, key, shown):
            return fault
    prompt, answer = (normal_newlines(value[key]).strip() for key in ("prompt", "answer"))
    language, label, answers = (None if value.get(key) == "" else value.get(key) for key in ("language", "label", "answers"))  # null, or "": an empty cell
    if language is None:
        language = language_of(f"{prompt}\n{answer}")
    if language not in LANGUAGES:
        return Fault(number, "language_is_known", f"{where}: language {language!r}; known: {', '.join(LANGUAGES)}", shown)
    if label is None:
        label = answer if application == "classification" else ""
    elif fault := _not_text(number, label, where, "label", shown):
        return fault
    answers = [] if answers is None else answers
    if not isinstance(answers, list):
        return Fault(number, "answers_are_strings", f"{where}: answers is {type(answers).__name__}, a list of texts was expected", shown)
    for entry in answers:
        if fault := _not_text(number, entry, where, "answers", shown):
            return fault
    others = {"answers": [normal_newlines(entry).strip() for entry in answers]} if answers else {}
    return {"id": f"{application}:{source}#{number:08d}", "application": application, "language": language, "prompt": prompt,
            "answer": answer, "label": normal_newlines(label).strip(), "source": source, "document": "",
            "metadata": metadata_json({key: entry for key, entry in value.items() if key not in KEYS} | others)}


def _not_text(number: int, text: Any, where: str, key: str, shown: str) -> Fault | None:
    """What is wrong with a text of a record, if anything: it must say something, in Unicode."""
    row = checked(number, text, {}, f"{where}, {key!r}")
    if isinstance(row, Fault):
        expectation = "answers_are_strings" if key == "answers" else f"{key}_is_string"
        return row._replace(expectation=expectation if row.expectation == "text_is_string" else row.expectation)
    if not row.text.strip():
        return Fault(number, f"{key}_is_not_blank", f"{where}: {key!r} is empty", shown)
    return None
