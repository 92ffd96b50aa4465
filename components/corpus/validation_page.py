"""What a suite found, for people: the page that opens without network, the message of a blocked chain, the notes."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from components.corpus.validation import Result, Verdict

# Colours of Okabe and Ito, which colour-blind people can tell apart; the symbol and the word say the same.
BADGES = {
    "passed": ("✓", "passed", "#0072b2"),
    "block": ("✗", "blocked", "#b34700"),
    "quarantine": ("⊘", "quarantined", "#8a6100"),
    "warn": ("!", "warning", "#9c3f74"),
    "could not be run": ("?", "could not be run", "#b34700"),
    "not run": ("–", "not run", "#555555"),
}

STYLE = """
:root{color-scheme:light}body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Noto Sans","PingFang SC",
"Hiragino Sans GB","Microsoft YaHei","Noto Sans CJK SC","Source Han Sans SC","WenQuanYi Micro Hei",sans-serif;margin:2rem auto;max-width:70rem;
padding:0 1rem;color:#1b1b1b;background:#fff}h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;width:100%;font-size:.92rem}th,td{text-align:left;padding:.4rem .6rem;border-bottom:1px solid #ddd;vertical-align:top}
th{background:#f3f3f3}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}code{font-size:.9em}
td.t{overflow-wrap:anywhere;white-space:pre-wrap}.b{color:#fff;border-radius:.3rem;padding:.1rem .5rem;white-space:nowrap;font-weight:600}
.verdict{font-size:1.15rem;padding:.6rem .9rem;border-left:.5rem solid;background:#f7f7f7}.wide{overflow-x:auto}small{color:#444}
"""


def _text(value: Any) -> str:
    """Escaped, with control characters made visible (U+2400 and after)."""
    shown = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda m: chr(0x2400 + ord(m[0])), str(value)).replace("\x7f", "\u2421")
    return html.escape(shown)


def _kind(result: Result) -> str:
    return result.state if result.state != "failed" else result.severity


def _badge(kind: str) -> str:
    symbol, word, colour = BADGES[kind]
    return f'<span class="b" style="background:{colour}">{symbol} {word}</span>'


def _line(result: Result) -> str:
    link = f'<a href="#{_text(result.name)}"><code>{_text(result.name)}</code></a>' if result.examples else f"<code>{_text(result.name)}</code>"
    detail = f"<br><small>{_text(result.detail)}</small>" if result.detail else ""
    return (f"<tr><td>{_badge(_kind(result))}</td><td>{link}</td><td>{_text(result.sentence)}{detail}</td><td>{_text(result.severity)}</td>"
            f'<td class="n">{result.checked:,}</td><td class="n">{result.at_fault:,}</td></tr>')


def _examples(result: Result) -> str:
    rows = "".join(f'<tr><td class="t">{_text(e["source"])}</td><td class="n">{e["row"]}</td><td class="t">{_text(e["detail"])}</td>'
                   f'<td class="t">{_text(e["text"])}</td></tr>' for e in result.examples)
    more = f" The first {len(result.examples)} of {result.at_fault:,}." if result.at_fault > len(result.examples) else ""
    return (f'<h2 id="{_text(result.name)}">{_badge(_kind(result))} <code>{_text(result.name)}</code></h2><p>{_text(result.sentence)}{more} '
            f'{_text(result.advice)}.</p><div class="wide"><table><thead><tr><th>source</th><th class="n">row</th><th>what is wrong</th><th>text</th></tr>'
            f"</thead><tbody>{rows}</tbody></table></div>")


def render(verdict: Verdict) -> str:
    """The page of a verdict: the same bytes for the same verdict."""
    blocking = verdict.blocking
    colour = BADGES["block" if blocking else "passed"][2]
    headline = (f"✗ Blocked: {', '.join(r.name for r in blocking if r.state != 'not run')}" if blocking
                else "✓ Passed: the chain may go on")
    counts = (f"{verdict.rows:,} rows read, {verdict.rows - len(verdict.table):,} quarantined, {len(verdict.table):,} kept; "
              f"{sum(r.success for r in verdict.results)} of {len(verdict.results)} expectations passed.")
    ordered = sorted(verdict.results, key=lambda r: (not r.blocks, r.success))
    lines = "".join(map(_line, ordered))
    details = "".join(_examples(r) for r in ordered if r.examples)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Validation of the {_text(verdict.what)}</title><style>{STYLE}</style></head><body>
<h1>Validation of the {_text(verdict.what)}</h1>
<p class="verdict" style="border-color:{colour}">{_text(headline)}</p><p>{counts}</p>
<div class="wide"><table><thead><tr><th>result</th><th>expectation</th><th>in words</th><th>severity</th><th class="n">checked</th>
<th class="n">at fault</th></tr></thead><tbody>{lines}</tbody></table></div>
{details}
</body></html>
"""


def _example(result: Result) -> str:
    if not result.examples or not result.examples[0]["source"] or result.state == "could not be run":
        return ""
    first = result.examples[0]
    said = f"{first['text'][:60]!r}" if first["text"] else first["detail"]
    return f" Example: {first['source']} row {first['row']}: {said}."


def _found(result: Result) -> str:
    if result.state == "could not be run":
        return f"could not be run: {result.detail}"
    return result.detail or f"{result.at_fault:,} of {result.checked:,} rows are at fault"


def blocked_message(verdict: Verdict, page: Path) -> str:
    """Each failed gate: how many of how many, one example, what to do; at the end the page."""
    lines, advised = [f"validation of the {verdict.what} stopped the chain"], set()
    for r in verdict.blocking:
        if r.state != "not run":
            advice = "" if r.advice in advised else f" {r.advice}."  # once is enough
            lines.append(f"  - {r.name}: {r.sentence} Found: {_found(r)}.{_example(r)}{advice}")
            advised.add(r.advice)
    waiting = sum(r.state == "not run" for r in verdict.results)
    if waiting:
        lines.append(f"  - {waiting} more expectations were not run")
    return "\n".join([*lines, f"All results, with the rows: {page}"])


def notes(verdict: Verdict) -> list[str]:
    """Sentences about warnings and about what was quarantined."""
    found = [f"{r.name}: {r.sentence} Found: {_found(r)}." for r in verdict.results if r.state == "failed" and r.severity == "warn"]
    quarantined = [f"{r.name} {r.at_fault:,}" for r in verdict.results if r.severity == "quarantine" and r.at_fault]
    if quarantined:
        found.append(f"{verdict.rows - len(verdict.table):,} of {verdict.rows:,} rows were quarantined ({', '.join(quarantined)}).")
    return found
