"""evaluation.json, samples and the training curve as one page that opens offline and prints. It draws no verdict."""

from __future__ import annotations

from typing import Any

from components.corpus.page import policy
from components.evaluation.charts import Bar, Line, bars, lines
from components.evaluation.page import PAGE
from components.evaluation.summary import LANGUAGES, METRIC_NAMES, SCORERS

CURVE_NAMES = {"train/loss": "training", "val/loss": "validation"}
NONE = "–"


def render(
    name: str, evaluation: dict[str, Any], samples: dict[str, Any], curve: list[dict[str, str]]
) -> str:
    """The page. `curve` holds the rows of data/pretrained/curve.csv as text, or none."""
    from jinja2 import Environment

    settings = evaluation["settings"]
    environment = Environment(autoescape=True, trim_blocks=False)
    return environment.from_string(PAGE).render(
        name=name,
        policy=policy(),
        subtitle=_subtitle(evaluation),
        confidence=f"{settings['confidence']:.0%}",
        bootstrap_samples=f"{settings['bootstrap_samples']:,}",
        summary=[*_language_groups(evaluation), *_application_groups(evaluation)],
        language_sentence=f"{evaluation['definitions']['bits_per_byte']} {evaluation['definitions']['context']}",
        language_modelling=[
            _language_part(code, part) for code, part in evaluation["language_modelling"].items()
        ],
        applications=[
            _application_part(application, code, part)
            for application, code, part in _applications(evaluation)
        ],
        samples=_continuations(samples),
        graded=_graded(samples),
        curve=_curve(curve),
        definitions=[(_title(key), sentence) for key, sentence in evaluation["definitions"].items()],
    )


def _title(key: str) -> str:
    return SCORERS.get(key) or METRIC_NAMES.get(key) or key.replace("_", " ").capitalize()


def _subtitle(evaluation: dict[str, Any]) -> str:
    model = evaluation["models"]["base"]
    parts = ["imported base model" if model.get("imported") else "pretrained here"]
    if model.get("parameters"):
        parts.append(f"{model['parameters']:,} parameters")
    if model.get("tokens_seen"):
        parts.append(f"{model['tokens_seen']:,} tokens seen in training")
    if model.get("weights_sha256"):
        parts.append(f"weights {model['weights_sha256'][:12]}")
    return " · ".join(parts)


def _figure(interval: dict[str, float], digits: int = 3) -> str:
    if "low" not in interval:
        return f"{interval['value']:.{digits}f}"
    return f"{interval['value']:.{digits}f} [{interval['low']:.{digits}f}, {interval['high']:.{digits}f}]"


def _signed(interval: dict[str, float]) -> str:
    if "low" not in interval:
        return f"{interval['value']:+.3f}"
    return f"{interval['value']:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"


def _ordered(baselines: dict[str, Any]) -> dict[str, Any]:
    """In the order of SCORERS, whatever order the file had."""
    return dict(sorted(baselines.items(), key=lambda entry: list(SCORERS).index(entry[0])))


def _applications(evaluation: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (application, code, part)
        for application, by_language in evaluation["applications"].items()
        for code, part in by_language.items()
    ]


def _language_groups(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """For each language the model and what it is held against."""
    groups = []
    for code, part in evaluation["language_modelling"].items():
        model = part["model"]["bits_per_byte"]
        rows = [
            {
                "baseline": SCORERS[name],
                "figure": _figure(baseline["bits_per_byte"]),
                "difference": _signed(
                    baseline.get("model_minus_baseline")
                    or {"value": model["value"] - baseline["bits_per_byte"]["value"]}
                ),
            }
            for name, baseline in _ordered(part["baselines"]).items()
        ]
        groups.append(
            {
                "what": "Bits per byte",
                "better": "lower",
                "language": LANGUAGES.get(code, code),
                "model": _figure(model),
                "rows": rows,
            }
        )
    return groups


def _application_groups(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    groups = []
    for application, code, part in _applications(evaluation):
        metric = part["headline"]
        rows = [
            {
                "baseline": SCORERS[name],
                "figure": _figure(baseline[metric]),
                "difference": _signed(baseline["model_minus_baseline"][metric]),
            }
            for name, baseline in _ordered(part["baselines"]).items()
        ]
        groups.append(
            {
                "what": f"{_words(application)}: {METRIC_NAMES[metric]}",
                "better": "higher",
                "language": LANGUAGES.get(code, code),
                "model": _figure(part["model"][metric]),
                "rows": rows,
            }
        )
    return groups


def _words(application: str) -> str:
    return application.replace("_", " ").capitalize()


def _language_part(code: str, part: dict[str, Any]) -> dict[str, Any]:
    scorers = {"model": part["model"], **_ordered(part["baselines"])}
    drawn = [
        Bar(
            SCORERS[name],
            s["bits_per_byte"]["value"],
            s["bits_per_byte"].get("low"),
            s["bits_per_byte"].get("high"),
            name == "model",
        )
        for name, s in scorers.items()
    ]
    language = LANGUAGES.get(code, code)
    rows = [
        {
            "name": SCORERS[name],
            "is_model": name == "model",
            "value": f"{s['bits_per_byte']['value']:.4f}",
            "interval": f"{s['bits_per_byte']['low']:.4f} – {s['bits_per_byte']['high']:.4f}"
            if "low" in s["bits_per_byte"]
            else NONE,
            "perplexity": f"{s['perplexity']:,.1f}" if "perplexity" in s else NONE,
            "tokens": f"{s['training_tokens']:,}" if s.get("training_tokens") else NONE,
        }
        for name, s in scorers.items()
    ]
    return {
        "title": language,
        "picture": bars(
            f"Bits per byte, {language}, lower is better", drawn, unit="bits per byte (lower is better)"
        ),
        "rows": rows,
        "subtitle": f"{part['documents']:,} test documents, {part['bytes']:,} bytes, {part['tokens']:,} tokens "
        f"({part['bytes'] / max(part['tokens'], 1):.2f} bytes a token)",
    }


def _application_part(application: str, code: str, part: dict[str, Any]) -> dict[str, Any]:
    metrics = list(part["model"])
    scorers = {"model": part["model"], **_ordered(part["baselines"])}
    rows = [
        {"name": SCORERS[name], "is_model": name == "model", "cells": [_figure(scores[m]) for m in metrics]}
        for name, scores in scorers.items()
    ]
    return {
        "title": f"{_words(application)}, {LANGUAGES.get(code, code)}",
        "metrics": [METRIC_NAMES[m] for m in metrics],
        "rows": rows,
        "subtitle": f"{part['records']:,} test records; the baselines learned from {part['training_records']:,} training records",
        "matrix": _matrix(part) if "confusion" in part else None,
    }


def _matrix(part: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for label, counts in zip(part["labels"], part["confusion"], strict=True):
        scores = part["per_label"][label]
        rows.append(
            {
                "label": label,
                "cells": [{"count": n, "share": round(45 * n / max(sum(counts), 1))} for n in counts],
                **{m: f"{scores[m]:.3f}" for m in ("precision", "recall", "f1")},
            }
        )
    return {"labels": part["labels"], "rows": rows}


def _continuations(samples: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "language": LANGUAGES.get(s["language"], s["language"]),
            "code": s["language"],
            **{k: s[k] for k in ("temperature", "prompt", "text")},
        }
        for s in samples["continuations"]
    ]


def _graded(samples: dict[str, Any]) -> list[dict[str, Any]]:
    parts: dict[tuple[str, str], dict[str, Any]] = {}
    for s in samples["answers"]:
        part = parts.setdefault(
            (s["application"], s["language"]),
            {
                "title": f"{_words(s['application'])}, {LANGUAGES.get(s['language'], s['language'])}",
                "code": s["language"],
                "metric": METRIC_NAMES[s["metric"]],
                "rows": [],
            },
        )
        part["rows"].append(
            {
                "prompt": s["prompt"],
                "expected": s["expected"],
                "answer": s["answer"] or "(nothing)",
                "value": f"{s['value']:.2f}",
                "mark": "hit" if s["value"] >= 1 else "miss" if s["value"] <= 0 else "",
            }
        )
    return list(parts.values())


def _curve(rows: list[dict[str, str]]) -> str:
    series = [
        Line(name, [(float(row["step"]), float(row[column])) for row in rows if row.get(column)])
        for column, name in CURVE_NAMES.items()
    ]
    return lines("Pretraining loss", series, x_label="step", y_label="loss (nats a token)")
