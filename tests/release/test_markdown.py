"""What MLflow's page makes of text that others wrote: the Showdown that it ships, run by node."""

from __future__ import annotations

import html
import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from components import markdown

HOSTILE = ["ask @alice https://x.org/a.b", "@bob", "bob@x.org, www.x.org/a.b WWW.x.org/a.b ftp://x.org/a.b mailto:a@x.org", ":octocat: :x::smile:",
           "it costs $5 and 12:30 & <b>x</b> a|b ~~c~~ *d* _e_ [f](https://g.h) ![i](https://j.k/l.png) \\ `m`", "步骤：看 https://例子.org/路 （@某人）"]


def rendered(texts: list[str]) -> list[str]:
    built = Path(importlib.util.find_spec("mlflow").origin).parent / "server/js/build/static/js"
    bundle = next((path for path in sorted(built.glob("*.js")) if "ghMentionsLink" in path.read_text(errors="replace")), None)
    if shutil.which("node") is None or bundle is None:
        pytest.skip("needs node, and the page of MLflow with its Showdown")
    done = subprocess.run(["node", str(Path(__file__).with_name("showdown.js")), str(bundle)], input=json.dumps(texts), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_J12_text_of_others_becomes_no_link_no_picture_and_reads_as_it_was_written():
    for before, shown in zip(HOSTILE, rendered([f"Why: {markdown.escape(text)}" for text in HOSTILE]), strict=True):
        assert html.unescape(shown) == f"<p>Why: {before}</p>"


def test_J12_nor_in_a_table_nor_as_the_words_of_a_link():
    (shown,) = rendered([markdown.table(["Why"], [[markdown.escape("@a :x: www.x.org | https://x.org/a.b")], [markdown.link("@a https://x.org/a.b", "http://127.0.0.1:1/")]])])
    assert "<td>@a :x: www.x.org | https://x.org/a.b</td>" in html.unescape(shown)
    assert '<a href="http://127.0.0.1:1/">@a https://x.org/a.b</a>' in html.unescape(shown) and shown.count("<a ") == 1 and "<img" not in shown
