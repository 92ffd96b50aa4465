"""Whether a model may become champion: criteria as pure functions on what was measured.

Each criterion says what was observed, what was required and, in one sentence, why it passed or did not. A gate passes
when every criterion that `gates.base` or `gates.instruct` lists passes; a criterion without evidence does not pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Interval = tuple[float, float, float]  # estimate, low, high
LANGUAGES = {"zh": "Chinese", "en": "English", "other": "other languages"}


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One condition and how it came out."""

    criterion: str
    passed: bool
    observed: str
    required: str
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def language(code: str) -> str:
    return LANGUAGES.get(code, code)


def passes(criteria: list[Criterion]) -> bool:
    return bool(criteria) and all(criterion.passed for criterion in criteria)


def finite_loss(figures: Mapping[str, Any]) -> Criterion:
    """`figures`: final losses and bits per byte by name. Without any, it does not pass."""
    bad = sorted(name for name, value in figures.items() if not isinstance(value, int | float) or not math.isfinite(value))
    passed = bool(figures) and not bad
    if passed:
        sentence = "every loss is a finite number"
    else:
        sentence = f"not a finite number: {', '.join(bad)}" if bad else "no loss was recorded"
    return Criterion(criterion="finite_loss", passed=passed, observed=f"{len(figures) - len(bad)} of {len(figures)} finite",
                     required="every loss is a finite number", sentence=sentence)


def verified_manifest(problem: str | None, checked: int) -> Criterion:
    """`problem`: what a manifest of the model, its data or its evaluation refused, or None; `checked`: how many files."""
    return Criterion(
        criterion="verified_manifest", passed=problem is None, observed=problem or f"{checked} files hashed again",
        required="every file has the sha256 it was written with",
        sentence=problem or f"all {checked} files of model, tokens and evaluation are the bytes that were written")


def below_baseline(criterion: str, baseline: str, model: Mapping[str, float], other: Mapping[str, float]) -> Criterion:
    """Bits per byte of the model and of a baseline, by language: below it in every language."""
    missing = sorted(set(model) ^ set(other))
    worse = [code for code in sorted(model) if code in other and not model[code] < other[code]]
    pairs = [f"{language(code)} {model[code]:.3f} against {other[code]:.3f}" for code in sorted(model) if code in other]
    passed = bool(pairs) and not worse and not missing
    if passed:
        sentence = f"fewer bits per byte than {baseline}: {'; '.join(pairs)}"
    elif worse:
        at_fault = "; ".join(f"{language(code)} {model[code]:.3f} against {other[code]:.3f}" for code in worse)
        sentence = f"not fewer bits per byte than {baseline}: {at_fault}"
    else:
        sentence = f"no bits per byte of model and {baseline} to compare" + (f" ({', '.join(map(language, missing))})" if missing else "")
    return Criterion(criterion=criterion, passed=passed, observed="; ".join(pairs) or "nothing",
                     required=f"bits per byte below {baseline} in each language", sentence=sentence)


def above_majority(scores: Mapping[str, tuple[float, float]]) -> Criterion:
    """Macro-F1 of (model, majority class) by classification: above it in each."""
    worse = [name for name, (model, majority) in sorted(scores.items()) if not model > majority]
    pairs = {name: f"{name} {model:.3f} against {majority:.3f}" for name, (model, majority) in sorted(scores.items())}
    passed = bool(scores) and not worse
    if passed:
        sentence = f"macro-F1 above the majority class: {'; '.join(pairs.values())}"
    elif worse:
        sentence = f"macro-F1 not above the majority class: {'; '.join(pairs[name] for name in worse)}"
    else:
        sentence = "no classification was scored"
    return Criterion(criterion="above_majority", passed=passed, observed="; ".join(pairs.values()) or "nothing",
                     required="macro-F1 above the majority class in each classification", sentence=sentence)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What two models are compared by, and which way is better."""

    what: str
    higher_is_better: bool
    digits: int
    item: str

    def required(self, margin: float) -> str:
        if self.higher_is_better:
            return f"over all test {self.item}s, the lower end of the interval of (this model - champion) in {self.what} is at least {-margin:g}"
        return f"in each language, the upper end of the interval of (this model - champion) in {self.what} is at most {margin:g}"

    def worst(self, interval: Interval) -> float:
        """By how much this model may be worse: the bad end of the interval of (this model - champion)."""
        _, low, high = interval
        return -low if self.higher_is_better else high

    def words(self, name: str, interval: Interval) -> str:
        estimate, low, high = (f"{value:+.{self.digits}f}" for value in interval)
        return f"{language(name)} {estimate} [{low}, {high}]"


BITS = Measure(what="bits per byte", higher_is_better=False, digits=4, item="document")
SCORES = Measure(what="mean score", higher_is_better=True, digits=3, item="record")


def no_champion_yet(margin: str) -> Criterion:
    return Criterion(criterion="not_worse_than_champion", passed=True, observed="no champion yet", required=margin,
                     sentence="there is no champion yet, so there is nothing to be worse than")


def is_champion(version: str, margin: str) -> Criterion:
    return Criterion(criterion="not_worse_than_champion", passed=True, observed=f"the same weights as champion version {version}",
                     required=margin, sentence=f"it has the very weights of champion version {version}")


def not_judged(why: str, margin: str) -> Criterion:
    """The champion could not be judged again: no evidence, so no pass (A21)."""
    return Criterion(criterion="not_worse_than_champion", passed=False, observed="the champion could not be judged again", required=margin,
                     sentence=f"the champion could not be judged again ({why}); to start over without one, remove its alias in the MLflow page")


def not_worse(measure: Measure, differences: Mapping[str, Interval], margin: float, version: str) -> Criterion:
    """Paired intervals, challenger minus champion on the same items, by language or over all records."""
    worse = [name for name, interval in sorted(differences.items()) if not measure.worst(interval) <= margin]
    said = {name: measure.words(name, interval) for name, interval in sorted(differences.items())}
    passed = bool(differences) and not worse
    if passed:
        sentence = f"not worse than champion version {version} in {measure.what}: {'; '.join(said.values())}"
    elif worse:
        sentence = f"may be worse than champion version {version} by more than {margin:g} in {measure.what}: {'; '.join(said[name] for name in worse)}"
    else:
        sentence = f"no {measure.item} was judged by both this model and champion version {version}"
    return Criterion(criterion="not_worse_than_champion", passed=passed, observed="; ".join(said.values()) or "nothing",
                     required=measure.required(margin), sentence=sentence)
