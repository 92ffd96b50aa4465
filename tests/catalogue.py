"""Write the tests that carry an id into tests/CATALOGUE.md: python -m tests.catalogue

Rows, their words and the reasons of those without a test are kept as they stand there.
"""

from __future__ import annotations

from tests.test_catalogue import ROW, TESTS, by_row


def main() -> None:
    page, found = TESTS / "CATALOGUE.md", by_row()

    def line(match: object) -> str:
        row, fault, said = match.groups()  # type: ignore[attr-defined]
        named = "<br>".join(f"`{name}`" for name in found.get(row, []))
        return f"| {row} | {fault} | {named or (said if said.startswith('not here: ') else 'not here: ')} |"

    page.write_text(ROW.sub(line, page.read_text()))


if __name__ == "__main__":
    main()
