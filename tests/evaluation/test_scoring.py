"""Nats of documents and answers, against models whose probabilities are known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from components.evaluation import scoring, significance
from components.training.gpt import Shape, create

pytestmark = pytest.mark.code
V = 23


class Uniform(torch.nn.Module):
    """Every token is as likely as any other."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(V))
        self.shape = SimpleNamespace(vocab_size=V, context=16)

    def forward(self, inputs_BT, positions_BT=None, select_N=None):
        return self.weight.expand(len(select_N), V)


def lean(architecture: str = "llama", context: int = 32):
    return create(Shape(architecture=architecture, vocab_size=V, n_layer=2, n_head=2, n_embd=16, n_hidden=32, context=context, tied=True), 3)


def documents(count: int = 9) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, V, n) for n in rng.integers(1, 70, count)]


def test_a_uniform_model_needs_log2_V_bits_a_token():
    texts = documents()
    with scoring.exact(1):
        nats = scoring.document_nats(Uniform(), texts, eot_id=0, window=16, vocab_size=V)
    tokens, bytes_ = sum(map(len, texts)), np.array([3 * len(t) for t in texts])
    bits, _, _ = significance.corpus_bits_per_byte(nats, bytes_, samples=100, confidence=0.9, seed=1)
    assert bits == pytest.approx(math.log2(V) * tokens / bytes_.sum())


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 24, 25, 40, 100])
@pytest.mark.parametrize("window", [8, 16])
def test_windows_score_every_token_once_in_order_with_enough_context(length, window):
    ids = np.arange(1, length + 1)
    rows = scoring.windows(ids, 0, window, owner=4)
    assert np.concatenate([row.ids[row.first_scored:] for row in rows]).tolist() == ids.tolist()
    assert rows[0].ids[0] == 0 and rows[0].first_scored == 1
    assert all(len(row.ids) - 1 <= window and row.owner == 4 for row in rows)
    assert all(row.first_scored > window // 2 for row in rows[1:])
    assert scoring.windows(np.array([], dtype=np.int64), 0, window, owner=0) == []


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_batches_give_what_each_document_gives_alone(architecture):
    model, texts = lean(architecture), documents()
    with scoring.exact(1):
        together = scoring.document_nats(model, texts, eot_id=0, window=32, vocab_size=V)
        alone = [scoring.document_nats(model, [t], eot_id=0, window=32, vocab_size=V)[0] for t in texts]
    assert together == pytest.approx(alone, rel=1e-5)


def test_nats_are_those_of_a_plain_softmax():
    model, text = lean(), np.array([5, 6, 7, 8])
    with scoring.exact(1):
        found = scoring.document_nats(model, [text], eot_id=0, window=32, vocab_size=V)[0]
        logits = model(torch.tensor([[0, 5, 6, 7]]))[0].log_softmax(-1)
    assert found == pytest.approx(-sum(float(logits[i, t]) for i, t in enumerate(text)), rel=1e-5)


def test_twice_is_the_same_to_the_last_bit_and_settings_come_back():
    model, before = lean(), (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    runs = []
    for _ in range(2):
        with scoring.exact(2):
            runs.append(scoring.document_nats(model, documents(), eot_id=0, window=16, vocab_size=V))
    assert np.array_equal(*runs)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_answers_are_compared_after_the_same_prompt():
    model = lean()
    rows = [scoring.Row(np.array([1, 2, 3, answer]), 3, i) for i, answer in enumerate((7, 9))]
    with scoring.exact(1):
        nats = scoring.row_nats(model, rows, 2, vocab_size=V)
        logits = model(torch.tensor([[1, 2, 3]]))[0, -1].log_softmax(-1)
    assert nats == pytest.approx([-float(logits[7]), -float(logits[9])], rel=1e-5)


def test_a_row_without_context_is_refused():
    with scoring.exact(1), pytest.raises(ValueError, match="context"):
        scoring.row_nats(Uniform(), [scoring.Row(np.array([1, 2]), 0, 0)], 1, vocab_size=V)
