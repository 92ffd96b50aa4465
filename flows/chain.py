"""The chain as a Prefect flow: lock, sources, one task a stage, release, one artifact. What it runs is DVC's and the stages' business."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Annotated, Any

import prefect.runtime
from prefect import flow, get_run_logger, task
from prefect.states import Completed, Failed, State
from pydantic import Field

from components import config as settings
from components import files, masking
from components.chain import selection
from components.corpus import sources
from components.errors import Busy, UserError
from components.layout import Layout
from components.operations import services, staleness, unclean
from flows import ending, naming, tasks
from flows.records import RunResult, StageRecord

MAX_WAIT_S = 86_400
WaitS = Annotated[int, Field(ge=0, le=MAX_WAIT_S)]

# what `flows.run.execute` hands in: it holds the lock already and wants the records back
_handed_in: RunResult | None = None


@contextlib.contextmanager
def handed_in(result: RunResult) -> Iterator[None]:
    """The flow run inside fills `result` and takes no lock: the caller holds it."""
    global _handed_in
    _handed_in = result
    try:
        yield
    finally:
        _handed_in = None


def check_earlier(layout: Layout, chosen: list[str]) -> None:
    """What the chosen stages take from earlier ones must be there. Raises UserError."""
    stages = files.load_yaml(layout.dvc_yaml)["stages"]
    made = {out for name in chosen for out in stages[name]["outs"]}
    for name in chosen:
        for dep in stages[name].get("deps", []):
            if dep.startswith("data/") and dep not in made and not (layout.root / dep).exists():
                maker = next((other for other, stage in stages.items() if dep in stage["outs"]), "an earlier stage")
                raise UserError(f"{name} reads {dep}, which {maker} has not made yet. Run: lmworks run (or --from {maker})")


@task(name="sources", task_run_name="sources", persist_result=False)
def sources_task(config: settings.Config, layout: Layout) -> bool:
    """Bring sources.yaml up to date; whether anything changed."""
    with masking.kept_from_errors():
        changed = sources.update(config, layout)
    get_run_logger().info("sources.yaml %s", "has new digests: a source changed" if changed else "is up to date")
    return changed


@task(name="release", task_run_name="release", persist_result=False)
def release_task(config: settings.Config, layout: Layout, fresh: bool) -> State:
    """Log, register, judge, promote. Failed only if that could not be done: a gate's no is an answer.

    Where every stage was `fresh` and the registry still says what the last release left, it ends *Cached*.
    """
    from components.release import release

    services.ensure(layout, prefect=False)  # MLflow may have died while the stages worked: the points of the training wait in the spool
    if fresh and release.receipt_current(config, layout):
        told = list(files.read_sealed(layout.receipt)["models"].values())
        return Completed(name="Cached", message="; ".join(["code, data, settings and models are those of the last run", *map(_as_it_was, told)]), data=told)
    logger = get_run_logger()

    def say(line: str) -> None:
        logger.info(line)
        tasks.listener().line("release", line)

    try:
        with masking.kept_from_errors():
            decisions = release.release(config, layout, say=say)
    except UserError as error:
        logger.error(str(error))
        return Failed(message=str(error), data=error)
    promoted = [decision.promoted for decision in decisions]
    name = "Promoted" if all(promoted) else "Partly promoted" if any(promoted) else "Not promoted"
    return Completed(name=name, message="; ".join(map(release.sentence, decisions)), data=decisions)


def _as_it_was(told: dict[str, Any]) -> str:
    champion = told["champion_version"]
    return f"{told['name']}: " + (f"version {champion} is champion" if champion else f"version {told['version']} was not promoted, there is no champion")


def preload() -> None:
    """The imports of a release, off the main thread."""
    from components.release import release

    release.preload()


def work(result: RunResult, *, from_stage: str | None, to_stage: str | None, release: bool) -> None:
    """Run the chain and write into `result` what happened. The caller holds the run's lock. Raises UserError."""
    layout = Layout()
    config = settings.load(layout.params)
    begun = _begun(layout)
    staleness.check_dvc_yaml(layout)
    names = staleness.names(layout)
    chosen = selection(names, from_stage, to_stage)
    check_earlier(layout, chosen)
    if release and to_stage is None:
        from components.release import registry

        registry.check_name(config, layout)  # before hours of training, not after
    started_s = time.monotonic()
    if chosen and chosen[0] == names[0]:
        state = sources_task(config, layout, return_state=True)
        if state.is_failed():
            raise _cause(state)
        begun |= _begun(layout, "sources")
    naming.bring_up_to_date(layout)  # a source may have changed
    result.seconds["sources"], loading = time.monotonic() - started_s, False
    for number, name in enumerate(chosen):
        if not loading and number > 0 and release and to_stage is None and any(earlier.state != "cached" for earlier in result.stages):
            # beside `ingest`, which keeps one core busy for seconds; beside `fetch` it only slows this process. Where nothing ran
            # there may be nothing to release
            loading = True
            threading.Thread(target=preload, daemon=True, name="preload").start()
        check_begun(layout, begun)
        record = tasks.run_stage(name, config)
        result.stages.append(record)
        if record.state == "failed":
            result.stages += [StageRecord(later) for later in chosen[number + 1 :]]
            result.verdict, result.message, result.exit_code = ("Blocked" if record.exit_code == 3 else "Failed"), record.message, record.exit_code
            return
    result.seconds["stages"] = sum(record.elapsed_s for record in result.stages)
    if not release or to_stage is not None:
        result.exit_code = 0
        result.verdict = unchanged(result.stages) or "Ready"
        result.message = f"{healed_in_words(result.stages)}{chosen[-1]} is {'done' if result.verdict == 'Ready' else 'as it was'}; no release was asked for"
        return
    check_begun(layout, begun)
    release_into(result, config, layout)


def _begun(layout: Layout, *names: str) -> dict[str, bytes | None]:
    """{"params", "sources"}: the settings that a run is of, as they stand in their files."""
    paths = {"params": layout.params, "sources": layout.sources}
    return {name: paths[name].read_bytes() if paths[name].exists() else None for name in names or paths}


def check_begun(layout: Layout, begun: dict[str, bytes | None]) -> None:
    """Each stage reads its settings itself: those of two minds would give one model a name, gates and origins that are another's.

    Raises UserError where params.yaml or sources.yaml is not what it was when the run began.
    """
    changed = [f"{name}.yaml" for name, before in begun.items() if before != _begun(layout, name)[name]]
    if changed:
        raise UserError(f"{' and '.join(changed)} changed while this run went on: its later stages would work with other settings than its earlier ones. "
                        "What is done stays; run again: lmworks run")


def release_into(result: RunResult, config: settings.Config, layout: Layout) -> None:
    """Release, and name the run by its outcome. Raises UserError."""
    before, started_s = _receipt(layout), time.monotonic()
    state = release_task(config, layout, bool(result.stages) and unchanged(result.stages) == "Nothing changed", return_state=True)
    result.seconds["release"] = time.monotonic() - started_s
    if state.is_failed():
        raise _cause(state)
    result.release, result.exit_code = tasks.carried(state), 0
    same = before is not None and before == _receipt(layout)
    result.verdict = (same and unchanged(result.stages)) or state.name or "Failed"
    result.message = healed_in_words(result.stages) + (state.message or "")


def unchanged(stages: list[StageRecord]) -> str | None:
    """The name of a run that made nothing new; None if it did."""
    states = {record.state for record in stages}
    if not states <= {"cached", "healed"}:
        return None
    return "Healed" if "healed" in states else "Nothing changed"


def healed_in_words(stages: list[StageRecord]) -> str:
    healed = [record for record in stages if record.state == "healed"]
    return "".join(f"{record.stage} was healed ({record.why[0]}); " for record in healed)


def _receipt(layout: Layout) -> Any:
    """What the last release left behind, None if there was none that can be read."""
    try:
        return files.read_sealed(layout.receipt)
    except (OSError, UserError):
        return None


def _cause(state: State) -> BaseException:
    """The error behind a failed state, with its type (so its exit code)."""
    cause = tasks.carried(state)
    return cause if isinstance(cause, BaseException) else RuntimeError(state.message or state.name)


def in_flow(do: Any, *, wait_s: int | None, needs_mlflow: bool = True) -> State:
    """The frame of every flow: lock, marker, what a crash left, the work, one artifact, one last state."""
    layout, logger = Layout(), get_run_logger()
    ours = _handed_in is not None
    result = _handed_in or RunResult()
    started_s = time.monotonic()
    try:
        wait = wait_s if wait_s is not None else settings.load(layout.params).operations.lock_wait_s
        lock = contextlib.nullcontext() if ours else files.lock(layout.run_lock, what="a run", wait_s=wait)
        with lock:
            if not ours:
                from flows import reconciler

                result.reconciled = reconciler.reconcile(layout)
                services.ensure(layout, prefect=False, mlflow=needs_mlflow)
            naming.bring_up_to_date(layout)
            unclean.mark(layout, flow_run_id=str(prefect.runtime.flow_run.id))
            with masking.kept_from_errors():
                do(result)
    except Busy as error:
        result.verdict, result.message, result.exit_code = ("Failed" if ours else "Skipped"), str(error), error.exit_code
    except UserError as error:
        logger.error(str(error))
        result.verdict, result.message, result.exit_code = ("Blocked" if error.exit_code == 3 else "Failed"), str(error), error.exit_code
    result.seconds["total"] = time.monotonic() - started_s
    return ending.end(result, layout)


@flow(name="lmworks-chain", flow_run_name=naming.flow_run_name, persist_result=False, **ending.HOOKS)
def chain(from_stage: str | None = None, to_stage: str | None = None, release: bool = True, wait_s: WaitS | None = None) -> State:
    """Raw text to a gated, registered model: every stage that is stale, then release.

    Args:
        from_stage: start here and take earlier outputs as they stand
        to_stage: end here; no release is made
        release: log, register and judge the models at the end
        wait_s: seconds to wait for another run of this checkout (default: operations.lock_wait_s), then Skipped
    """
    return in_flow(lambda result: work(result, from_stage=from_stage, to_stage=to_stage, release=release), wait_s=wait_s)
