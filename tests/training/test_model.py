"""The lean model is the transformers model: same names, same logits, both ways."""

import json
import shutil

import pytest
import torch

from components.errors import Damaged, UserError
from components.training import gpt, model

pytestmark = pytest.mark.code
SHAPES = [("llama", True), ("llama", False), ("gpt2", True), ("gpt2", False)]
INPUTS = torch.randint(0, 97, (3, 24), generator=torch.Generator().manual_seed(0))


def tiny(architecture: str, tied: bool) -> gpt.GPT:
    shape = gpt.Shape(architecture=architecture, vocab_size=97, n_layer=3, n_head=4, n_embd=32, n_hidden=64, context=48, tied=tied)
    lean = gpt.create(shape, seed=5)
    with torch.no_grad():  # norms and biases away from their neutral start, or a swap would not show
        for p in lean.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.05)
    return lean


def from_pretrained(folder):
    from transformers import AutoModelForCausalLM

    opened, info = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    assert not any(info.values()), info
    return opened


@pytest.mark.parametrize(("architecture", "tied"), SHAPES)
def test_export_opens_in_transformers_with_the_same_logits(tmp_path, architecture, tied, capfd):
    lean = tiny(architecture, tied)
    model.export(lean, tmp_path / "m", stop_ids=(3,))
    opened = from_pretrained(tmp_path / "m")
    with torch.no_grad():
        torch.testing.assert_close(opened(INPUTS).logits, lean(INPUTS), atol=1e-5, rtol=0)
    assert type(opened).__name__ == json.loads((tmp_path / "m/config.json").read_text())["architectures"][0]
    assert opened.generation_config.eos_token_id == [0, 3]
    assert not [line for line in capfd.readouterr().err.splitlines() if "arning" in line]


@pytest.mark.parametrize(("architecture", "tied"), SHAPES)
def test_load_gives_back_every_bit_and_export_is_deterministic(tmp_path, architecture, tied):
    lean = tiny(architecture, tied)
    model.export(lean, tmp_path / "a")
    again = model.load_any(tmp_path / "a")
    assert type(again) is type(lean)
    assert again.shape == lean.shape
    model.export(again, tmp_path / "b")
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_packed_documents_do_not_see_one_another(architecture):
    lean = tiny(architecture, True)
    positions = torch.cat([torch.arange(10), torch.arange(14)]).expand(3, -1)
    with torch.no_grad():
        packed = lean(INPUTS, positions)
        apart = torch.cat([lean(INPUTS[:, :10]), lean(INPUTS[:, 10:])], dim=1)
    torch.testing.assert_close(packed, apart, atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_dense_bfloat16_path_agrees_with_float32(architecture):
    lean = tiny(architecture, True)
    positions = torch.cat([torch.arange(10), torch.arange(14)]).expand(3, -1)
    with torch.no_grad():
        exact = [lean(INPUTS), lean(INPUTS, positions)]
        lean.compute_dtype = torch.bfloat16
        for rough, wanted in zip([lean(INPUTS), lean(INPUTS, positions)], exact, strict=True):
            torch.testing.assert_close(rough.float(), wanted, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(("architecture", "tied"), SHAPES)
def test_selected_logits_are_the_same_rows(architecture, tied):
    lean, select = tiny(architecture, tied), torch.tensor([0, 5, 71])
    with torch.no_grad():
        torch.testing.assert_close(lean(INPUTS, None, select), lean(INPUTS).reshape(-1, 97)[select])


@pytest.mark.parametrize(("architecture", "change"), [
    ("llama", {"num_key_value_heads": 2}), ("llama", {"head_dim": 16}), ("llama", {"hidden_act": "gelu"}),
    ("llama", {"attention_bias": True}), ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    ("llama", {"sliding_window": 16}), ("llama", {"quantization_config": {}}), ("llama", {"model_type": "mistral"}),
    ("gpt2", {"activation_function": "relu"}), ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("gpt2", {"add_cross_attention": True}), ("gpt2", {"architectures": ["GPT2ForSequenceClassification"]}),
])
def test_supports_says_no_to_what_the_lean_module_would_compute_otherwise(architecture, change):
    ours = model.hf_config(tiny(architecture, True).shape)
    assert model.supports(ours)
    assert not model.supports(ours | change)


def save_transformers(folder, name: str):
    import transformers

    common = {"vocab_size": 97, "bos_token_id": 0, "eos_token_id": 0, "max_position_embeddings": 48}
    deep = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = {"gpt2": lambda: transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=48, bos_token_id=0, eos_token_id=0),
              "llama-gqa": lambda: transformers.LlamaConfig(**common, **deep, num_key_value_heads=2),
              "llama": lambda: transformers.LlamaConfig(**common, **deep),
              "qwen2": lambda: transformers.Qwen2Config(**common, **deep, num_key_value_heads=2),
              "qwen3": lambda: transformers.Qwen3Config(**common, **deep, num_key_value_heads=2, head_dim=16)}[name]()
    torch.manual_seed(1)
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    made.save_pretrained(folder)
    return made


@pytest.mark.parametrize(("name", "lean"), [("gpt2", True), ("llama", True), ("llama-gqa", False), ("qwen2", False), ("qwen3", False)])
def test_any_base_opens_computes_and_exports(tmp_path, name, lean):
    theirs = save_transformers(tmp_path / "base", name)
    ours = model.load_any(tmp_path / "base")
    assert isinstance(ours, gpt.GPT) == lean
    positions = torch.cat([torch.arange(10), torch.arange(14)]).expand(3, -1)
    with torch.no_grad():
        torch.testing.assert_close(ours(INPUTS), theirs(INPUTS).logits, atol=1e-5, rtol=0)
        packed, apart = ours(INPUTS, positions), torch.cat([ours(INPUTS[:, :10]), ours(INPUTS[:, 10:])], dim=1)
        torch.testing.assert_close(packed, apart, atol=1e-5, rtol=0)
        base_config = json.loads((tmp_path / "base/config.json").read_text())
        model.export(ours, tmp_path / "out", base_config=base_config)
        torch.testing.assert_close(from_pretrained(tmp_path / "out")(INPUTS).logits, theirs(INPUTS).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_D5_a_missing_tensor_is_refused(tmp_path, name):
    from safetensors.torch import load_file, save_file

    save_transformers(tmp_path, name)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Damaged, match="norm"):
        model.load_any(tmp_path)


def test_code_and_pickles_are_refused(tmp_path):
    model.export(tiny("llama", True), tmp_path / "m")
    shutil.copytree(tmp_path / "m", tmp_path / "pickled")
    (tmp_path / "pickled/model.safetensors").rename(tmp_path / "pickled/pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        model.load_any(tmp_path / "pickled")
    config = json.loads((tmp_path / "m/config.json").read_text())
    (tmp_path / "m/config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "x.Y"}}))
    with pytest.raises(UserError, match="auto_map"):
        model.load_any(tmp_path / "m")


def greedy(any_model, ids, n):
    """The slow definition: read everything again for each token."""
    ids = list(ids)
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(any_model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[-n:]


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_batched_greedy_decoding_is_one_by_one_decoding(tmp_path, name):
    any_model = tiny(name, True) if name != "qwen3" else (save_transformers(tmp_path, name), model.load_any(tmp_path))[1]
    prompts = [[5, 6, 7], [8] * 11, [9, 1], list(range(20))]
    wanted = [greedy(any_model, p, 9) for p in prompts]
    assert model.generate_batch(any_model, prompts, 9, stop_id=96) == wanted
    stop = wanted[0][4]
    cut = [w[:w.index(stop)] if stop in w else w for w in wanted]
    assert model.generate_batch(any_model, prompts, 9, stop_id=stop) == cut
    assert model.generate(any_model, prompts[1], 9, temperature=0) == wanted[1]


def test_one_generator_state_gives_one_text_also_past_the_context():
    lean = tiny("llama", True)

    def sample():
        return model.generate(lean, [1, 2], 100, temperature=0.9, top_k=20, top_p=0.9, generator=torch.Generator().manual_seed(4))

    assert sample() == sample()
    assert len(sample()) == 100


def test_top_k_1_and_a_tiny_top_p_are_greedy():
    lean = tiny("llama", True)
    wanted = greedy(lean, [3, 4], 6)
    for cut in ({"top_k": 1}, {"top_p": 1e-9}):
        assert model.generate(lean, [3, 4], 6, generator=torch.Generator().manual_seed(1), **cut) == wanted


def test_the_hidden_width_of_a_llama_is_a_multiple_of_64():
    from components.config import build

    config = build({"model.n_embd": 200, "model.n_head": 4}, where="test")
    assert model.shape_of(config, 300).n_hidden == 576
