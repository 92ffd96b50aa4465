"""YAML that people and accidents write, as plain data: no tag that makes an object, no key given twice, no bomb, no nesting without end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from components.errors import UserError

MAX_BYTES = 64 * 2**20
MAX_NESTING = 100
# What PyYAML raises: its own errors, and what it stumbles over in `!!int ""`, `!!bool x`, `!!timestamp x`, 2024-02-31
NOT_YAML = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
INDENTED_FAR = re.compile(rb"[ \-?:\t\0]{%d}" % MAX_NESTING)


class _UniqueKeyLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Safe YAML that refuses a key given twice (plain YAML lets the last one win silently)."""


def _unique_mapping(loader: Any, node: Any) -> dict:
    seen: dict = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool | None):
            raise yaml.constructor.ConstructorError(None, None, "a name was expected as key", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def check_nesting(data: bytes) -> None:
    """Raises YAMLError for nesting beyond MAX_NESTING: PyYAML's composer goes down level by level on the stack of C, and would crash.

    Counted out only where brackets that are not closed at once, or a long run of what indents, make it possible.
    """
    open_brackets = data.translate(None, NO_BRACKET).replace(b"{}", b"").replace(b"[]", b"")
    if len(open_brackets) < MAX_NESTING and not INDENTED_FAR.search(data):
        return
    depth = 0
    for event in yaml.parse(data, Loader=_UniqueKeyLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_NESTING:
            raise yaml.YAMLError(f"nested deeper than {MAX_NESTING}")


def parse_yaml(text: str | bytes) -> Any:
    """Plain data. Raises NOT_YAML."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    check_nesting(data)
    return yaml.load(data, Loader=_UniqueKeyLoader)  # a subclass of SafeLoader


def load_yaml(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """Raises UserError with file, line and what is wrong."""
    if path.stat().st_size > max_bytes:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; at most {max_bytes:,} are read. Bring the file back: git checkout {path.name}")
    try:
        return parse_yaml(path.read_bytes())
    except NOT_YAML as error:
        raise UserError(f"{path.name} is not valid YAML: {' '.join(str(error).split())[:300]}. Mend it, then run again") from error
