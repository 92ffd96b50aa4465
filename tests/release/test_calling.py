"""The lines that call a model ask it something in a language that it knows."""

from __future__ import annotations

import json
import shlex

import pytest

from components.release import calling


@pytest.mark.parametrize(("name", "languages", "prompt"), [
    ("tiny", ["en", "zh"], "The king"), ("tiny", ["zh"], "这里的"), ("tiny-instruct", ["en"], "What is the default of axis?"),
    ("tiny-instruct", ["zh"], "你好"), ("earlier", [""], "The king")])
def test_the_same_prompt_on_the_page_and_in_the_terminal(name: str, languages: list[str], prompt: str):
    line = shlex.split(calling.ask_line(name, languages))
    assert json.loads(line[line.index("-d") + 1])["inputs"] == [prompt]
    page = calling.usage(name, languages, "http://127.0.0.1:5311", f"models:/{name}@champion")
    assert f'model.predict(["{prompt}"]' in page and f'"inputs": ["{prompt}"]' in page
