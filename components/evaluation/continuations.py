"""Samples of the base model: how it goes on from the openings of test documents."""

from __future__ import annotations

from typing import Any

from components.config import Config
from components.evaluation import answers, judging, scoring

TEMPERATURES = (0.0, 0.7, 1.0)
PROMPTS_A_LANGUAGE = 2
OPENING_CHARS = {"zh": 20}
OTHER_OPENING_CHARS = 60


def sample(
    config: Config, judged: judging.Judged, scored: dict[str, judging.ScoredDocuments]
) -> list[dict[str, Any]]:
    """How the base model goes on from the openings of the first test documents of each language."""
    samples = []
    for language, part in scored.items():
        length = OPENING_CHARS.get(language, OTHER_OPENING_CHARS)
        chosen = [i for i, text in enumerate(part.texts) if len(text) >= 2 * length][:PROMPTS_A_LANGUAGE] or [
            0
        ]
        openings = [_opening(part.texts[i], language, length) for i in chosen]
        prompts = [judged.tokenizer.encode(opening, add_special_tokens=False).ids for opening in openings]
        with scoring.exact(config.evaluation.threads):
            made = answers.continuations(
                judged.model,
                prompts,
                max_new_tokens=config.evaluation.sample_tokens,
                temperatures=TEMPERATURES,
                seed=config.seed,
                eot_id=judged.eot_id,
            )
        for i, opening, texts in zip(chosen, openings, made, strict=True):
            samples += [
                {
                    "language": language,
                    "document": part.ids[i],
                    "prompt": opening,
                    "temperature": temperature,
                    "text": judged.tokenizer.decode(ids, skip_special_tokens=True),
                }
                for temperature, ids in zip(TEMPERATURES, texts, strict=True)
            ]
    return samples


def _opening(text: str, language: str, length: int) -> str:
    """The first characters; outside Chinese no word is cut in two."""
    opening = text[:length]
    if language != "zh" and len(text) > length and not text[length].isspace() and " " in opening:
        opening = opening.rpartition(" ")[0]
    return opening.rstrip()
