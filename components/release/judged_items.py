"""One small evaluation in MLflow's own form (`mlflow.genai.evaluate`), so that its evaluation and trace tabs hold a model's answers.

The answers are those of the evaluate stage, the scorers run here: nothing is generated again and nothing is asked of a network.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from components.layout import Layout
from components.release import tables
from components.release.lineage import Subject
from components.release.registry import EVALUATION

ITEMS = 50
JUDGED, DONE = "lmworks.judged_weights", "lmworks.judged"


def preload() -> None:
    """What MLflow's evaluation imports as it begins, a second and more: for a core that idles before the release."""
    from mlflow.genai.evaluation import harness  # noqa: F401

    with contextlib.suppress(ImportError):
        import databricks.sdk  # noqa: F401  nobody here speaks to it; MLflow imports it all the same


def judge(client: Any, experiment: str, subject: Subject, model_id: str, layout: Layout, say: Callable[[str], None]) -> str | None:
    """The run that holds the judged items of this model and evaluation; made if there is none. None where there is nothing to judge:
    a base answers no items, and where MLflow could not do it, which `say` is told: no release fails for the sake of this page.

    Raises MlflowException when the server does not answer.
    """
    if subject.kind == "base":
        return None
    found = client.search_runs([experiment], max_results=20, filter_string=(
        f"tags.`{JUDGED}` = '{subject.weights_sha256}' and tags.`{EVALUATION}` = '{subject.evaluation_sha256}'"))
    whole = [run.info.run_id for run in found if DONE in run.data.tags]
    if whole:
        return whole[0]
    for run in found:  # what a kill, or a server that went away, left in the middle
        client.delete_run(run.info.run_id)
    items = tables.graded("instruct", layout, ITEMS)  # the same for every model that was asked the same records
    try:
        return _evaluate(client, experiment, subject, model_id, items) if items else None
    except Exception as error:  # noqa: BLE001  many imports and calls that change with every MLflow; that the server is gone the next call tells
        say(f"{subject.name}: MLflow's own evaluation of {len(items)} items failed ({type(error).__name__}: {str(error)[:200]}); the release goes on")
        return None


def _evaluate(client: Any, experiment: str, subject: Subject, model_id: str, items: list[dict[str, Any]]) -> str:
    import mlflow
    from mlflow import genai
    from mlflow.genai.scorers import scorer

    by_id = {(item["application"], item["id"]): item for item in items}

    def item_of(inputs: dict[str, Any]) -> dict[str, Any]:
        return by_id[inputs["application"], inputs["id"]]

    @scorer
    def correct(inputs: dict[str, Any]) -> bool:
        """Whether the answer is a right one, as the evaluation has it: accuracy of a label, else exact match."""
        return item_of(inputs)["correct"] == "yes"

    @scorer
    def score(inputs: dict[str, Any]) -> float:
        """The application's own figure: accuracy, token F1, chrF2 or ROUGE-L."""
        return float(item_of(inputs)["score"])

    rows = [{"inputs": {name: item[name] for name in ("prompt", "application", "language", "id")}, "outputs": item["answer"],
             "expectations": {"expected_response": item["expected"]}} for item in items]
    tags = {JUDGED: subject.weights_sha256, EVALUATION: subject.evaluation_sha256, "lmworks.model": subject.name,
            "mlflow.note.content": f"{len(items)} test items, as many of each application and language as of every other, with the answers of the "
                                   "evaluate stage. `correct` and `score` are its figures; the whole evaluation is in the run that trained the model."}
    with _quiet(), mlflow.start_run(experiment_id=experiment, run_name=f"judged items {subject.name} {subject.weights_sha256[:8]}", tags=tags,
                                    log_system_metrics=False) as run:
        genai.evaluate(data=rows, scorers=[correct, score], model_id=model_id)
        mlflow.flush_trace_async_logging()
    client.set_tag(run.info.run_id, DONE, str(len(items)))  # last: a kill before it judges again
    return run.info.run_id


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of MLflow's bar, banner and advice on the terminal; it has no settings for them."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
