"""AdamW and Muon, and the learning rate of every step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Newton-Schulz polynomial of Muon (Jordan et al. 2024): singular values go to about 1 in five steps.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def rate(step: int, *, steps: int, warmup_steps: int, min_ratio: float) -> float:
    """Share of the peak learning rate at `step`, counted from 0.

    1. Over the first `warmup_steps` steps it rises linearly; step 0 has 1 / warmup_steps.
    2. From there it falls as half a cosine.
    3. The last step has `min_ratio`.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def orthogonalised(matrices: Tensor, iterations: int = 5) -> Tensor:
    """The nearest matrices (N, rows, columns) with singular values near 1, in bfloat16."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.float().flatten(1).norm(dim=1)[:, None, None] + 1e-7).bfloat16()
    for _ in range(iterations):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024). Matrices of one shape run as one batched product.

    A step has the root-mean-square of `lr` * sqrt(max(1, out / in)) / sqrt(columns), as in the original.
    """

    def __init__(self, params: Iterable[Tensor], *, lr: float, weight_decay: float, momentum: float = 0.95, transposed: bool = False):
        super().__init__(list(params), {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "transposed": transposed})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, members in by_shape.items():
                self._update(shape, members, group)

    def _update(self, shape: torch.Size, members: list[Tensor], group: dict[str, Any]) -> None:
        buffers = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in members]
        grads = [p.grad for p in members]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(grads, buffers, group["momentum"])
        update = orthogonalised(torch.stack(nesterov))
        out, width = reversed(shape) if group["transposed"] else shape
        step = group["lr"] * max(1.0, out / width) ** 0.5
        torch._foreach_mul_(members, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(members, list(update.float().unbind(0)), alpha=-step)


class Optimizers:
    """The optimizers of one model, stepped together, with one schedule and one flat state."""

    def __init__(self, model: nn.Module, *, kind: str, learning_rate: float, weight_decay: float,
                 muon_learning_rate: float = 0.0, betas: tuple[float, float] = (0.9, 0.95)):
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = {id(p): name for name, p in named}
        # hidden matrices only: embeddings and the output head are tables of vectors, not maps
        tables = ("embed_tokens.weight", "wte.weight", "wpe.weight", "lm_head.weight")
        hidden = [(name, p) for name, p in named if p.ndim == 2 and not name.endswith(tables)] if kind == "muon" else []
        taken = {id(p) for _, p in hidden}
        rest = [p for _, p in named if id(p) not in taken]
        groups = [{"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
                  {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0}]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=betas, eps=1e-8, fused=True)]
        for transposed in (False, True):  # GPT-2's Conv1D holds (in, out)
            mine = [p for name, p in hidden if (".c_" in name) == transposed]
            if mine:
                self.parts.append(Muon(mine, lr=muon_learning_rate, weight_decay=weight_decay, transposed=transposed))
        self.peaks = [[group["lr"] for group in part.param_groups] for part in self.parts]

    def step(self, share: float) -> None:
        """One update with `share` of the peak learning rates; gradients are dropped afterwards."""
        for part, peaks in zip(self.parts, self.peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * share
            part.step()
            part.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The state by parameter, e.g. `exp_avg/model.norm.weight`."""
        return {f"{what}/{self.names[id(p)]}": value for part in self.parts for p, state in part.state.items() for what, value in state.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put a state of `tensors()` back."""
        parameters = {self.names[id(p)]: (part, p) for part in self.parts for group in part.param_groups for p in group["params"]}
        for key, value in tensors.items():
            what, _, name = key.partition("/")
            part, p = parameters[name]
            part.state[p][what] = value.to(p.device)
