"""After the chain: log the models, let the gates decide, move the champions, and leave a receipt.

The Prefect task and a plain script both call `release`. Saying it twice changes nothing, and a kill at any point leaves
the aliases where they were or where they belong: the next call finds what is there and goes on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components import failpoints, files, mlflow_rest, tracking
from components.config import Config
from components.errors import Damaged, UserError
from components.layout import Layout
from components.markdown import escape
from components.release import (
    calls,
    card,
    champion,
    changes,
    contract,
    datasets,
    evidence,
    gates,
    judged_items,
    lineage,
    model_files,
    package,
    promotion,
    registry,
    registry_page,
    rollback,
    run_note,
    views,
)
from components.release.lineage import Subject
from components.reporting import say as say_line

Say = Callable[[str], None]
MAX_TAG_CHARS = 4900  # MLflow takes 5,000
RECEIPT_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How the release of one model ended."""

    name: str
    version: str
    weights_sha256: str
    evaluation_sha256: str
    verdict: str  # "passed" | "failed"
    champion_version: str | None  # after the decision
    run_id: str
    model_id: str  # of the logged model behind the version
    criteria: list[gates.Criterion]

    @property
    def promoted(self) -> bool:
        """Whether this version is champion and its gate says that it may be (a gate that was changed may say no to the champion)."""
        return self.verdict == "passed" and self.champion_version == self.version

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version, "weights_sha256": self.weights_sha256,
                "evaluation_sha256": self.evaluation_sha256, "verdict": self.verdict, "champion_version": self.champion_version,
                "run_id": self.run_id, "model_id": self.model_id, "criteria": [criterion.as_dict() for criterion in self.criteria]}


def preload() -> None:
    """Import what a release needs: six seconds that the flow spends on its idle core, while the data stages use one."""
    registry.quiet()
    import mlflow.pyfunc  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401

    judged_items.preload()


def release(config: Config, layout: Layout, *, say: Say = say_line) -> list[Decision]:
    """Log, register and judge NAME and NAME-instruct, each by its own gate. A gate that says no is no error.

    Raises UserError (no server, or it refuses; the name belongs to another corpus) and Damaged (bytes that are not those written).
    """
    client = registry.client(layout)
    registry.check_name(config, layout)
    checked = verified_files(layout)
    tracking.drain(layout)  # the run that trained must be known here before it is looked for
    decisions: list[Decision] = []
    with calls.explained(layout, "What was promoted before stays so. Look at `lmworks status`, then run again: lmworks run"):
        experiment = lineage.experiment_id(client, config.name)
        for subject in lineage.subjects(config, layout):
            decisions.append(release_one(client, experiment, subject, config, layout, checked, decisions, say))
        shown = evidence.headlines(files.read_json(layout.evaluation / "evaluation.json"))
        views.ship(client, experiment, {decision.name: decision.run_id for decision in decisions}, shown)
    failpoints.hit("release.before_receipt")
    files.write_sealed(layout.receipt, {"format": RECEIPT_FORMAT, "gates": config.gates.model_dump(mode="json"), "address": registry.address(layout),
                                      "models": {d.name: d.as_dict() for d in decisions}})
    return decisions


def verified_files(layout: Layout) -> tuple[str | None, int]:
    """(what the manifest of the tokens refused, or None; how many files were hashed).

    Raises Damaged where a model or the evaluation is at fault, or the evaluation is of other weights (H3): those cannot be
    released at all.
    """
    # those of the test items too: the champion is judged again on them
    folders = [layout.pretrained, layout.finetuned, layout.evaluation, layout.clean]
    count = sum(len(files.verify_manifest(folder)["files"]) for folder in folders)
    judged = files.read_json(layout.evaluation / "evaluation.json")["models"]
    for kind, out in (("base", layout.pretrained), ("instruct", layout.finetuned)):
        found, wanted = judged[kind]["weights_sha256"], lineage.weights_of(out)
        if found != wanted:
            raise Damaged(f"{layout.evaluation / 'evaluation.json'} judged other weights than {out / 'model'}: sha256 {found} judged, {wanted} there. "
                          "Run: lmworks run")
    try:
        return None, count + len(files.verify_manifest(layout.tokens)["files"])
    except Damaged as error:
        return str(error), count


def release_one(client: Any, experiment: str, subject: Subject, config: Config, layout: Layout, checked: tuple[str | None, int],
                earlier: list[Decision], say: Say) -> Decision:
    run_id = lineage.training_run(client, experiment, subject, config, layout, say)
    lineage.copy_in(client, run_id, subject, config, layout)
    version = known = registry.find_version(client, subject.name, subject.weights_sha256, subject.evaluation_sha256)
    if version is not None and not package.is_sound(version.source, model_files.vouched_files(version.tags.get(model_files.FILES)), subject.name, layout):
        say(f"{subject.name}: the stored files of version {version.version} are damaged or gone; registering the weights again")
        version = None
    if version is None:
        say(f"{subject.name}: registering weights {subject.weights_sha256[:12]}")
        model_id, vouched = package.logged_model(client, experiment, run_id, subject, layout)
        failpoints.hit("registry.uploaded", subject.name)
        registry.ensure_registered(client, subject.name, config, escape(card.headline(subject, config)))
        version = registry.register(client, subject.name, model_id, run_id, vouched, weights_sha256=subject.weights_sha256,
                                    evaluation_sha256=subject.evaluation_sha256, data_digest=lineage.data_digest(layout), languages=subject.languages,
                                    after=known)
        failpoints.hit("registry.version_created", subject.name)
    datasets.measure(client, run_id, subject.kind, layout, registry.model_id(version))
    criteria: list[gates.Criterion] = []

    def judge(current: Any | None) -> tuple[bool, str]:
        criteria[:] = [*judged(client, run_id, subject, current, config, layout, checked, say),
                       contract.judged(client, version, current, config.gates.allow_contract_break, layout),
                       *rollback.criteria(client, subject.name, str(version.version), subject.weights_sha256)]
        passed = gates.passes(criteria)
        record(client, run_id, subject, version, current, criteria, config, layout, earlier)
        failpoints.hit("registry.judged", subject.name)
        return passed, reason(criteria)

    moved, current = promotion.promote(client, subject.name, str(version.version), layout, judge)
    decision = Decision(
        name=subject.name, version=str(version.version), weights_sha256=subject.weights_sha256, evaluation_sha256=subject.evaluation_sha256,
        verdict="passed" if moved else "failed", champion_version=str(version.version) if moved else current and str(current.version),
        run_id=run_id, model_id=registry.model_id(version), criteria=list(criteria))
    registry_page.write(client, subject, config, contract.known(client, version if moved else current, layout), registry.address(layout))
    say(sentence(decision))
    judged_items.judge(client, experiment, subject, registry.model_id(version), layout, say)
    return decision


def reason(criteria: list[gates.Criterion]) -> str:
    """Why a champion was moved, for its history: what passed, and what was measured against the one before."""
    against = [criterion.sentence for criterion in criteria if criterion.criterion == "not_worse_than_champion"]
    return "; ".join([f"passed {', '.join(criterion.criterion for criterion in criteria)}", *against])


def judged(client: Any, run_id: str, subject: Subject, current: Any | None, config: Config, layout: Layout,
           checked: tuple[str | None, int], say: Say) -> list[gates.Criterion]:
    """Every criterion that the configuration lists for this model, against this champion."""
    evaluation = files.read_json(layout.evaluation / "evaluation.json")
    model = evidence.bits_per_byte(evaluation)
    losses = {key: value for key, value in subject.metrics.items() if "loss" in key or "bits_per_byte" in key}
    if subject.kind == "base":
        losses |= {f"eval/bits_per_byte_{code}": value for code, value in model.items()}
    makers: dict[str, Callable[[], gates.Criterion]] = {
        "finite_loss": lambda: gates.finite_loss(losses),
        "verified_manifest": lambda: gates.verified_manifest(*checked),
        "below_unigram": lambda: gates.below_baseline("below_unigram", "the unigram model", model, evidence.bits_per_byte(evaluation, "unigram")),
        "below_xz": lambda: gates.below_baseline("below_xz", "xz -9e of the test text", model, evidence.bits_per_byte(evaluation, "xz")),
        "above_majority": lambda: gates.above_majority(evidence.classification_f1(evaluation)),
        "not_worse_than_champion": lambda: champion.criterion(client, run_id, subject, current, config, layout, say),
    }
    listed = config.gates.base if subject.kind == "base" else config.gates.instruct
    return [makers[name]() for name in listed]


def record(client: Any, run_id: str, subject: Subject, version: Any, current: Any | None, criteria: list[gates.Criterion],
           config: Config, layout: Layout, earlier: list[Decision]) -> None:
    """The decision as tags, artifact and card, bound to weights and evaluation; before any alias moves."""
    passed = gates.passes(criteria)
    name, number = subject.name, str(version.version)
    unpromoted_base = subject.kind == "instruct" and any(not base.promoted for base in earlier)
    for criterion in criteria:
        client.set_model_version_tag(name, number, registry.REASON + criterion.criterion,
                                     f"{'yes' if criterion.passed else 'no'}: {criterion.sentence}"[:MAX_TAG_CHARS])
    client.set_model_version_tag(name, number, registry.VERDICT, "passed" if passed else "failed")
    promised = contract.of_version(client, version, layout)
    changed = changes.lines(registry.address(layout), name, version, current, criteria)
    if changed:
        client.set_model_version_tag(name, number, registry.CHANGED, changes.text_of(changed)[:MAX_TAG_CHARS])
    client.update_model_version(name, number, registry_page.of_version(subject, config, criteria, changed, promised, unpromoted_base))
    run_note.write(client, run_id, subject, number, criteria, config, layout, registry.address(layout))
    candidate = registry.aliased(client, name, "candidate")
    if candidate is None or str(candidate.version) != number:
        client.set_registered_model_alias(name, "candidate", number)
    work = layout.work_root / "release"
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="decision-") as scratch:
        decided, readme, kept = Path(scratch) / "promotion.json", Path(scratch) / model_files.CARD, Path(scratch) / contract.ARTIFACT
        files.write_json(decided, {
            "name": name, "version": number, "weights_sha256": subject.weights_sha256, "evaluation_sha256": subject.evaluation_sha256,
            "verdict": "passed" if passed else "failed", "champion_judged_against": current and str(current.version),
            "criteria": [criterion.as_dict() for criterion in criteria]})
        files.write_atomic(readme, card.card(subject, number, config, layout, criteria, unpromoted_base, registry.address(layout)))
        files.write_json(kept, promised)
        for path in (decided, readme, kept):
            client.log_artifact(run_id, str(path))
        client.log_model_artifact(registry.model_id(version), str(readme))


def sentence(decision: Decision) -> str:
    """One line for the terminal and the run's log."""
    if decision.promoted:
        return f"{decision.name}: version {decision.version} is champion"
    reasons = "; ".join(criterion.sentence for criterion in decision.criteria if not criterion.passed)
    if decision.champion_version == decision.version:
        return f"{decision.name}: version {decision.version} does not pass its gate any more ({reasons}); it stays champion until another passes"
    stays = f"version {decision.champion_version} stays champion" if decision.champion_version else "there is no champion"
    return f"{decision.name}: version {decision.version} was not promoted ({reasons}); {stays}"


def receipt_current(config: Config, layout: Layout) -> bool:
    """Whether the last release was of exactly these outs and the server still says so: three REST calls a model, no MLflow import."""
    try:
        receipt = files.read_sealed(layout.receipt)
        subjects = lineage.subjects(config, layout)
        if receipt.get("format") != RECEIPT_FORMAT or receipt["gates"] != config.gates.model_dump(mode="json"):
            return False
        if receipt["address"] != registry.address(layout):  # the pages and cards of the registry tell callers this address
            return False
        if sorted(receipt["models"]) != sorted(subject.name for subject in subjects):
            return False
        for subject in subjects:
            mine = receipt["models"][subject.name]
            if (mine["weights_sha256"], mine["evaluation_sha256"]) != (subject.weights_sha256, subject.evaluation_sha256):
                return False
            model = registry.registered(layout, subject.name)
            if model is None or model["aliases"].get("candidate") != mine["version"] or model["aliases"].get("champion") != mine["champion_version"]:
                return False
            if not registry_page.is_current(subject.name, model):
                return False  # moved by hand, seen by `lmworks up`, and moved back
            if mlflow_rest.call(registry.address(layout), "GET", f"logged-models/{mine['model_id']}") is None:
                return False  # somebody deleted it in the page: nothing of ours loads the version any more
            run = mlflow_rest.call(registry.address(layout), "GET", f"runs/get?run_id={mine['run_id']}")
            if run is None or run["run"]["info"]["lifecycle_stage"] != "active":
                return False  # deleted too: the links of the version and of Prefect lead there
    except (OSError, UserError, KeyError, TypeError, AttributeError, mlflow_rest.Unreachable):
        return False
    return True
