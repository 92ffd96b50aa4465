"""A training of two seconds, built the same way in a test and in the process that a test kills.

    python tests/tiny_training.py FOLDER CALL     train in FOLDER; at loss computation number CALL, SIGKILL
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np

VOCAB, STEPS, ACCUMULATION = 61, 23, 2


def documents(n=40, seed=0):
    """Two 'languages' of token ids ended by 0, and their offsets."""
    rng = np.random.default_rng(seed)
    parts = []
    for size in (n, n // 2):
        lengths = rng.integers(3, 30, size)
        ids = [np.append(rng.integers(1, VOCAB, length), 0) for length in lengths]
        parts.append((np.concatenate(ids).astype(np.uint16), np.concatenate([[0], np.cumsum(lengths + 1)])))
    return parts


def train(folder: Path, *, optimizer="muon", run=None, validate=lambda m: {}, architecture="llama", learning_rate=1e-2, steps=STEPS):
    """Train from whatever checkpoint `folder` holds. Returns (model, curve). 23 steps are about 1.7 epochs."""
    from components.training import gpt, loop, threads
    from components.training.batches import PackedRows
    from components.training.checkpoint import Checkpoints
    from components.training.optimizers import Optimizers

    threads.prepare(1, "cpu")
    parts = documents()
    data = PackedRows([t for t, _ in parts], [o for _, o in parts], eot_id=0, rows=2, row_tokens=16, seed=3)
    model = gpt.create(gpt.Shape(architecture=architecture, vocab_size=VOCAB, n_layer=2, n_head=2, n_embd=16, n_hidden=32, context=16, tied=True), 3)
    optimizers = Optimizers(model, kind=optimizer, learning_rate=learning_rate, weight_decay=0.1, muon_learning_rate=0.02)
    plan = loop.Plan(name="test", steps=steps, warmup_steps=3, min_ratio=0.1, accumulation=ACCUMULATION, clip_norm=1.0, learning_rate=learning_rate,
                     precision="float32", device="cpu", compile=False, seed=3, validation_interval=10, checkpoint_interval=4, log_interval=5,
                     flops_a_token=1.0, peak_flops=None)
    curve = loop.train(model, optimizers, data.batch, plan, checkpoints=Checkpoints(folder, "key"), validate=validate, run=run)
    return model, curve


def weights(model) -> dict[str, bytes]:
    return {name: p.detach().numpy().tobytes() for name, p in model.named_parameters()}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from components.training import loop

    calls, whole = 0, loop.batch_loss

    def killed(*args):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args)

    loop.batch_loss = killed
    train(Path(sys.argv[1]))
