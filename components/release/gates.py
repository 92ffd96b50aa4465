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


def bits_margin(margin: float) -> str:
    return f"in each language, the upper end of the interval of (this model - champion) is at most {margin:g} bits per byte"


def not_worse_bits(differences: Mapping[str, Interval], margin: float, version: str) -> Criterion:
    """Paired interval of bits per byte, challenger minus champion on the same documents, by language; more is worse."""
    worse = [code for code, (_, _, high) in sorted(differences.items()) if not high <= margin]
    said = {code: f"{language(code)} {estimate:+.4f} [{low:+.4f}, {high:+.4f}]" for code, (estimate, low, high) in sorted(differences.items())}
    passed = bool(differences) and not worse
    if passed:
        sentence = f"not worse than champion version {version} in bits per byte: {'; '.join(said.values())}"
    elif worse:
        sentence = f"may be worse than champion version {version} by more than {margin:g} bits per byte: {'; '.join(said[code] for code in worse)}"
    else:
        sentence = f"no document was judged by both this model and champion version {version}"
    return Criterion(criterion="not_worse_than_champion", passed=passed, observed="; ".join(said.values()) or "nothing",
                     required=bits_margin(margin), sentence=sentence)


def score_margin(margin: float) -> str:
    return f"over all test records, the lower end of the interval of (this model - champion) in mean score is at least {-margin:g}"


def not_worse_scores(differences: Mapping[str, Interval], margin: float, version: str) -> Criterion:
    """Paired interval of mean scores (0 to 1), challenger minus champion on the same records; less is worse."""
    worse = [name for name, (_, low, _) in sorted(differences.items()) if not low >= -margin]
    said = {name: f"{name} {estimate:+.3f} [{low:+.3f}, {high:+.3f}]" for name, (estimate, low, high) in sorted(differences.items())}
    passed = bool(differences) and not worse
    if passed:
        sentence = f"not worse than champion version {version}: {'; '.join(said.values())}"
    elif worse:
        sentence = f"may score more than {margin:g} below champion version {version}: {'; '.join(said[name] for name in worse)}"
    else:
        sentence = f"no record was judged by both this model and champion version {version}"
    return Criterion(criterion="not_worse_than_champion", passed=passed, observed="; ".join(said.values()) or "nothing",
                     required=score_margin(margin), sentence=sentence)
