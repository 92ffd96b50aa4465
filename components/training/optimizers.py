"""AdamW and Muon, and the learning rate of every step."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def orthogonalised(matrices: Tensor, dtype: torch.dtype = torch.bfloat16, iterations: int = 5) -> Tensor:
    """The nearest matrices (N, rows, columns) with singular values near 1, in `dtype`: bfloat16 is enough, where it is quick."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.float().flatten(1).norm(dim=1)[:, None, None] + 1e-7).to(dtype)
    for _ in range(iterations):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Part:
    """Some parameters of a model under one rule. `state` maps a name such as `exp_avg` to a tensor a parameter.

    No torch.optim.Optimizer: creating one imports torch's compiler, a second of every start.
    """

    def __init__(self, params: Sequence[Tensor], *, peak: float, weight_decay: float, state: dict[str, list[Tensor]]):
        self.params, self.peak, self.weight_decay, self.state = list(params), peak, weight_decay, state

    def step(self, lr: float) -> None:
        raise NotImplementedError


class AdamW(Part):
    """Decoupled weight decay (Loshchilov and Hutter 2019), by the kernel behind torch.optim.AdamW(fused=True)."""

    def __init__(self, params: Sequence[Tensor], *, peak: float, weight_decay: float, betas: tuple[float, float], eps: float = 1e-8):
        self.betas, self.eps = betas, eps
        super().__init__(params, peak=peak, weight_decay=weight_decay, state={
            "exp_avg": [torch.zeros_like(p) for p in params], "exp_avg_sq": [torch.zeros_like(p) for p in params],
            "step": [torch.zeros((), device=p.device) for p in params]})

    @torch.no_grad()
    def step(self, lr: float) -> None:
        torch._foreach_add_(self.state["step"], 1)
        torch._fused_adamw_(
            self.params, [p.grad for p in self.params], self.state["exp_avg"], self.state["exp_avg_sq"], [], self.state["step"], lr=lr,
            beta1=self.betas[0], beta2=self.betas[1], weight_decay=self.weight_decay, eps=self.eps, amsgrad=False, maximize=False)


class Muon(Part):
    """Momentum, orthogonalised (Jordan et al. 2024); the parameters have one shape and run as one batched product.

    A step is `lr` * sqrt(max(1, out / in)) times a matrix with singular values near 1, as in the original.
    """

    def __init__(self, params: Sequence[Tensor], *, peak: float, weight_decay: float, dtype: torch.dtype, momentum: float = 0.95, transposed: bool = False):
        self.momentum, self.dtype = momentum, dtype
        out, width = reversed(params[0].shape) if transposed else params[0].shape
        self.scale = max(1.0, out / width) ** 0.5
        super().__init__(params, peak=peak, weight_decay=weight_decay, state={"momentum": [torch.zeros_like(p) for p in params]})

    @torch.no_grad()
    def step(self, lr: float) -> None:
        grads, buffers = [p.grad for p in self.params], self.state["momentum"]
        torch._foreach_lerp_(buffers, grads, 1 - self.momentum)
        update = orthogonalised(torch.stack(torch._foreach_lerp(grads, buffers, self.momentum)), self.dtype)  # Nesterov's look ahead
        torch._foreach_mul_(self.params, 1 - lr * self.weight_decay)
        torch._foreach_add_(self.params, list(update.float().unbind(0)), alpha=-lr * self.scale)


# Tables of vectors, not maps between spaces: Muon leaves them to AdamW.
TABLES = ("embed_tokens.weight", "wte.weight", "wpe.weight", "lm_head.weight")


class Optimizers:
    """The optimizers of one model, stepped together, with one schedule and one flat state.

    Made after the model is on its device. Matrices are decayed; norms and biases are not. `precision`: of Muon's products.
    """

    def __init__(self, model: nn.Module, *, kind: str, learning_rate: float, weight_decay: float,
                 muon_learning_rate: float = 0.0, betas: tuple[float, float] = (0.9, 0.95), precision: str = "bfloat16"):
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.names = {id(p): name for name, p in named.items()}
        hidden: dict[tuple[torch.Size, bool], list[Tensor]] = {}
        if kind == "muon":
            for name, p in named.items():
                if p.ndim == 2 and not name.endswith(TABLES):
                    hidden.setdefault((p.shape, ".c_" in name), []).append(p)  # GPT-2's Conv1D holds (in, out)
        taken = {id(p) for members in hidden.values() for p in members}
        rest = [p for p in named.values() if id(p) not in taken]
        self.parts: list[Part] = []
        for members, decay in (([p for p in rest if p.ndim >= 2], weight_decay), ([p for p in rest if p.ndim < 2], 0.0)):
            if members:
                self.parts.append(AdamW(members, peak=learning_rate, weight_decay=decay, betas=betas))
        for (_, transposed), members in hidden.items():
            self.parts.append(Muon(members, peak=muon_learning_rate, weight_decay=weight_decay, transposed=transposed,
                                   dtype=getattr(torch, precision)))

    def step(self, share: float) -> None:
        """One update with `share` of the peak learning rates; gradients are dropped afterwards."""
        for part in self.parts:
            part.step(part.peak * share)
            for p in part.params:
                p.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The state by parameter, e.g. `exp_avg/model.norm.weight`."""
        return {f"{what}/{self.names[id(p)]}": tensor for part in self.parts for what, tensors in part.state.items()
                for p, tensor in zip(part.params, tensors, strict=True)}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put a state of `tensors()` back."""
        for key, tensor in self.tensors().items():
            tensor.copy_(tensors[key])
