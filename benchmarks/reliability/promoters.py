"""Eight promoters at once on a real MLflow server, killed at every place and at random, one reader beside them; and how long a rollback takes.

Each promoter proposes `count` versions, good and bad ones. Half of the kills come from the fail-points between upload and promotion, half
at random moments from outside; a killed promoter starts again and goes on with the round it was in. Legal is the alias at a version whose
gate passed, whose bytes are those registered, and that is not worse than the one before: the promoter looks after each of its moves, the
reader all the time, and at the end the history of the registry is gone through move by move.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import workspace
from benchmarks.reliability import promoter
from benchmarks.reliability.promoter import PLACES, Race, note, noted
from components import files
from components.errors import UserError
from components.layout import Layout
from components.release import promotion, registry

GOAL = "8 promoters x 200 rounds with random kills: 0 illegal aliases; 10,000 reads of the alias: 0 failures; a rollback in less than 5 s"
COUNT = 200  # rounds a promoter
PROMOTERS, READS_A_ROUND, ROUNDS_A_KILL = 8, 50, 40
WORD_S = 30  # between two lines of progress
ROLLBACK_BYTES, ROLLBACKS, MAX_ROLLBACK_S = 20 * 2**20, 3, 5.0


def measure(count: int, seed: int) -> dict[str, Any]:
    """The race and the rollbacks, in a fresh checkout with a server of its own."""
    from components.operations import services

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        layout = Layout(root=workspace.clone(Path(scratch) / "checkout"))
        services.ensure(layout, prefect=False)
        try:
            found = race(layout, rounds=count, seed=seed)
            try:
                seconds, failed = rollbacks(layout), ""
            except (RuntimeError, UserError) as error:  # the race stands
                seconds, failed = [], str(error)[-500:]
        finally:
            services.down(layout, force=True)
    found["counts"] |= {"failed_rollbacks": int(bool(failed)), **({"slowest_rollback_s": round(max(seconds), 2)} if seconds else {})}
    found["repeats"].append({"rollback_s": [round(second, 2) for second in seconds], "model_bytes": ROLLBACK_BYTES, "command": "lmworks rollback NAME --json",
                             "failed": failed})
    return {**found, "met": found["met"] and not failed and max(seconds) < MAX_ROLLBACK_S}


# --- the race ------------------------------------------------------------------------------------

def race(layout: Layout, *, rounds: int, seed: int, promoters: int = PROMOTERS, name: str = "raced") -> dict[str, Any]:
    """{"counts", "repeats" (every kill, every failure), "met"} of one race against the MLflow server of `layout`."""
    folder = layout.work_root / "race"
    folder.mkdir(parents=True)
    client = registry.client(layout)
    shared = _entered(layout, client, name, folder, rounds=rounds, seed=seed)
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["benchmarks.reliability.promoter", "mlflow", "mlflow.artifacts"])
    reader = forks.Process(target=promoter.read, args=(shared, rounds * READS_A_ROUND), daemon=True)
    reader.start()
    kills, errors = _run(shared, forks, promoters)
    note(folder / "over")
    reader.join()
    return _judged(shared, client, promoters, kills, errors)


def _entered(layout: Layout, client: Any, name: str, folder: Path, *, rounds: int, seed: int) -> Race:
    """A registered model without versions, and the run that they will name."""
    client.create_registered_model(name)
    experiment = client.create_experiment(name)
    return Race(layout=layout, name=name, run_id=client.create_run(experiment).info.run_id, experiment=experiment, folder=folder, rounds=rounds, seed=seed,
                tracking=os.environ.get("MLFLOW_TRACKING_URI"))


def _run(shared: Race, forks: Any, promoters: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Promoters until all have done their rounds. Returns (every kill, what ended otherwise)."""
    chance = random.Random(shared.seed)
    planned = max(1, shared.rounds // ROUNDS_A_KILL)
    places = [{number: chance.choice(PLACES) for number in chance.sample(range(1, shared.rounds + 1), min(planned, shared.rounds))} for _ in range(promoters)]
    outside = sorted(chance.randrange(shared.rounds * promoters) for _ in range(planned * promoters))  # after so many rounds of all

    def start(number: int) -> Any:
        process = forks.Process(target=promoter.promote, args=(shared, number, places[number]), daemon=True)
        process.start()
        return process

    def done() -> int:
        return sum(len(noted(shared.events(f"promoter-{number}"))) for number in range(promoters))

    running, ours = {number: start(number) for number in range(promoters)}, set()
    next_word_s = time.monotonic() + WORD_S
    kills: list[dict[str, Any]] = []
    errors: list[str] = []
    while running:
        time.sleep(0.02)
        for number, process in list(running.items()):
            if process.exitcode is None:
                continue
            del running[number]
            if process.exitcode == -9:
                past = noted(shared.events(f"promoter-{number}"))
                kills.append({"promoter": number, "after_round": max((event["round"] for event in past if "round" in event), default=0),
                              "place": "random" if process.pid in ours else [event["place"] for event in past if "armed" in event][-1]})
                running[number] = start(number)
            elif process.exitcode:
                errors.append(f"promoter {number} ended with {process.exitcode}: {_last_words(shared, f'promoter-{number}')}")
        if time.monotonic() >= next_word_s:
            next_word_s += WORD_S
            print(f"promoters: {done()} of {(shared.rounds + planned) * promoters} rounds and armed places, {len(kills)} kills", flush=True)
        if outside and running and done() >= outside[0]:
            outside.pop(0)
            time.sleep(chance.uniform(0, 0.3))
            victim = running[chance.choice(sorted(running))]
            ours.add(victim.pid)
            victim.kill()
    return kills, errors


def _last_words(shared: Race, who: str) -> str:
    log = shared.folder / f"{who}.log"
    return log.read_text()[-500:] if log.exists() else "it never began"


def _judged(shared: Race, client: Any, promoters: int, kills: list[dict[str, Any]], errors: list[str]) -> dict[str, Any]:
    illegal, figures = promoter.audit(client, shared)
    rounds = [event for number in range(promoters) for event in noted(shared.events(f"promoter-{number}")) if "round" in event]
    illegal += [event["wrong"] for event in rounds if event.get("wrong")]
    told = noted(shared.events("reader"))
    reads = told[0] if told else {"reads": 0, "champions_seen": 0, "failures": [{"wrong": f"the reader died: {_last_words(shared, 'reader')}"}]}
    refused = [event["refused"] for event in rounds if "refused" in event]
    counts = {"promoters": promoters, "rounds": len(rounds), "kills_at_fail_points": sum(kill["place"] != "random" for kill in kills),
              "kills_at_random_moments": sum(kill["place"] == "random" for kill in kills), "illegal_aliases": len(illegal), "reads": reads["reads"],
              "failed_reads": len(reads["failures"]), "champions_read": reads["champions_seen"], "refused_rounds": len(refused),
              "errors": len(errors), **figures}
    met = (bool(kills) and not illegal and not errors and not reads["failures"] and len(rounds) == shared.rounds * promoters and not figures["doubled_versions"]
           and (figures["best_is_champion"] or bool(refused)))
    return {"counts": counts, "repeats": [{"kills": kills, "illegal": illegal, "failed_reads": reads["failures"][:50], "errors": errors, "refused": refused}], "met": met}


# --- rollback ------------------------------------------------------------------------------------

def rollbacks(layout: Layout, name: str = "rolled-back") -> list[float]:
    """Seconds of `lmworks rollback`, process start and hashing included: to the previous champion, and back again."""
    client = registry.client(layout)
    layout.work_root.mkdir(exist_ok=True)
    shared = _entered(layout, client, name, layout.work_root, rounds=1, seed=1)
    for number in (1, 2):
        version = promoter.registered(client, shared, random.Random(number).randbytes(ROLLBACK_BYTES), 1.0)
        client.set_model_version_tag(name, version.version, registry.VERDICT, "passed")
        promotion.promote(client, name, str(version.version), layout, lambda _champion: (True, "measured"))
    seconds = []
    for more in (["--why", "measured"], ["--to", "2"]) * ROLLBACKS:
        started_s = time.perf_counter()
        workspace.lmworks(layout.root, "rollback", name, *more, "--json")
        seconds.append(time.perf_counter() - started_s)
    moved = files.canonical_json(promotion.model_of(client, name)["aliases"])
    if moved != files.canonical_json({"champion": "2"}):
        raise RuntimeError(f"the rollbacks ended at {moved}")
    return seconds
