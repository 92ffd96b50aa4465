"""The whole chain, killed at random moments and at every fail-point, run again, and held against a chain that nobody touched.

Moments and kinds of kill come from the seed. Half of the moments are optimizer steps between the first and the last checkpoint of a
training, the others lie anywhere in what is left of the run. After a kill comes a plain `lmworks run`, which may be killed again; the last
one of each chain must end by itself, with exit code 0, at the first try.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import workspace
from benchmarks.reliability import curves, drilled, places
from benchmarks.reliability.drilled import TRAININGS, Drilled, Life
from components import chain
from components import config as settings

GOAL = ("50 kills over the chain, every fail-point once: 100 % finish on a plain rerun, identical weights, tokens and evaluation; "
        "0 strays; 0 runs left open; 0 points lost or doubled; at most one checkpoint interval of steps again for each kill")
COUNT = 50
KINDS = ("group", "top", "stage", *drilled.SERVERS, "everything")
KILLS_A_CHAIN = (3, 5)
VERDICT = re.compile(r'^ "verdict": "(.+)"', re.M)  # of `lmworks run --json`
GOOD = ("Promoted", "Healed", "Nothing changed")
SETTLE_S = 20  # the states of task runs reach Prefect's server as events, a moment later


@dataclass
class Reference:
    """An untouched chain."""

    hashes: dict[str, str]
    curves: curves.Curves
    registry: dict[str, Any]
    steps: dict[str, int]
    intervals: dict[str, int]
    segments: list[tuple[str, float]]  # (start, a stage or release; seconds), in order
    step_s: dict[str, float]

    def last_checkpoint(self, stage: str) -> int:
        return (self.steps[stage] - 1) // self.intervals[stage] * self.intervals[stage]


@dataclass
class Moment:
    """When a kill comes: at a step of a training, or `after_s` seconds into a part of the run."""

    part: str
    step: int | None
    after_s: float


@dataclass
class Kill:
    """One kill as the report tells it."""

    number: int
    kind: str
    killed: str
    between_checkpoints: bool
    moment: Moment
    stage: str  # where the run really was
    step: int | None
    exit_code: int  # of that `lmworks run`


def untouched(checkout: Drilled) -> Reference:
    """One chain from nothing, and what it left."""
    checkout.reset()
    life = checkout.start()
    if life.end():
        raise RuntimeError(f"the untouched chain failed:\n{life.told()[-3000:]}")
    ended_s = time.time()
    config, notes = settings.load(checkout.layout.params), checkout.notes()
    starts = [(note.where, note.at_s) for note in notes if note.name == "stage.start"]
    last = next(note.at_s for note in notes if note.name == "stage.published" and note.where == chain.STAGES[-1].name)
    edges = [("start", life.started_s), *starts, ("release", last), ("end", ended_s)]
    times = {stage: [note.at_s for note in notes if note.name == "train.step" and started <= note.at_s < following]
             for (stage, started), (_, following) in zip(edges[:-1], edges[1:], strict=True) if stage in TRAININGS}
    return Reference(
        hashes=drilled.hashes(checkout), curves=curves.curves(checkout.root, drilled.NAME),
        registry=curves.registered(checkout.root, drilled.NAME), steps={stage: len(at) for stage, at in times.items()},
        intervals={"pretrain": config.training.checkpoint_interval, "finetune": config.finetuning.checkpoint_interval},
        segments=[(part, end - begin) for (part, begin), (_, end) in zip(edges[:-1], edges[1:], strict=True)],
        step_s={stage: (at[-1] - at[0]) / (len(at) - 1) for stage, at in times.items()})


# --- moments -------------------------------------------------------------------------------------

def draw(checkout: Drilled, reference: Reference, rng: random.Random, between_checkpoints: bool) -> Moment | None:
    """A moment of the next life; None where a training was asked for and none is left."""
    done = checkout.done_stages()
    if not between_checkpoints:
        left = [(part, seconds) for part, seconds in reference.segments if part not in done]
        at_s = rng.uniform(0, sum(seconds for _, seconds in left))
        for part, seconds in left:
            if at_s < seconds:
                return Moment(part, None, at_s)
            at_s -= seconds
    first = {stage: max(reference.intervals[stage], checkout.newest_checkpoint(stage)) + 1 for stage in TRAININGS}
    open_ = [stage for stage in TRAININGS if stage not in done and first[stage] <= reference.last_checkpoint(stage)]
    if not open_:
        return None
    stage = rng.choice(open_)
    return Moment(stage, rng.randint(first[stage], reference.last_checkpoint(stage)), rng.uniform(0, reference.step_s[stage]))


def reached(checkout: Drilled, life: Life, moment: Moment, startup_s: float) -> bool:
    """Whether this life has come to the place from which `after_s` counts."""
    if moment.part == "start":
        return True
    notes = checkout.notes()[life.notes_before:]
    if moment.step is not None:
        stage, step = checkout.position(life)
        return stage == moment.part and step is not None and step >= moment.step
    if moment.part == "release":
        last = chain.STAGES[-1].name
        if any(note.name == "stage.published" and note.where == last for note in notes):
            return True
        return last in checkout.done_stages() and not notes and time.time() - life.started_s >= startup_s
    return any(note.name == "stage.start" and note.where == moment.part for note in notes)


# --- one chain -------------------------------------------------------------------------------------

def chain_of_kills(checkout: Drilled, reference: Reference, rng: random.Random, plan: list[bool], number: int) -> tuple[list[Kill], dict[str, Any]]:
    """A chain from nothing, killed as `plan` says (True: between checkpoints) until it is over; then what it left."""
    checkout.reset()
    kills: list[Kill] = []
    for between_checkpoints in plan:
        moment = draw(checkout, reference, rng, between_checkpoints)
        kill = moment and killed(checkout, reference, moment, rng.choice(KINDS), number + len(kills) + 1, between_checkpoints)
        if not kill:
            break  # it was over before the moment came
        kills.append(kill)
        if kill.exit_code == 0:
            break  # a server that the rest of the run did not need
    return kills, finished(checkout, reference, [f"kill {kill.number}" for kill in kills])


def killed(checkout: Drilled, reference: Reference, moment: Moment, kind: str, number: int, between_checkpoints: bool) -> Kill | None:
    """One `lmworks run`, killed at the moment; None if it ended before."""
    life = checkout.start()
    if not checkout.wait(life, lambda: reached(checkout, life, moment, dict(reference.segments)["start"])) or not _still_lives_after(life, moment.after_s):
        return None
    stage, step = checkout.position(life)
    words = drilled.kill(checkout, life, kind)
    code = life.end()
    print(f"kill {number}: {words} in {stage}{f' at step {step}' if step else ''}, exit code {code}", flush=True)
    return Kill(number, kind, words, between_checkpoints, moment, stage, step, code)


def _still_lives_after(life: Life, seconds: float) -> bool:
    deadline = time.time() + seconds
    while time.time() < deadline:
        if life.process.poll() is not None:
            return False
        time.sleep(min(drilled.POLL_S, max(0.0, deadline - time.time())))
    return life.process.poll() is None


def finished(checkout: Drilled, reference: Reference, disturbances: list[str]) -> dict[str, Any]:
    """A plain `lmworks run` to the end, and everything that can be told from what the chain left."""
    tries, code, verdict = 0, 1, ""
    while tries < 3 and (code or verdict not in GOOD):
        tries, life = tries + 1, checkout.start()
        code = life.end()
        verdict = next(iter(VERDICT.findall(life.told())), "none")
        if code or verdict not in GOOD:
            print(f"the plain rerun ended with {code}, {verdict}: {life.told()[-1500:]}", flush=True)
    registry = curves.registered(checkout.root, drilled.NAME)
    checkout.lmworks("up")  # a run that had nothing to do starts no server
    deadline = time.monotonic() + SETTLE_S
    while (open_runs := curves.left_open(checkout.root)) and time.monotonic() < deadline:
        time.sleep(0.5)
    found = drilled.hashes(checkout)
    steps = checkout.steps()
    over = [f"{stage}: {sum(lives)} steps in {len(lives)} lives" for stage, lives in steps.items()
            if sum(lives) > reference.steps[stage] + max(0, len(lives) - 1) * reference.intervals[stage]]
    runs = curves.runs_of(checkout.root, drilled.NAME)
    return {
        "disturbed_by": disturbances, "exit_code": code, "verdict": verdict, "tries": tries,
        "registry": [] if registry == reference.registry else [registry],
        "different": sorted(name for name in {*found, *reference.hashes} if found.get(name) != reference.hashes.get(name)),
        "steps": {stage: {"total": reference.steps[stage], "interval": reference.intervals[stage], "lives": lives} for stage, lives in steps.items()},
        "over_bound": over, "strays": drilled.strays(checkout), "left_open": open_runs, "leftovers": drilled.leftovers(checkout),
        "extra_runs": sum(len(ids) - 1 for ids in runs.values()),
        "points": curves.compared(reference.curves, curves.curves(checkout.root, drilled.NAME))}


# --- all ---------------------------------------------------------------------------------------------

def drill(checkout: Drilled, count: int, seed: int, points: list[str]) -> dict[str, Any]:
    """`count` kills and the fail-points `points`, in a fresh checkout."""
    rng = random.Random(seed)
    reference = untouched(checkout)
    print("untouched chain: " + ", ".join(f"{part} {seconds:.1f} s" for part, seconds in reference.segments), flush=True)
    kills: list[Kill] = []
    chains: list[dict[str, Any]] = []
    plan = [number % 2 == 0 for number in range(count)]  # half, exactly
    rng.shuffle(plan)
    while plan and len(chains) < 2 * count + 5:  # not for ever where every life fails before its moment
        wanted = plan[:rng.randint(*KILLS_A_CHAIN)]
        # a training that the plan asks for late may be over by then: those come first
        done, told = chain_of_kills(checkout, reference, rng, sorted(wanted, reverse=True) if rng.random() < 0.5 else wanted, len(kills))
        kills, chains = kills + done, [*chains, told]
        for kill in done:
            plan.remove(kill.between_checkpoints)
    passed, more = places.each_once(checkout, reference, points)
    chains += more
    return told_of(kills, chains, passed, points, count)


def told_of(kills: list[Kill], chains: list[dict[str, Any]], passed: list[str], points: list[str], count: int) -> dict[str, Any]:
    counts = {
        "kills": len(kills), "between_checkpoints": sum(kill.between_checkpoints for kill in kills), "chains": len(chains),
        "finished_at_first_try": sum(one["exit_code"] == 0 and one["verdict"] in GOOD and one["tries"] == 1 for one in chains),
        "registries_different": sum(len(one["registry"]) for one in chains),
        "different_files": sum(len(one["different"]) for one in chains), "trainings_over_the_bound": sum(len(one["over_bound"]) for one in chains),
        "strays": sum(len(one["strays"]) for one in chains), "runs_left_open": sum(len(one["left_open"]) for one in chains),
        "leftovers": sum(len(one["leftovers"]) for one in chains), "extra_runs": sum(one["extra_runs"] for one in chains),
        **{f"points_{what}": sum(len(one["points"][what]) for one in chains) for what in ("lost", "doubled", "changed")},
        "places_killed_at": len(passed), "places_not_passed": len(points) - len(passed)}
    bad = {key: value for key, value in counts.items() if key not in ("kills", "between_checkpoints", "chains", "finished_at_first_try", "places_killed_at")}
    return {"counts": counts, "repeats": [*map(asdict, kills), *chains, {"places": passed, "not_passed": sorted(set(points) - set(passed))}],
            "met": len(kills) >= count and counts["finished_at_first_try"] == len(chains) and not any(bad.values())}


def measure(count: int, seed: int) -> dict[str, Any]:
    """The figure, in a clone of HEAD. Below the full count as many fail-points as kills are tried."""
    points = places.ALL if count >= COUNT else places.ALL[:count]
    scratch = Path(tempfile.mkdtemp(prefix="lmworks-drill-"))
    checkout = Drilled(workspace.clone(scratch / "checkout"), scratch / "notes")
    try:
        found = drill(checkout, count, seed, points)
    finally:
        with contextlib.suppress(RuntimeError):  # a figure that is there, or why there is none, says more
            checkout.lmworks("down", "--force")
    if found["met"]:  # kept otherwise: there is something to see
        shutil.rmtree(scratch, ignore_errors=True)
    return json.loads(json.dumps(found))
