"""tests/CATALOGUE.md says which test covers which fault; this test says whether it is right."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
ROW = re.compile(r"^\| ([A-J]\d+) \| (.+?) \| (.+) \|$", re.M)
TEST = re.compile(r"^def (test_((?:[A-J]\d+_)+)\w+)\(", re.M)


def by_row() -> dict[str, list[str]]:
    """{row: the tests that carry its id in their name}."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for name, ids in TEST.findall(path.read_text()):
            for row in ids.strip("_").split("_"):
                found.setdefault(row, []).append(f"{path.relative_to(TESTS)}::{name}")
    return found


def test_every_row_of_the_catalogue_names_its_tests_and_every_such_test_its_row():
    rows = {row: said for row, _, said in ROW.findall((TESTS / "CATALOGUE.md").read_text())}
    found = by_row()
    assert set(found) <= set(rows), f"rows that CATALOGUE.md lacks: {sorted(set(found) - set(rows))}"
    for row, said in rows.items():
        named = re.findall(r"`([^`]+)`", said)
        assert named == found.get(row, []), f"{row}: write it again with python -m tests.catalogue"
        assert named or said.startswith("not here: "), f"{row} has no test, and says not why"
