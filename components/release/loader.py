"""Which code a stored model may bring: the model file of lmworks, known by its hash, and nothing else (J2).

MLflow runs whatever the MLmodel of a version names, `loader_module` and `code` with pickles switched off, and everybody on this
machine may write to its server. So a version is loaded only if it is of the one kind that release makes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from components import files
from components.errors import Damaged, UserError

MODEL_FILE = Path(__file__).resolve().parents[1] / "serving" / "model_file.py"
# sha256 of the model files of earlier lmworks, whose versions still answer: every one that was ever committed (a test compares with git)
WITHOUT_LIST = frozenset((  # those of before there was a list of the files beside them
    "388e4975c245a858802b5065fc1542473e647f5bae942fa3787ed51f65771d90",
    "4cababd816038eb2a1aefd368831240f5819938064d20a2a27053b235cfe11f6",
    "1afe8461e46db0c34464528615e8e4e1ef9c9d996d7d1d67a362ab636253ed27",
    "b73df4d0cdacfcda11eb38d949f1d8acde8340b3fe45ae53afcd33c372fc48d9",
    "bc9514813e4fa1ac5a80626ea09a43604740b6a9917b68b885b96d37038fb349",
))
EARLIER = WITHOUT_LIST | frozenset((
    "92e821efd22030fc065c66c524a948764657a1fc9a814211025c3d9e32740392",
    "3d1eef854ff52fec86b432b60809632835140c08ba14bd80e0fa45131b5430aa",
))
ARTIFACT = "artifacts/model"
LOADER = "mlflow.pyfunc.loaders.code_model"
RUNS_CODE = (".py", ".pyc", ".pyo", ".so", ".pth", ".pkl", ".pickle", ".joblib", ".pt", ".bin", ".ckpt")


def check(folder: Path, what: str) -> None:
    """Refuse a downloaded model that would run other code than ours when it is loaded. Raises Damaged, in one line.

    Compiled code beside it goes: Python would run it in place of the file that was checked.
    """
    for cache in [path for path in folder.rglob("__pycache__") if path.is_dir()]:
        shutil.rmtree(cache)
    if reason := _foreign(folder):
        raise Damaged(f"{what}: {reason}, so nothing of it is run. Release it again: lmworks run")


def _foreign(folder: Path) -> str | None:
    """What in a model is not ours, in words."""
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    if link := next((name for name in found if (folder / name).is_symlink()), None):
        return f"{link} is a link"
    if code := next((name for name in found if name.endswith(RUNS_CODE) and name != MODEL_FILE.name), None):
        return f"{code} can run code when it is opened, and lmworks stores no such file"
    python = _python_function(folder)
    if isinstance(python, str):
        return python
    if python.get("loader_module") != LOADER:
        return f"its MLmodel asks for the loader {str(python.get('loader_module'))[:60]!r}, which is not that of lmworks"
    if key := next((key for key in ("code", "python_model", "data", "config") if python.get(key)), None):
        return f"its MLmodel brings {key} of its own"
    stored = python.get("artifacts")
    if not isinstance(stored, dict) or [(name, entry.get("path")) for name, entry in stored.items() if isinstance(entry, dict)] != [("model", ARTIFACT)]:
        return "its MLmodel names other artifacts than that of lmworks"
    if Path(str(python.get("model_code_path"))).name != MODEL_FILE.name:
        return f"its MLmodel names the code {str(python.get('model_code_path'))[:60]!r}, which is not that of lmworks"
    if not (folder / MODEL_FILE.name).is_file():
        return f"{MODEL_FILE.name} is missing"
    sha256 = files.sha256_file(folder / MODEL_FILE.name)
    if sha256 not in EARLIER and sha256 != files.sha256_file(MODEL_FILE):
        return f"its {MODEL_FILE.name} (sha256 {sha256}) is none that lmworks ever shipped"
    return None


def _python_function(folder: Path) -> dict[str, Any] | str:
    """What the MLmodel says of the one flavor that release writes; a sentence where it says something else."""
    try:
        flavors = files.load_yaml(folder / "MLmodel")["flavors"]
        if set(flavors) != {"python_function"}:
            return f"its MLmodel has the flavors {', '.join(map(str, flavors))[:60]}; lmworks writes python_function alone"
        return dict(flavors["python_function"])
    except (OSError, UserError, KeyError, TypeError, ValueError) as error:
        return f"its MLmodel is missing or cannot be read ({type(error).__name__})"
