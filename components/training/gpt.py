"""Two lean GPT shapes in plain torch. Their parameters carry the names and layouts of `transformers`'
LlamaForCausalLM and GPT2LMHeadModel, so that an export is a plain copy.

B rows, T tokens a row, H heads, D width of a head, C width of the residual stream, V vocabulary,
S tokens in the cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Up to this length the CPU multiplies whole T x T scores in bfloat16 faster than its fused kernel
# runs (6 against 15 ms a layer at 16 x 128, 8 against 16 ms at 8 x 256, Zen 4).
MAX_DENSE_SCORES = 512


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What decides every tensor of the model."""

    architecture: str  # 'llama' or 'gpt2'
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    n_hidden: int  # width of the MLP
    context: int  # longest sequence, in tokens
    tied: bool
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0


class Cache:
    """Keys and values of every layer, for rows that start with `pad_B` tokens of padding."""

    def __init__(self, shape: Shape, pad_B: Tensor, capacity: int, dtype: torch.dtype):
        size = (shape.n_layer, len(pad_B), shape.n_head, capacity, shape.n_embd // shape.n_head)
        self.keys = torch.zeros(size, dtype=dtype, device=pad_B.device)
        self.values = torch.zeros_like(self.keys)
        self.pad_B, self.length = pad_B, 0

    def span(self, T: int) -> tuple[Tensor, Tensor | None]:
        """Positions (B, T) of the next T tokens, and who may look at whom (B, 1, T, S), or None for all."""
        index_T = torch.arange(self.length, self.length + T, device=self.pad_B.device)
        positions_BT = (index_T - self.pad_B[:, None]).clamp(min=0)
        if T == 1 and not self.pad_B.any():
            return positions_BT, None
        index_S = torch.arange(self.length + T, device=self.pad_B.device)
        allowed = (index_S <= index_T[:, None]) & (index_S >= self.pad_B[:, None, None])
        # padding looks at itself: a row with nothing to look at would fill the cache with NaN
        return positions_BT, (allowed | (index_S == index_T[:, None]))[:, None]


def document_mask(positions_BT: Tensor) -> Tensor:
    """Who may look at whom (B, 1, T, T): earlier tokens of the same document. Position 0 starts one."""
    T = positions_BT.shape[1]
    document_BT = (positions_BT == 0).cumsum(1)
    same = document_BT[:, :, None] == document_BT[:, None, :]
    return (same & torch.ones(T, T, dtype=torch.bool, device=same.device).tril())[:, None]


def attend(q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Scaled dot-product attention. `mask` is additive (dense path) or boolean; None with `causal` for plain rows."""
    if mask is None or mask.dtype == torch.bool:
        return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, attn_mask=mask, is_causal=causal and mask is None)
    B, H, T, D = q_BHTD.shape
    q = (q_BHTD * D**-0.5).reshape(B * H, T, D)
    k, v = (x.reshape(B * H, T, D) for x in (k_BHSD, v_BHSD))
    scores = torch.bmm(q, k.transpose(1, 2)).view(B, H, T, T) + mask
    return torch.bmm(scores.softmax(-1).view(B * H, T, T), v).view(B, H, T, D)


class GPT(nn.Module):
    """What both shapes share. `compute_dtype` is the dtype of the matrix products; weights stay as they are."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.compute_dtype = torch.float32

    def forward(self, inputs_BT: Tensor, positions_BT: Tensor | None = None, select_N: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) in `compute_dtype`, or (N, V) of the flat indices `select_N` alone.

        Positions that restart at 0 begin a document that sees nothing before it; None: plain rows.
        """
        T, device = inputs_BT.shape[1], inputs_BT.device
        mask = None if positions_BT is None else document_mask(positions_BT)
        if device.type == "cpu" and self.compute_dtype == torch.bfloat16 and T <= MAX_DENSE_SCORES:
            allowed = torch.ones(T, T, dtype=torch.bool).tril() if mask is None else mask
            mask = torch.zeros(allowed.shape, dtype=self.compute_dtype).masked_fill_(~allowed, -math.inf)
        if positions_BT is None:
            positions_BT = torch.arange(T, device=device)[None]
        x_BTC = self._blocks(inputs_BT, positions_BT, mask, None)
        if select_N is not None:
            x_BTC = x_BTC.reshape(-1, x_BTC.shape[-1])[select_N]
        return self._head(x_BTC)

    def start_cache(self, pad_B: Tensor, capacity: int) -> Cache:
        return Cache(self.shape, pad_B, capacity, self.compute_dtype)

    def advance(self, inputs_BT: Tensor, cache: Cache) -> Tensor:
        """Append T tokens to the cache. Returns the logits (B, V) after the last one."""
        positions_BT, mask = cache.span(inputs_BT.shape[1])
        x_BTC = self._blocks(inputs_BT, positions_BT, mask, cache)
        cache.length += inputs_BT.shape[1]
        return self._head(x_BTC[:, -1])

    def _linear(self, x: Tensor, *weights: Tensor) -> Tensor:
        """x @ weight.T; several weights that read the same input run as one product."""
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        return F.linear(x.to(self.compute_dtype), weight.to(self.compute_dtype))

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        """q, k, v (B, T, H, D) -> (B, T, C), through the cache if there is one."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if cache is not None:
            end = cache.length + q.shape[2]
            cache.keys[layer, :, :, cache.length:end] = k
            cache.values[layer, :, :, cache.length:end] = v
            k, v = cache.keys[layer, :, :, :end], cache.values[layer, :, :, :end]
        return attend(q, k, v, mask, causal=cache is None).transpose(1, 2).flatten(2)


class LlamaBlock(nn.Module):
    """Parameters of one block; the names are those of LlamaDecoderLayer."""

    def __init__(self, shape: Shape):
        super().__init__()
        C, M = shape.n_embd, shape.n_hidden
        linear = lambda i, o: nn.Linear(i, o, bias=False)  # noqa: E731
        self.self_attn = nn.ModuleDict({name: linear(C, C) for name in ("q_proj", "k_proj", "v_proj", "o_proj")})
        self.mlp = nn.ModuleDict({"gate_proj": linear(C, M), "up_proj": linear(C, M), "down_proj": linear(M, C)})
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(C), RMSNorm(C)


class RMSNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class Llama(GPT):
    """Rotary positions, RMSNorm, SwiGLU, no biases: LlamaForCausalLM with as many key heads as query heads."""

    def __init__(self, shape: Shape):
        super().__init__(shape)
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(shape.vocab_size, shape.n_embd)
        self.model.layers = nn.ModuleList(LlamaBlock(shape) for _ in range(shape.n_layer))
        self.model.norm = RMSNorm(shape.n_embd)
        self.lm_head = None if shape.tied else nn.Linear(shape.n_embd, shape.vocab_size, bias=False)

    def _norm(self, x: Tensor, norm: RMSNorm) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), norm.weight, self.shape.norm_eps)

    def _rotation(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """cos, sin (B, T, 1, 1, D/2) of rotary positions (Su et al. 2021), halves apart as in `transformers`."""
        D = self.shape.n_embd // self.shape.n_head
        exponent = torch.arange(0, D, 2, dtype=torch.float32, device=positions_BT.device) / D
        angle = positions_BT[..., None].float() * (1.0 / self.shape.rope_theta**exponent)
        return tuple(f(angle).to(self.compute_dtype)[:, :, None, None] for f in (torch.cos, torch.sin))

    def _blocks(self, inputs_BT: Tensor, positions_BT: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        B, T = inputs_BT.shape
        H, D, M = self.shape.n_head, self.shape.n_embd // self.shape.n_head, self.shape.n_hidden
        cos, sin = self._rotation(positions_BT)
        x = F.embedding(inputs_BT, self.model.embed_tokens.weight)
        for i, block in enumerate(self.model.layers):
            a, m = block.self_attn, block.mlp
            h = self._norm(x, block.input_layernorm)
            qkv = self._linear(h, a.q_proj.weight, a.k_proj.weight, a.v_proj.weight).view(B, T, 3, H, D)
            first, second = qkv[:, :, :2].chunk(2, -1)
            qk = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
            heads = self._attention(qk[:, :, 0], qk[:, :, 1], qkv[:, :, 2], mask, cache, i)
            x = x + self._linear(heads, a.o_proj.weight)
            h = self._norm(x, block.post_attention_layernorm)
            gate, up = self._linear(h, m.gate_proj.weight, m.up_proj.weight).split(M, -1)
            x = x + self._linear(F.silu(gate) * up, m.down_proj.weight)
        return self._norm(x, self.model.norm)

    def _head(self, x: Tensor) -> Tensor:
        return self._linear(x, self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight)


class Conv1D(nn.Module):
    """GPT-2's linear layer: the weight is (in, out)."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_in, width_out))
        self.bias = nn.Parameter(torch.zeros(width_out))

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        flat = torch.addmm(self.bias.to(dtype), x.to(dtype).reshape(-1, x.shape[-1]), self.weight.to(dtype))
        return flat.view(*x.shape[:-1], -1)


class GPT2Block(nn.Module):
    """Parameters of one block; the names are those of transformers' GPT2Block."""

    def __init__(self, shape: Shape):
        super().__init__()
        C, M, eps = shape.n_embd, shape.n_hidden, shape.norm_eps
        self.ln_1, self.ln_2 = nn.LayerNorm(C, eps=eps), nn.LayerNorm(C, eps=eps)
        self.attn = nn.ModuleDict({"c_attn": Conv1D(C, 3 * C), "c_proj": Conv1D(C, C)})
        self.mlp = nn.ModuleDict({"c_fc": Conv1D(C, M), "c_proj": Conv1D(M, C)})


class GPT2(GPT):
    """Learned positions, LayerNorm, GELU (tanh form), biases: GPT2LMHeadModel without dropout."""

    def __init__(self, shape: Shape):
        super().__init__(shape)
        self.transformer = nn.Module()
        self.transformer.wte = nn.Embedding(shape.vocab_size, shape.n_embd)
        self.transformer.wpe = nn.Embedding(shape.context, shape.n_embd)
        self.transformer.h = nn.ModuleList(GPT2Block(shape) for _ in range(shape.n_layer))
        self.transformer.ln_f = nn.LayerNorm(shape.n_embd, eps=shape.norm_eps)
        self.lm_head = None if shape.tied else nn.Linear(shape.n_embd, shape.vocab_size, bias=False)

    def _blocks(self, inputs_BT: Tensor, positions_BT: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        B, T = inputs_BT.shape
        H, D, dtype = self.shape.n_head, self.shape.n_embd // self.shape.n_head, self.compute_dtype
        t = self.transformer
        x = F.embedding(inputs_BT, t.wte.weight) + F.embedding(positions_BT, t.wpe.weight)
        for i, block in enumerate(t.h):
            q, k, v = block.attn.c_attn(block.ln_1(x), dtype).view(B, T, 3, H, D).unbind(2)
            x = x + block.attn.c_proj(self._attention(q, k, v, mask, cache, i), dtype)
            h = F.gelu(block.mlp.c_fc(block.ln_2(x), dtype), approximate="tanh")
            x = x + block.mlp.c_proj(h, dtype)
        return t.ln_f(x)

    def _head(self, x: Tensor) -> Tensor:
        return self._linear(x, self.transformer.wte.weight if self.lm_head is None else self.lm_head.weight)


def create(shape: Shape, seed: int) -> GPT:
    """A fresh model, initialised as GPT-2 was: N(0, 0.02), residual projections scaled by 1/sqrt(2 layers)."""
    model = {"llama": Llama, "gpt2": GPT2}[shape.architecture](shape)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim < 2:
                continue  # norms start at one, biases at zero
            residual = name.endswith(("o_proj.weight", "down_proj.weight", "c_proj.weight"))
            tensor.normal_(0.0, 0.02 / math.sqrt(2 * shape.n_layer) if residual else 0.02, generator=generator)
    return model
