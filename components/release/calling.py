"""How a registered model is called: lines that work as they stand, for its page, its card and the terminal."""

from __future__ import annotations

from collections.abc import Sequence

PROMPTS = {"base": {"en": "The king", "zh": "这里的"}, "instruct": {"en": "What is the default of axis?", "zh": "你好"}}


def example_prompt(name: str, languages: Sequence[str]) -> str:
    """Something that the model has seen the like of, in the first of its languages that there is one for: they are in order, the one with
    most text first (a line of Latin letters makes no English model)."""
    known = PROMPTS["instruct" if name.endswith("-instruct") else "base"]
    return known[next((code for code in languages if code in known), "en")]


def serve_line(url: str, name: str, *, inside: bool = False, port: int = 5330) -> str:
    """The whole line that serves the champion; `inside` a checkout, it finds the commands of .venv (mlflow starts uvicorn by PATH)."""
    path = 'PATH="$PWD/.venv/bin:$PATH" ' if inside else ""
    return (f"{path}MLFLOW_TRACKING_URI={url} mlflow models serve -m models:/{name}@champion --env-manager local "
            f"-h 127.0.0.1 -p {port}")


def ask_line(name: str, languages: Sequence[str], *, port: int = 5330) -> str:
    """The whole line that asks what `serve_line` serves."""
    prompt = example_prompt(name, languages)
    return (f"curl -s http://127.0.0.1:{port}/invocations -H 'Content-Type: application/json' "
            f"-d '{{\"inputs\": [\"{prompt}\"], \"params\": {{\"max_new_tokens\": 40, \"seed\": 1}}}}'")


def usage(name: str, languages: Sequence[str], tracking_uri: str, uri: str) -> str:
    """How to call it, in Markdown: from Python, as a server, with curl."""
    prompt = example_prompt(name, languages)
    return f"""```python
import mlflow  # beside it: torch and transformers; nothing of lmworks

mlflow.set_tracking_uri("{tracking_uri}")
model = mlflow.pyfunc.load_model("{uri}")
params = {{"max_new_tokens": 40, "temperature": 0.8, "seed": 1}}
print(model.predict(["{prompt}"], params=params)[0])
print(model.unwrap_python_model().about())  # who answered: version, sha256 of the weights
```

As a server:

```sh
MLFLOW_TRACKING_URI={tracking_uri} mlflow models serve \\
  -m {uri} --env-manager local -h 127.0.0.1 -p 5330
```

Asked with curl; then who answers:

```sh
curl -s http://127.0.0.1:5330/invocations -H 'Content-Type: application/json' \\
  -d '{{"inputs": ["{prompt}"],
       "params": {{"max_new_tokens": 40, "temperature": 0.8, "seed": 1}}}}'
curl -s http://127.0.0.1:5330/invocations -H 'Content-Type: application/json' \\
  -d '{{"inputs": [""], "params": {{"about": true}}}}'
```

Params: `max_new_tokens`, `temperature` (0 = the likeliest token), `top_k` (0 = off), `top_p`, `seed`, `about`. One seed gives one answer."""
