"""How pages about data look: colours, signs, escaping. A page opens offline, loads nothing and prints.

What a result is stands there three times: as a word, as a sign and as a colour. The colours are those of
Okabe and Ito, which colour-blind people can tell apart; a test computes their contrast and their distance.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from components.corpus.language import language_of


@dataclass(frozen=True)
class Badge:
    """A state of an expectation; `ink` is the text on `colour`."""

    sign: str
    word: str
    colour: str
    ink: str = "#000000"


# In the order in which a reader needs them.
BADGES = {
    "block": Badge("✗", "blocked", "#d55e00"),
    "could not be run": Badge("?", "could not be run", "#cc79a7"),
    "quarantine": Badge("⊘", "quarantined", "#e69f00"),
    "warn": Badge("!", "warned", "#f0e442"),
    "not run": Badge("–", "not run", "#dddddd"),
    "passed": Badge("✓", "passed", "#0072b2", "#ffffff"),
}

# ink, quiet and link are text on paper or wash; line separates.
THEMES = {
    "light": {"paper": "#ffffff", "wash": "#f2f4f7", "ink": "#1b1b1b", "quiet": "#4a525c", "link": "#005a8f", "line": "#c9ced6"},
    "dark": {"paper": "#14171a", "wash": "#1f242a", "ink": "#e8eaed", "quiet": "#b4bbc4", "link": "#7cc4f5", "line": "#414951"},
}

LATIN_FONTS = 'system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Noto Sans"'
CHINESE_FONTS = '"PingFang SC","Hiragino Sans GB","Microsoft YaHei","Noto Sans CJK SC","Noto Sans SC","Source Han Sans SC","WenQuanYi Micro Hei"'

RULES = """\
*{box-sizing:border-box}
body{font:16px/1.55 @latin,@chinese,sans-serif;margin:0 auto;max-width:74rem;padding:1.5rem 1.25rem 4rem;color:var(--ink);background:var(--paper)}
:lang(zh){font-family:@chinese,@latin,sans-serif}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 .6rem}
h2{font-size:1.3rem;margin:2.4rem 0 .6rem;padding-top:.8rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.8rem 0 .4rem;line-height:1.5}
h4{font-size:1rem;margin:1.4rem 0 .4rem}
p{max-width:54rem;margin:.5rem 0}
a{color:var(--link)}
:focus-visible{outline:3px solid var(--link);outline-offset:2px}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;padding:0;margin:.3rem 0 1rem}
nav li{list-style:none}
.quiet,caption{color:var(--quiet);font-size:.92rem}
caption{text-align:left;padding-bottom:.3rem}
.verdict{font-size:1.15rem;padding:.7rem .9rem;border-left:.5rem solid;background:var(--wash);max-width:none}
.badge{border-radius:.3rem;padding:.1rem .5rem;white-space:nowrap;font-weight:600;font-size:.95rem;print-color-adjust:exact;-webkit-print-color-adjust:exact}
.tiles{display:flex;flex-wrap:wrap;gap:.6rem 1.6rem;padding:0;margin:.8rem 0}
.tiles li{list-style:none}
.scroll{overflow-x:auto;margin:.5rem 0 1rem}
table{border-collapse:collapse;font-size:.93rem}
th,td{text-align:left;padding:.35rem .7rem;border-bottom:1px solid var(--line);vertical-align:top}
th{background:var(--wash);font-weight:600}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.t{overflow-wrap:anywhere;white-space:pre-wrap;min-width:9rem}
code{font-size:.92em;overflow-wrap:break-word}
figure{margin:.8rem 0}figure svg{width:100%;max-width:46rem;height:auto}
svg text{fill:var(--ink)}svg .grid{stroke:var(--line)}
summary{cursor:pointer}
@media print{body{max-width:none;padding:0;font-size:10.5pt}nav{display:none}h2,h3,h4{break-after:avoid}tr,figure{break-inside:avoid}
thead{display:table-header-group}.scroll{overflow:visible}a{color:inherit;text-decoration:none}}
"""


# MLflow shows a page in a frame that may not go anywhere, not even to a heading of its own: there, and only there, a click
# on such a link scrolls. The policy lets this one script run, by its hash, and no other.
FOLLOW_LINKS = """\
if(location.protocol==="blob:")addEventListener("click",e=>{const a=e.target.closest("a[href^='#']"),\
t=a&&document.getElementById(a.getAttribute("href").slice(1));if(t){e.preventDefault();t.scrollIntoView();t.tabIndex=-1;t.focus({preventScroll:true})}})"""


class Html(str):
    """Markup that was made here. Every other value is escaped where it is put into a page."""

    __slots__ = ()


def style() -> str:
    """The style sheet: dark where the reader's screen asks for it, light on paper."""
    light, dark = (";".join(f"--{name}:{value}" for name, value in THEMES[theme].items()) for theme in ("light", "dark"))
    rules = RULES.replace("@latin", LATIN_FONTS).replace("@chinese", CHINESE_FONTS)
    return f":root{{color-scheme:light dark;{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{rules}"


# Control characters, lone surrogates (no UTF-8) and marks that turn the direction of writing around, which would reorder the page.
INVISIBLE = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


def shown(value: Any) -> Html:
    """Escaped, with what cannot be seen as its number (\\x00, \\u202e): signs for it are missing in many fonts."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(INVISIBLE.sub(lambda m: repr(m[0])[1:-1], str(value))))


def language(text: str) -> Html:
    """The attribute that lets a browser choose glyphs and a screen reader its voice; nothing for English."""
    code = language_of(text) if text and not text.isascii() else "en"
    return Html({"zh": ' lang="zh"', "en": ""}.get(code, ' lang="" dir="auto"'))


def badge(kind: str) -> Html:
    b = BADGES[kind]
    return Html(f'<span class="badge" style="background:{b.colour};color:{b.ink}">{b.sign} {b.word}</span>')


def count(number: int, one: str, many: str = "") -> str:
    """'1 row', '2 rows'."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def cell(value: Any) -> Html:
    """A whole number to the right, with thousands marked; markup as it is; any other text escaped, in its language."""
    if isinstance(value, int):
        return Html(f'<td class="n">{value:,}</td>')
    if isinstance(value, Html):
        return Html(f"<td>{value}</td>")
    return Html(f'<td class="t"{language(str(value))}>{shown(value)}</td>')


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Iterable[str] = ()) -> Html:
    """A table that scrolls by itself where it is too wide, by keyboard too. `numbers` names the columns of whole numbers."""
    right = set(numbers)
    heads = "".join(f"<th scope='col'{' class=n' if name in right else ''}>{shown(name)}</th>" for name in head)
    body = "\n".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return Html(f'<div class="scroll" tabindex="0" role="region" aria-label="{shown(caption)}"><table><caption>{shown(caption)}</caption>'
                f"<thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table></div>")


def contents(entries: Iterable[tuple[str, str]]) -> Html:
    """Links inside the page: (id, words). Only such links lead somewhere in a file, in a folder and in MLflow's view alike."""
    links = "".join(f'<li><a href="#{shown(anchor)}">{shown(words)}</a></li>' for anchor, words in entries)
    return Html(f'<nav aria-label="On this page"><ul>{links}</ul></nav>')


def policy() -> Html:
    """The tags that let a page load nothing and run FOLLOW_LINKS alone."""
    digest = base64.b64encode(hashlib.sha256(FOLLOW_LINKS.encode()).digest()).decode()
    return Html(f'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'; script-src \'sha256-{digest}\'">\n'
                f"<script>{FOLLOW_LINKS}</script>")


def page(title: str, body: str) -> str:
    """The whole document."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
{policy()}
<title>{shown(title)}</title><style>
{style()}</style></head><body>
{body}
</body></html>
"""
