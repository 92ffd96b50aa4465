"""The schedule, what is decayed, and Muon's update."""

import pytest
import torch

from components.training import gpt
from components.training.optimizers import Optimizers, orthogonalised, rate

pytestmark = pytest.mark.code


def test_the_rate_rises_peaks_and_ends_at_the_minimum():
    shares = [rate(s, steps=100, warmup_steps=10, min_ratio=0.1) for s in range(100)]
    assert shares[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert shares[10] == pytest.approx(1)
    assert shares[99] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(shares[10:], shares[11:], strict=False))
    assert rate(0, steps=1, warmup_steps=0, min_ratio=0.1) == 1
    assert rate(1, steps=2, warmup_steps=0, min_ratio=0.0) == pytest.approx(0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 24, 64), (2, 64, 24)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape, dtype):
    found = orthogonalised(torch.randn(shape, generator=torch.Generator().manual_seed(0)), dtype)
    assert found.dtype == dtype
    values = torch.linalg.svdvals(found.float())
    # the polynomial trades exactness for speed: it brings them between 0.7 and 1.2, the smallest come late
    assert values.max() < 1.4
    assert values.median() > 0.6


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_muon_takes_hidden_matrices_and_every_parameter_has_one_optimizer(architecture):
    model = gpt.create(gpt.Shape(architecture=architecture, vocab_size=31, n_layer=2, n_head=2, n_embd=8, n_hidden=16, context=8, tied=False), 0)
    optimizers = Optimizers(model, kind="muon", learning_rate=1e-3, weight_decay=0.1, muon_learning_rate=0.02)
    names = {type(part).__name__: [] for part in optimizers.parts}
    for part in optimizers.parts:
        names[type(part).__name__] += [optimizers.names[id(p)] for p in part.params]
        assert {p.ndim >= 2 for p in part.params} == {part.weight_decay > 0}
    assert sorted(names["AdamW"] + names["Muon"]) == sorted(name for name, _ in model.named_parameters())
    assert all(".layers." in n or ".h." in n for n in names["Muon"])
    assert not any("norm" in n or "ln_" in n or "bias" in n for n in names["Muon"])


def test_adamw_is_torch_s_adamw_bit_for_bit():
    model, theirs = (torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3)) for _ in range(2))
    theirs.load_state_dict(model.state_dict())
    ours = Optimizers(model, kind="adamw", learning_rate=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
    matrices, vectors = ([p for p in theirs.parameters() if (p.ndim == 2) == wanted] for wanted in (True, False))
    torch_s = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
                                lr=3e-3, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for step in range(5):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        for one in (model, theirs):
            one(x).square().sum().backward()
        ours.step(1.0)
        torch_s.step()
        torch_s.zero_grad()
    for p, q in zip(model.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_state_survives_a_round_trip():
    def made():
        model = gpt.create(gpt.Shape(architecture="llama", vocab_size=31, n_layer=1, n_head=2, n_embd=8, n_hidden=16, context=8, tied=True), 0)
        return model, Optimizers(model, kind="muon", learning_rate=1e-3, weight_decay=0.1, muon_learning_rate=0.02)

    def step(model, optimizers, seed):
        model(torch.randint(0, 31, (2, 8), generator=torch.Generator().manual_seed(seed))).square().sum().backward()
        optimizers.step(1.0)

    (a, opt_a), (b, opt_b) = made(), made()
    step(a, opt_a, 1)
    b.load_state_dict(a.state_dict())
    opt_b.restore({key: value.clone() for key, value in opt_a.tensors().items()})
    step(a, opt_a, 2)
    step(b, opt_b, 2)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)
