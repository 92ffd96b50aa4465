"""Reading a page of ours as strictly as a browser does not: every tag closed, every id once, every link inside."""

from __future__ import annotations

from html.parser import HTMLParser

from components.corpus.page import FOLLOW_LINKS

VOID = {"meta", "br", "rect", "line", "path", "polyline"}


class Page(HTMLParser):
    """What stands in a page; raises AssertionError where tags do not match."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[tuple[str, dict[str, str | None]]] = []  # text of each th and td
        self.scripts: list[str] = []
        self.words = ""  # of the body, contents left out
        self.feed(text)
        self.close()
        assert self.stack == [], f"never closed: {self.stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("th", "td"):
            self.cells.append(("", dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if "script" in self.stack:
            self.scripts.append(data)
        elif not {"style", "title", "nav"} & set(self.stack):
            self.words += data
        if self.cells and {"th", "td"} & set(self.stack):
            self.cells[-1] = (self.cells[-1][0] + data, self.cells[-1][1])

    @property
    def ids(self) -> list[str]:
        return [str(attrs["id"]) for _, attrs in self.tags if "id" in attrs]

    @property
    def links(self) -> list[str]:
        return [str(attrs["href"]) for _, attrs in self.tags if "href" in attrs]

    def check(self) -> None:
        """Nothing is loaded, nothing of the data runs, no link is dead."""
        assert self.scripts == [FOLLOW_LINKS], "the policy lets this one run, by its hash"
        assert not {tag for tag, _ in self.tags} & {"link", "img", "iframe", "object", "embed", "base", "form"}
        assert not [attrs for _, attrs in self.tags if any(name.startswith("on") or name == "src" for name in attrs)]
        assert len(self.ids) == len(set(self.ids)) and all(link.startswith("#") and link[1:] in self.ids for link in self.links)

    def row(self, first: str, nth: int = 0) -> list[str]:
        """The cells of the row that begins at the nth cell which says `first`."""
        texts = [text for text, _ in self.cells]
        start = [i for i, text in enumerate(texts) if text == first][nth]
        heads = next(i for i in range(start, -1, -1) if "scope" in self.cells[i][1])
        width = next((n for n in range(heads, -1, -1) if "scope" not in self.cells[n][1]), -1)
        return texts[start:start + heads - width]
