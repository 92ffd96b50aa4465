"""One loop for pretraining and fine-tuning: deterministic, killable at any time, silent about trackers.

B rows, T tokens a row, N scored targets, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from components import failpoints
from components.errors import UserError
from components.reporting import Progress, say, stop
from components.training.batches import IGNORED, Batch
from components.training.checkpoint import Checkpoints
from components.training.optimizers import Optimizers, rate


class Run(Protocol):
    """Where points go; the stage gives one (components/tracking.py has the real one). A step that it has is skipped."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...
    def flush(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long, how, and how often to look."""

    name: str  # of the progress bar
    steps: int
    warmup_steps: int
    min_ratio: float
    accumulation: int
    clip_norm: float
    learning_rate: float
    precision: str
    device: str
    compile: bool
    seed: int
    validation_interval: int
    checkpoint_interval: int
    log_interval: int
    flops_a_token: float
    peak_flops: float | None  # None: MFU is not known


@dataclass
class State:
    """What a checkpoint holds beside tensors; the curve is part of the result, so it has no clock."""

    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)  # losses since the last logged point


def batch_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Sum of the weighted losses of the scored targets, in nats, float32."""
    targets = batch.targets_BT.flatten()
    scored_N = (targets != IGNORED).nonzero().squeeze(1)
    select = None if len(scored_N) == len(targets) else scored_N
    logits_NV = model(batch.inputs_BT, batch.positions_BT, select)
    losses = F.cross_entropy(logits_NV.reshape(-1, logits_NV.shape[-1]).float(), targets if select is None else targets[select],
                             reduction="sum" if batch.weights_BT is None else "none")
    return losses if batch.weights_BT is None else (losses * batch.weights_BT.flatten()[scored_N]).sum()


@torch.no_grad()
def mean_loss(model: Any, batches: Sequence[Batch], device: str) -> float:
    """Nats a target over all batches, weighted as they are. Stays in the training precision."""
    total = math.fsum(batch_loss(model, batch.to(device)).item() for batch in batches)
    return total / math.fsum(batch.weight() for batch in batches)


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Nats over all targets of some documents and the UTF-8 bytes of their text -> bits a byte."""
    return nats / math.log(2) / num_bytes


def train(
    model: Any, optimizers: Optimizers, batch: Callable[[int], Batch], plan: Plan, *, checkpoints: Checkpoints,
    validate: Callable[[Any], dict[str, float]], run: Run | None = None,
) -> list[dict[str, float]]:
    """Train to `plan.steps`, from the newest good checkpoint if there is one. Returns the curve.

    `batch(i)` gives micro-batch i; step s takes `accumulation` of them from s * accumulation.
    Raises UserError at a loss or gradient that is not finite, before the weights change, and
    KeyboardInterrupt after SIGTERM or Ctrl-C, with a checkpoint of the last finished step.
    """
    model.compute_dtype = getattr(torch, plan.precision)
    checkpoints.check_room(model, optimizers)
    saved = checkpoints.restore(model, optimizers)
    if saved and saved.get("precision", plan.precision) != plan.precision:
        raise UserError(f"{plan.name}: its checkpoints in {checkpoints.folder} are of a training in {saved['precision']}, and on this machine "
                        f"training.precision=auto is {plan.precision}. Go on on a machine like the one it began on, or remove that folder "
                        "(it then begins at step 0), then run again")
    state = State(**{key: saved[key] for key in ("step", "curve", "pending")}) if saved else State()
    if saved:
        say(f"{plan.name}: resumes after step {state.step} of {plan.steps}")
        for point in state.curve:  # a tracker that lost its notes gets the whole curve again
            _log(run, point)
    forward = torch.compile(model) if plan.compile else model
    parameters = [p for p in model.parameters() if p.requires_grad]
    seen_tokens, seen_from_s = 0, time.perf_counter()
    with Progress(plan.name, plan.steps, start=state.step) as progress, stop.deferred() as asked:
        while state.step < plan.steps:
            failpoints.hit("train.step", state.step + 1)
            share = rate(state.step, steps=plan.steps, warmup_steps=plan.warmup_steps, min_ratio=plan.min_ratio)
            loss, norm, tokens = _update(forward, parameters, optimizers, batch, plan, state.step, share)
            state.step += 1
            state.pending.append(loss)
            seen_tokens += tokens
            last = state.step == plan.steps
            if state.step % plan.log_interval == 0 or last:
                elapsed_s = time.perf_counter() - seen_from_s
                point = {"step": state.step, "train/loss": math.fsum(state.pending) / len(state.pending),
                         "train/learning_rate": plan.learning_rate * share, "train/grad_norm": norm}
                speed = _speed(seen_tokens / elapsed_s, plan)
                state.pending = []
                if state.step % plan.validation_interval == 0 or last:
                    point |= validate(model)
                state.curve.append(point)
                _log(run, point | speed)
                progress.update(state.step, f"loss {point['train/loss']:.3f} · {speed['train/tokens_per_s']:,.0f} tok/s")
                seen_tokens, seen_from_s = 0, time.perf_counter()
            if asked.requested or (state.step % plan.checkpoint_interval == 0 and not last):
                started_s = time.perf_counter()
                checkpoints.save(state.step, model, optimizers, {"curve": state.curve, "pending": state.pending, "precision": plan.precision})
                if run is not None:
                    run.flush()
                if asked.requested:
                    raise KeyboardInterrupt
                seen_from_s += time.perf_counter() - started_s
    return state.curve


def _update(
    forward: Any, parameters: list[torch.nn.Parameter], optimizers: Optimizers, batch: Callable[[int], Batch], plan: Plan, step: int, share: float,
) -> tuple[float, float, int]:
    """One optimizer step. Returns the loss in nats a target, the gradient norm and the tokens read."""
    torch.manual_seed(plan.seed + step * 1_000_003)  # whatever is random inside depends on the step alone
    batches = [batch(step * plan.accumulation + i) for i in range(plan.accumulation)]
    weight = math.fsum(b.weight() for b in batches)
    loss = 0.0
    for one in batches:
        part = batch_loss(forward, one.to(plan.device)) / weight
        loss += failpoints.value("train.loss", part.item(), step + 1)
        _require_finite(loss, "loss", plan, step, parameters)
        part.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, plan.clip_norm).item()
    _require_finite(norm, "gradient norm", plan, step, parameters)
    optimizers.step(share)
    return loss, norm, sum(b.inputs_BT.numel() for b in batches)


def _require_finite(value: float, what: str, plan: Plan, step: int, parameters: list[torch.nn.Parameter]) -> None:
    if not math.isfinite(value):
        for p in parameters:
            p.grad = None
        raise UserError(f"{plan.name}: the {what} of step {step + 1} is {value}; the weights were not changed and earlier checkpoints are kept. "
                        "Lower its learning rate, or set training.precision=float32, then run again")


def _log(run: Run | None, point: dict[str, float]) -> None:
    if run is not None:
        run.log(int(point["step"]), {key: value for key, value in point.items() if key != "step"})


def _speed(tokens_per_s: float, plan: Plan) -> dict[str, float]:
    speed = {"train/tokens_per_s": tokens_per_s}
    if plan.peak_flops:
        speed["train/mfu"] = tokens_per_s * plan.flops_a_token / plan.peak_flops
    return speed


def measured_peak_flops(precision: str, device: str) -> float:
    """FLOP/s of a square matrix product, the best of a few; MFU is a share of it. About 0.1 s on a CPU."""
    size = 1024 if device == "cpu" else 8192
    a = torch.ones(size, size, dtype=getattr(torch, precision), device=device)
    best_s = math.inf
    for _ in range(6):
        started_s = time.perf_counter()
        (a @ a)[0, 0].item()
        best_s = min(best_s, time.perf_counter() - started_s)
    return 2 * size**3 / best_s
