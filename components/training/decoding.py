"""Sampling and greedy decoding with a key-value cache; the same loop for lean and wrapped models.

A model offers `start_cache(pad_B, capacity)`, `advance(inputs_BT, cache) -> logits_BV` and `shape.context`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def pick(logits_V: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None) -> int:
    """One token id. temperature 0 takes the most likely; top_k 0 and top_p 1 switch the cuts off."""
    if temperature == 0:
        return int(logits_V.argmax())
    logits_V = logits_V.float() / temperature
    order = logits_V.sort(descending=True, stable=True)
    probabilities = order.values.softmax(-1)
    keep = torch.ones_like(probabilities, dtype=torch.bool)
    if top_k:
        keep[top_k:] = False
    if top_p < 1:  # nucleus (Holtzman et al. 2020): the fewest tokens that reach top_p, at least one
        keep &= probabilities.cumsum(-1) - probabilities < top_p
    chosen = torch.multinomial(probabilities * keep, 1, generator=generator)
    return int(order.indices[chosen])


@torch.inference_mode()
def generate(
    model: Any, ids: Sequence[int], max_new_tokens: int, *, temperature: float = 1.0, top_k: int = 0,
    top_p: float = 1.0, generator: torch.Generator | None = None, stop_ids: Sequence[int] = (),
) -> list[int]:
    """New token ids after `ids`; ends before one of `stop_ids`. One generator state gives one answer.

    Past the model's context the last half of it is read again and decoding goes on.
    """
    context = model.shape.context
    device = next(model.parameters()).device
    text, new = list(ids)[-(context - 1):], []
    cache, unread = None, text
    while len(new) < max_new_tokens:
        if cache is None or len(text) > context:
            text = text[-(context // 2):] if len(text) > context else text
            cache = model.start_cache(torch.zeros(1, dtype=torch.int64, device=device), context)
            unread = text
        logits_BV = model.advance(torch.tensor([unread], device=device), cache)
        token = pick(logits_BV[0].cpu(), temperature, top_k, top_p, generator)
        if token in stop_ids:
            break
        new.append(token)
        text, unread = [*text, token], [token]
    return new


@torch.inference_mode()
def generate_batch(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_id: int | Sequence[int], rows: int = 64,
) -> list[list[int]]:
    """Greedy continuation of every prompt, in their order, each ending before `stop_id`.

    Prompts of similar length share a batch, padded on the left. A prompt that leaves no room for
    `max_new_tokens` in the context loses its first tokens.
    """
    stops = {stop_id} if isinstance(stop_id, int) else set(stop_id)
    device = next(model.parameters()).device
    room = model.shape.context - max_new_tokens
    if room < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} leaves no room for a prompt in {model.shape.context} tokens")
    kept = [list(prompt)[-room:] for prompt in prompts]
    order = sorted(range(len(kept)), key=lambda i: (len(kept[i]), i))
    answers: list[list[int]] = [[] for _ in kept]
    for start in range(0, len(order), rows):
        members = order[start:start + rows]
        longest = max(len(kept[i]) for i in members)
        pad_B = torch.tensor([longest - len(kept[i]) for i in members], device=device)
        filler = min(stops)
        inputs_BT = torch.tensor([[filler] * (longest - len(kept[i])) + kept[i] for i in members], device=device)
        cache = model.start_cache(pad_B, longest + max_new_tokens)
        going = [True] * len(members)
        for _ in range(max_new_tokens):
            tokens_B = model.advance(inputs_BT, cache).argmax(-1)
            for row, token in enumerate(tokens_B.tolist()):
                going[row] = going[row] and token not in stops
                if going[row]:
                    answers[members[row]].append(token)
            if not any(going):
                break
            inputs_BT = tokens_B[:, None]
    return answers
