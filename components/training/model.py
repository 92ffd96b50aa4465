"""Models in and out: built from the configuration, read from and written to Hugging Face folders.

`load_any` gives one interface for every base: `model(inputs_BT, positions_BT, select_N) -> logits`,
`start_cache`, `advance`, `shape.context`, `shape.vocab_size`. A shape that the lean module cannot
represent exactly runs as its `transformers` class; nothing else imports transformers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from components import files
from components.errors import Damaged, UserError
from components.training.decoding import generate, generate_batch
from components.training.gpt import GPT, GPT2, Llama, Shape, create

__all__ = ["GPT", "Shape", "build", "export", "flops_a_token", "generate", "generate_batch", "load", "load_any",
           "parameter_count", "read_config", "shape_of", "supports"]

# Keys of a config.json that change nothing in the logits.
HARMLESS = {
    "architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "use_cache", "initializer_range",
    "bos_token_id", "eos_token_id", "pad_token_id", "_name_or_path", "_attn_implementation_autoset", "keys_to_ignore_at_inference",
    "output_attentions", "output_hidden_states", "return_dict", "is_encoder_decoder", "is_decoder", "problem_type",
    "id2label", "label2id", "chunk_size_feed_forward", "task_specific_params", "gradient_checkpointing", "pretraining_tp",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    "attn_pdrop", "embd_pdrop", "resid_pdrop", "attention_dropout",  # we train and run without dropout
}


def shape_of(config: Any, vocab_size: int) -> Shape:
    """The shape that `config.model` asks for."""
    m = config.model
    # 8/3 of the width gives SwiGLU the parameters of a 4x MLP (Shazeer 2020); multiples of 64 keep products fast
    hidden = -(-8 * m.n_embd // 3 // 64) * 64 if m.architecture == "llama" else 4 * m.n_embd
    return Shape(architecture=m.architecture, vocab_size=vocab_size, n_layer=m.n_layer, n_head=m.n_head,
                 n_embd=m.n_embd, n_hidden=hidden, context=m.context, tied=m.tie_embeddings)


def build(config: Any, vocab_size: int) -> GPT:
    """A freshly initialised model for `config.model`, from `config.seed`."""
    return create(shape_of(config, vocab_size), config.seed)


def parameter_count(model: torch.nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.parameters())


def flops_a_token(model: Any, row_tokens: int) -> float:
    """6N + 12 L D T, forward and backward; N counts the matrices that multiply (the output one too)."""
    shape, embedding_only = model.shape, 0
    if isinstance(model, GPT):
        embedding_only = (0 if shape.tied else shape.vocab_size * shape.n_embd) + (
            shape.context * shape.n_embd if shape.architecture == "gpt2" else 0)
    matrices = sum(tensor.numel() for tensor in model.parameters() if tensor.ndim >= 2) - embedding_only
    return 6 * matrices + 12 * shape.n_layer * shape.n_embd * row_tokens


# --- config.json -----------------------------------------------------------------------------------

def hf_config(shape: Shape, *, eos_id: int = 0) -> dict[str, Any]:
    """config.json of a model of ours; the same text for the same model, so no version in it."""
    common = {"vocab_size": shape.vocab_size, "bos_token_id": eos_id, "eos_token_id": eos_id, "pad_token_id": eos_id,
              "tie_word_embeddings": shape.tied, "initializer_range": 0.02, "use_cache": True, "dtype": "float32"}
    if shape.architecture == "llama":
        return common | {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": shape.n_embd,
            "intermediate_size": shape.n_hidden, "num_hidden_layers": shape.n_layer, "num_attention_heads": shape.n_head,
            "num_key_value_heads": shape.n_head, "head_dim": shape.n_embd // shape.n_head, "hidden_act": "silu",
            "max_position_embeddings": shape.context, "rms_norm_eps": shape.norm_eps, "attention_bias": False,
            "mlp_bias": False, "attention_dropout": 0.0,
            "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta}}
    return common | {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": shape.n_embd, "n_inner": shape.n_hidden,
        "n_layer": shape.n_layer, "n_head": shape.n_head, "n_positions": shape.context,
        "layer_norm_epsilon": shape.norm_eps, "activation_function": "gelu_new", "attn_pdrop": 0.0, "embd_pdrop": 0.0,
        "resid_pdrop": 0.0, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False, "add_cross_attention": False}


def _shape_from(hf: dict[str, Any]) -> Shape | None:
    """The lean shape that a config.json describes exactly, or None."""
    required: dict[str, Any]
    if hf.get("model_type") == "llama" and hf.get("architectures") == ["LlamaForCausalLM"]:
        rope = hf.get("rope_parameters") or {"rope_type": "default", "rope_theta": hf.get("rope_theta", 10_000.0)}
        try:
            heads, width = int(hf["num_attention_heads"]), int(hf["hidden_size"])
            shape = Shape(architecture="llama", vocab_size=int(hf["vocab_size"]), n_layer=int(hf["num_hidden_layers"]),
                          n_head=heads, n_embd=width, n_hidden=int(hf["intermediate_size"]),
                          context=int(hf["max_position_embeddings"]), tied=bool(hf.get("tie_word_embeddings", False)),
                          norm_eps=float(hf.get("rms_norm_eps", 1e-6)), rope_theta=float(rope.get("rope_theta", 10_000.0)))
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        required = {"num_key_value_heads": (None, heads), "head_dim": (None, width // heads), "hidden_act": ("silu",),
                    "attention_bias": (False,), "mlp_bias": (False,), "rope_scaling": (None,), "rope_theta": (None, shape.rope_theta)}
        defaults = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
        known = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings",
                 "rms_norm_eps", "rope_parameters", "tie_word_embeddings", *required}
        fits = set(rope) <= {"rope_type", "rope_theta"} and rope.get("rope_type", "default") == "default" and (width // heads) % 2 == 0
    elif hf.get("model_type") == "gpt2" and hf.get("architectures") == ["GPT2LMHeadModel"]:
        try:
            heads, width = int(hf["n_head"]), int(hf["n_embd"])
            shape = Shape(architecture="gpt2", vocab_size=int(hf["vocab_size"]), n_layer=int(hf["n_layer"]), n_head=heads,
                          n_embd=width, n_hidden=int(hf.get("n_inner") or 4 * width), context=int(hf["n_positions"]),
                          tied=bool(hf.get("tie_word_embeddings", True)), norm_eps=float(hf.get("layer_norm_epsilon", 1e-5)))
        except (KeyError, TypeError, ValueError):
            return None
        required = {"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,), "n_ctx": (None, shape.context),
                    "scale_attn_by_inverse_layer_idx": (False,), "reorder_and_upcast_attn": (False,), "add_cross_attention": (False,)}
        defaults = {"activation_function": "gelu_new", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
                    "reorder_and_upcast_attn": False, "add_cross_attention": False}
        known = {"n_embd", "n_inner", "n_layer", "n_head", "n_positions", "vocab_size", "layer_norm_epsilon", "tie_word_embeddings", *required}
        fits = True
    else:
        return None
    fits = fits and shape.n_embd % shape.n_head == 0 and set(hf) <= known | HARMLESS
    return shape if fits and all(hf.get(key, defaults.get(key)) in allowed for key, allowed in required.items()) else None


def supports(hf: dict[str, Any]) -> bool:
    """Whether the lean module computes exactly what this config.json describes. An unknown key says no."""
    return _shape_from(hf) is not None


# --- folders ---------------------------------------------------------------------------------------

def export(model: Any, folder: Path, *, eos_id: int = 0, stop_ids: Sequence[int] = (), base_config: dict[str, Any] | None = None) -> None:
    """Write config.json, generation_config.json and model.safetensors (float32), the same bytes for the same weights.

    `base_config` is the config.json of an imported base: kept, but for the dtype and what a clock or version wrote.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inner = model.inner if isinstance(model, Wrapped) else model
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in inner.state_dict().items()}
    if isinstance(model, Wrapped):
        for name in getattr(inner, "all_tied_weights_keys", None) or {}:
            tensors.pop(name, None)
    config = hf_config(model.shape, eos_id=eos_id)
    if base_config is not None:
        dropped = ("transformers_version", "torch_dtype", "_name_or_path")
        config = {key: value for key, value in base_config.items() if key not in dropped} | {"dtype": "float32"}
    eos = config.get("eos_token_id")
    stops = sorted({*stop_ids, *(eos if isinstance(eos, list) else [] if eos is None else [eos])})
    generation = {"bos_token_id": config.get("bos_token_id"), "eos_token_id": stops[0] if len(stops) == 1 else stops,
                  "pad_token_id": config.get("pad_token_id")}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    files.write_json(folder / "config.json", config)
    files.write_json(folder / "generation_config.json", {k: v for k, v in generation.items() if v not in (None, [])})


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder} has no config.json; a Hugging Face model folder was expected")
    hf = files.read_json(path)
    if "auto_map" in hf:
        raise UserError(f"{path} asks for code of its own (auto_map); only classes of `transformers` are run, never code from a model folder")
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"{folder} has no *.safetensors; pickled weights can run code, so they are not read. Convert them with save_pretrained")
    return hf


def _lean_names(folder: Path) -> set[str]:
    """Tensor names in model.safetensors, read from its header; empty if there is no such file."""
    path = folder / "model.safetensors"
    if not path.exists():
        return set()
    with open(path, "rb") as f:
        size = int.from_bytes(f.read(8), "little")
        try:
            return set(json.loads(f.read(min(size, 100 * 2**20)))) - {"__metadata__"}
        except ValueError as error:
            raise Damaged(f"{path}: its header is not readable ({error})") from error


def load(folder: Path) -> GPT:
    """A folder that `export` wrote, or any whose shape and tensor names are the lean module's.

    Raises Damaged when names or shapes do not match.
    """
    shape = _shape_from(read_config(folder))
    if shape is None:
        raise UserError(f"{folder / 'config.json'} describes a model that the lean module does not represent exactly; open it with load_any")
    model = {"llama": Llama, "gpt2": GPT2}[shape.architecture](shape)
    try:
        tensors = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise Damaged(f"{folder / 'model.safetensors'} is damaged or cut short: {error}. Bring the file back from where it came from") from error
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True)
    except RuntimeError as error:
        raise Damaged(f"{folder / 'model.safetensors'} does not match its config.json: {error}") from error
    return model


def load_any(folder: Path) -> GPT | Wrapped:
    """The lean module where it fits exactly, else the `transformers` class of the folder.

    Raises UserError (no safetensors, code of its own, unknown class) or Damaged (tensors missing, unexpected
    or of another shape: `transformers` would fill them with random values and only print a table).
    """
    hf = read_config(folder)
    shape = _shape_from(hf)
    if shape is not None:
        # names do not depend on sizes; torch's meta device would name them too, but imports the compiler (1.5 s)
        small = replace(shape, vocab_size=1, n_embd=2 * shape.n_head, n_hidden=1, context=1)
        expected = set({"llama": Llama, "gpt2": GPT2}[shape.architecture](small).state_dict())
        if _lean_names(folder) == expected:
            return load(folder)
    return Wrapped.open(folder)


class Wrapped(torch.nn.Module):
    """A `transformers` model behind the interface of the lean ones. It stays in eval mode: no dropout."""

    def __init__(self, inner: Any):
        super().__init__()
        self.inner = inner.eval()
        c = inner.config.get_text_config()
        self.shape = Shape(architecture=c.model_type, vocab_size=inner.get_input_embeddings().num_embeddings,
                           n_layer=c.num_hidden_layers, n_head=c.num_attention_heads, n_embd=c.hidden_size,
                           n_hidden=getattr(c, "intermediate_size", None) or 4 * c.hidden_size,
                           context=getattr(c, "max_position_embeddings", None) or 1024, tied=bool(c.tie_word_embeddings))
        self.compute_dtype = torch.float32

    @classmethod
    def open(cls, folder: Path) -> Wrapped:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        before = logging.get_verbosity()
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # the report of missing keys is an error below
        try:
            inner, info = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True,
                ignore_mismatched_sizes=True)  # they are named below, by tensor
        except Exception as error:  # the folder may be anybody's, and each oddity raises another class
            raise UserError(f"{folder}: transformers cannot open this model: {' '.join(str(error).split())[:400]}") from error
        finally:
            logging.set_verbosity(before)
        bad = {what: sorted(map(str, names))[:5] for what, names in info.items() if names}
        if bad:
            raise Damaged(f"{folder}: the weights do not match config.json: {bad}")
        return cls(inner)

    def _autocast(self) -> torch.autocast:
        device = next(self.inner.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.compute_dtype == torch.bfloat16)

    def forward(self, inputs_BT: torch.Tensor, positions_BT: torch.Tensor | None = None, select_N: torch.Tensor | None = None) -> torch.Tensor:
        # with a cache, transformers would let packed documents see one another
        with self._autocast():
            logits = self.inner(input_ids=inputs_BT, position_ids=positions_BT, use_cache=False).logits
        return logits if select_N is None else logits.reshape(-1, logits.shape[-1])[select_N]

    def start_cache(self, pad_B: torch.Tensor, capacity: int) -> dict[str, Any]:
        return {"pad_B": pad_B, "length": 0, "past": None}

    def advance(self, inputs_BT: torch.Tensor, cache: dict[str, Any]) -> torch.Tensor:
        """As GPT.advance: logits (B, V) after the last token."""
        T, pad_B = inputs_BT.shape[1], cache["pad_B"]
        index = torch.arange(cache["length"] + T, device=pad_B.device)
        positions_BT = (index[cache["length"]:] - pad_B[:, None]).clamp(min=0)
        with self._autocast():
            out = self.inner(input_ids=inputs_BT, attention_mask=(index >= pad_B[:, None]).long(), position_ids=positions_BT,
                             past_key_values=cache["past"], use_cache=True, logits_to_keep=1)
        cache["past"], cache["length"] = out.past_key_values, cache["length"] + T
        return out.logits[:, -1]
