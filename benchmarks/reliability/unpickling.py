"""Who unpickles what while real commands run: a hook in every process of a checkout, from its first import on.

Python imports `sitecustomize` before anything else, and every process of a checkout has its root in PYTHONPATH.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

LOG = ".unpickled.jsonl"
STARTED = ".watched.jsonl"
# processes of one pool, or a parent and its child, pass values through a pipe that nobody else can write to; Prefect's server passes its own
# background work through a queue in its own memory (environment.FIXED sees to it that the queue is no Redis)
INSIDE = ("multiprocessing/", "concurrent/futures/process.py", "subprocess.py", "docket/")

HOOK = '''"""Writes down every unpickling: what was called, by which process, from where; and every process that it watches."""
import json, os, pickle, sys

_ROOT = os.path.dirname(os.path.abspath(__file__))
_LOG = os.path.join(_ROOT, ".unpickled.jsonl")


def _note(what):
    frame, stack = sys._getframe(2), []
    while frame is not None and len(stack) < 12:
        name = frame.f_code.co_filename
        if not name.endswith(("/sitecustomize.py", "/pickle.py")) and not name.startswith("<frozen"):
            stack.append(f"{name.rpartition('/site-packages/')[2].rpartition('/python3.')[2]}:{frame.f_lineno}")
        frame = frame.f_back
    with open(_LOG, "a") as log:
        log.write(json.dumps({"what": what, "command": sys.argv[:4], "stack": stack}) + "\\n")


def _counted(what, call):
    def counted(*args, **named):
        _note(what)
        return call(*args, **named)
    return counted


class _Unpickler(pickle.Unpickler):
    def load(self):
        _note("Unpickler.load")
        return super().load()


class _PythonUnpickler(pickle._Unpickler):
    def load(self):
        _note("_Unpickler.load")
        return super().load()


pickle.load, pickle.loads = _counted("pickle.load", pickle.load), _counted("pickle.loads", pickle.loads)
pickle.Unpickler, pickle._Unpickler = _Unpickler, _PythonUnpickler


class _Late:
    """torch.load, joblib.load and cloudpickle.load, as soon as their modules are there."""
    wanted = {"torch.serialization": ("load",), "joblib.numpy_pickle": ("load",), "cloudpickle.cloudpickle": ("load", "loads"), "dill._dill": ("load", "loads")}

    def find_spec(self, name, path, target=None):
        if name not in self.wanted:
            return None
        sys.meta_path.remove(self)
        try:
            import importlib.util
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            for attribute in self.wanted[name]:
                if hasattr(module, attribute):
                    setattr(module, attribute, _counted(f"{name}.{attribute}", getattr(module, attribute)))
        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Late())
with open(os.path.join(_ROOT, ".watched.jsonl"), "a") as log:
    log.write(json.dumps(sys.orig_argv[:5]) + "\\n")  # which program and command; no more, or a secret typed behind it would stand here
'''


def install(root: Path) -> None:
    """Every process that is started in this checkout from now on is watched."""
    (root / "sitecustomize.py").write_text(HOOK)


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def watched(root: Path, *words: str) -> int:
    """How many processes the hook was in; with `words`, those whose command line has each of them. Nothing seen by none proves nothing."""
    return sum(1 for line in _lines(root / STARTED) if {*words} <= {*line})


def summary(root: Path) -> dict[str, Any]:
    """{"elsewhere": what was unpickled that came from a file, a database or another machine, by call and by who called; "inside": the
    other unpicklings, by library; "watched": how many processes the hook was in}."""
    elsewhere: Counter[str] = Counter()
    inside: Counter[str] = Counter()
    for entry in _lines(root / LOG):
        stack = [frame.replace(f"{root}/", "") for frame in entry["stack"]]
        if own := next((pipe for frame in stack[:3] for pipe in INSIDE if pipe in frame), None):
            inside[own] += 1
        else:
            elsewhere[f"{entry['what']} from {' < '.join(frame.rpartition(':')[0] for frame in stack[:4])}"] += 1
    return {"elsewhere": dict(elsewhere.most_common()), "inside": dict(inside), "watched": watched(root)}
