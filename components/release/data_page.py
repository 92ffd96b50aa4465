"""The data report: where a run's text came from, what became of it on the way to tokens, and what validation said.

One page that holds the results of all three suites too: MLflow shows a page in a frame of its own, in which links
to other files lead nowhere. Every link here stays inside the page, so it works there, in a folder and offline.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from components import files
from components.corpus.page import BADGES, Html, badge, contents, count, page, shown, table
from components.corpus.splits import SPLITS
from components.corpus.validation_page import headline, kind_of, results
from components.evaluation.charts import columns
from components.layout import Layout
from components.release import data_profile
from components.release.data_profile import Profile
from components.release.gates import LANGUAGES, language

PAGE = "data/report.html"  # where it lies among the artifacts of a run
SOURCES_SHOWN = 25
MIN_BIN_TOKENS = 16

REASONS = {
    "exact_duplicate": "says the same as another one",
    "near_duplicate": "says nearly the same as another one",
    "near_duplicate_of_test": "says nearly the same as one held out for the test",
    "near_duplicate_of_validation": "says nearly the same as one held out for validation",
    "conflicting_labels": "the same text stands there with another label",
    "too_short": "is shorter than cleaning.min_chars",
    "too_repetitive": "repeats itself",
    "low_letter_ratio": "holds few letters",
    "empty_prompt": "has no prompt",
    "empty_answer": "has no answer",
    "prompt_of_test": "asks what is asked in the test",
    "prompt_of_validation": "asks what is asked in validation",
}


def render(layout: Layout) -> str | None:
    """The page of the data that lies in the checkout: the same bytes for the same data. None where there is none.

    Raises Damaged for a summary that is no JSON.
    """
    profile = data_profile.read(layout)
    if profile is None:
        return None
    name = str((files.load_yaml(layout.params) or {}).get("name", "")) if layout.params.exists() else ""
    title = f"Data of {name}" if name else "Data report"
    sections = [("summary", "Summary", _summary(profile)), ("languages", "By language", _languages(profile)),
                ("sources", "By source", _sources(profile)), ("dropped", "Dropped, by reason", _dropped(profile)),
                ("quarantined", "Quarantined, by expectation", _quarantined(profile)),
                ("near-duplicates", "Near-duplicates", _pairs(profile)), ("lengths", "Length of documents", _lengths(profile)),
                *((out, f"Validation of the {told['what']}", results(told, prefix=f"{out}-", level=3)) for out, told in profile.suites.items())]
    body = "\n".join(f'<section>\n<h2 id="{anchor}">{shown(words)}</h2>\n{text}\n</section>' for anchor, words, text in sections)
    return page(title, f"<header><h1>{shown(title)}</h1>\n{contents((anchor, words) for anchor, words, _ in sections)}</header>\n<main>\n{body}\n</main>")


def _total(profile: Profile, split: str, what: str) -> int:
    return sum(entry[what] for entry in profile.splits[split].values())


def _summary(profile: Profile) -> str:
    raw, clean, tokens = (profile.summaries[out] for out in data_profile.CHECKED)
    lost, gone = raw["documents_in"] - raw["documents_out"], clean["documents_in"] - clean["documents_out"]
    # the three stages in the order of the chain; a suite that blocked would have published nothing
    suites = "".join(f'<li>{badge(kind)} <a href="#{out}">{shown(told["what"])}</a>: {shown(sentence)}</li>'
                     for out, told in profile.suites.items() for kind, sentence in (headline(told),))
    warned = Counter(kind_of(r) for told in profile.suites.values() for r in told["results"])
    kind = next(k for k in ("block", "could not be run", "quarantine", "warn", "passed") if warned[k] or k == "passed")
    notes = [note for out in data_profile.CHECKED for note in profile.summaries[out].get("notes", [])]
    said = "".join(f"<li>{shown(note)}</li>" for note in notes)
    return (f'<p class="verdict" style="border-color:{BADGES[kind].colour}">{count(raw["documents_in"], "document")} read, {lost:,} quarantined, '
            f'{gone:,} dropped by cleaning; {count(clean["documents_out"], "document")} became {count(tokens["tokens"], "token")}, '
            f"{_total(profile, 'train', 'tokens'):,} of them to train on.</p>\n<ul>{suites}</ul>\n"
            + (f"<p>What the stages noted:</p><ul>{said}</ul>" if notes else ""))


def _languages(profile: Profile) -> str:
    codes = sorted({*profile.raw, *(code for entries in profile.splits.values() for code in entries)}, key=lambda c: (c not in LANGUAGES, c))
    kept = {code: sum(profile.splits[split].get(code, {}).get("documents", 0) for split in SPLITS) for code in codes}

    def line(words: str, by_language: dict[str, int]) -> list[Any]:
        return [words, *(by_language.get(code, 0) for code in codes), sum(by_language.values())]

    rows = [line("raw: documents that validation kept", dict(profile.raw)),
            line("dropped by cleaning", {code: profile.raw[code] - kept[code] for code in codes}),
            line("clean: documents", kept)]
    for split in SPLITS:
        for what in ("documents", "tokens", "bytes"):
            rows.append(line(f"{split}: {what}", {code: profile.splits[split].get(code, {}).get(what, 0) for code in codes}))
    heads = [*map(language, codes), "all"]
    return table("From raw text to tokens (bytes of UTF-8; a document ends in one more token)", ["", *heads], rows, heads)


def _sources(profile: Profile) -> str:
    shares = ("read", "quarantined", "dropped", *SPLITS)
    ordered = sorted(profile.sources.items(), key=lambda item: (-item[1].counts["read"], item[0]))
    rows = [[name, source.files, *(source.counts[what] for what in shares)] for name, source in ordered[:SOURCES_SHOWN]]
    rest = ordered[SOURCES_SHOWN:]
    if rest:
        rows.append([f"{len(rest):,} others", sum(s.files for _, s in rest), *(sum(s.counts[what] for _, s in rest) for what in shares)])
    rows.append(["all", sum(s.files for _, s in ordered), *(sum(s.counts[what] for _, s in ordered) for what in shares)])
    return table("Documents by source file, or by folder where the files are many", ["source", "files", *shares], rows, ("files", *shares))


def _dropped(profile: Profile) -> str:
    documents, records = (profile.dropped.get(kind, Counter()) for kind in ("document", "record"))
    reasons = sorted({*documents, *records}, key=lambda reason: (-documents[reason], -records[reason], reason))
    if not reasons:
        return "<p>Nothing was dropped.</p>"
    rows = [[reason, REASONS.get(reason, ""), documents[reason], records[reason]] for reason in reasons]
    rows.append(["all", "", documents.total(), records.total()])
    return table("What cleaning dropped; each document and record has one reason", ["reason", "in words: it …", "documents", "application records"],
                 rows, ("documents", "application records"))


def _quarantined(profile: Profile) -> str:
    if not profile.quarantined:
        return "<p>No row was set aside.</p>"
    words = {r["name"]: r["sentence"] for r in profile.suites["raw"]["results"]}
    rows = [[name, words.get(name, ""), n] for name, n in sorted(profile.quarantined.items(), key=lambda item: (-item[1], item[0]))]
    rows.append(["all", "", profile.quarantined.total()])
    return (table("Rows set aside when the text was read, application records included; each under the first expectation that it fails",
                  ["expectation", "in words", "rows"], rows, ("rows",))
            + '<p>Ten rows of each stand <a href="#raw-found">with the results of validation</a>; all of them in data/raw/quarantine.parquet.</p>')


def _pairs(profile: Profile) -> str:
    near = {reason: n for reason, n in profile.dropped.get("document", Counter()).items() if reason.startswith("near_duplicate")}
    if not near:
        return "<p>No two documents say nearly the same.</p>"
    rows = [[pair.source, Html(pair.row), pair.reason, pair.dropped, pair.kept] for pair in profile.pairs]
    shows = f"The first {len(rows)} of {sum(near.values()):,}" if sum(near.values()) > len(rows) else "All"
    return table(f"{shows}: what was dropped, beside what stayed for it", ["source", "row", "reason", "dropped", "stayed"], rows)


def _lengths(profile: Profile) -> str:
    """Powers of two, as lengths spread over several of them; shares, as languages differ in size."""
    longest = max((int(lengths.max()) for lengths in profile.lengths.values()), default=0)
    edges = [0, MIN_BIN_TOKENS]
    while edges[-1] < longest:
        edges.append(2 * edges[-1])
    counts = {language(code): np.histogram(lengths, bins=[edge + 0.5 for edge in edges])[0] for code, lengths in profile.lengths.items()}
    picture = columns("Tokens a document, by language", [f"≤ {edge:,}" for edge in edges[1:]],
                      {name: [100 * int(n) / max(int(found.sum()), 1) for n in found] for name, found in counts.items()},
                      x_label="tokens a document, end of text included", y_label="% of the documents of that language")
    rows = [[language(code), len(lengths), int(np.median(lengths)), int(np.quantile(lengths, 0.9)), int(lengths.max())]
            for code, lengths in profile.lengths.items()]
    heads = ("documents", "half are at most", "nine of ten are at most", "longest")
    return f"<figure>{picture}</figure>\n" + table("Tokens a document", ["language", *heads], rows, heads)
