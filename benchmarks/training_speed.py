"""Tokens a second of one training step: our lean model and loop against the transformers class of the same shape.

    python benchmarks/training_speed.py [--layers 4 --width 256 --heads 4 --vocab 6144 --rows 16 --row-tokens 128]
        [--architecture llama] [--precision auto] [--threads 2] [--repeats 5] [--device cpu]

Contestants take turns in one process, so that noise falls on all of them; the median of the repeats counts.
Every contestant: the same batches, AdamW (fused), clipping at 1.0, float32 weights.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from components.training import gpt, loop, model, threads
from components.training.batches import Batch
from components.training.optimizers import Optimizers
from components.training.precision import resolved

STEPS_A_TURN = 4


def contestants(shape: gpt.Shape, folder: Path, precision: str, device: str, compiled: bool) -> dict[str, tuple]:
    """(model, optimizers) by name; all start from the same weights."""
    lean = gpt.create(shape, 1)
    model.export(lean, folder)
    made = {"lean": lean, "transformers": model.Wrapped.open(folder), "lean, Muon": model.load(folder)}
    if compiled:
        made["lean, compiled"] = model.load(folder)
    result = {}
    for name, one in made.items():
        one.to(device).compute_dtype = getattr(torch, precision)
        kind = "muon" if "Muon" in name else "adamw"
        optimizers = Optimizers(one, kind=kind, learning_rate=1e-3, weight_decay=0.1, muon_learning_rate=0.02, precision=precision)
        result[name] = (torch.compile(one) if "compiled" in name else one), one, optimizers
    return result


def turn(forward, one, optimizers, batch: Batch) -> float:
    """Seconds a step."""
    started_s = time.perf_counter()
    for _ in range(STEPS_A_TURN):
        (loop.batch_loss(forward, batch) / batch.weight()).backward()
        torch.nn.utils.clip_grad_norm_(one.parameters(), 1.0).item()
        optimizers.step(1.0)
    return (time.perf_counter() - started_s) / STEPS_A_TURN


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"layers": 4, "width": 256, "heads": 4, "vocab": 6144, "rows": 16, "row-tokens": 128, "threads": 2, "repeats": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--architecture", choices=("llama", "gpt2"), default="llama")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true")
    a = parser.parse_args()
    threads.prepare(a.threads, a.device)
    a.precision = resolved(a.precision, a.device)
    hidden = -(-8 * a.width // 3 // 64) * 64 if a.architecture == "llama" else 4 * a.width
    shape = gpt.Shape(architecture=a.architecture, vocab_size=a.vocab, n_layer=a.layers, n_head=a.heads, n_embd=a.width, n_hidden=hidden,
                      context=a.row_tokens, tied=True)
    ids = torch.randint(1, a.vocab, (a.rows, a.row_tokens + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), None).to(a.device)
    with tempfile.TemporaryDirectory() as folder:
        field = contestants(shape, Path(folder), a.precision, a.device, a.compile)
    for entry in field.values():
        turn(*entry, batch)  # memory, caches, compilation
    seconds = {name: [] for name in field}
    for _ in range(a.repeats):
        for name, entry in field.items():
            seconds[name].append(turn(*entry, batch))
    peak, tokens = loop.measured_peak_flops(a.precision, a.device), a.rows * a.row_tokens
    processor = torch.cuda.get_device_name() if a.device == "cuda" else f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {a.threads} threads"
    print(f"{processor}, torch {torch.__version__}, {a.precision}, {shape.architecture} {shape.n_layer}x{shape.n_embd}, vocabulary {shape.vocab_size}, "
          f"{a.rows} x {a.row_tokens} tokens a step, peak {peak / 1e9:,.0f} GFLOP/s")
    for name, measured in seconds.items():
        median_s = statistics.median(measured)
        mfu = tokens / median_s * model.flops_a_token(field[name][1], a.row_tokens) / peak
        print(f"{name:16} {median_s * 1e3:8.1f} ms a step  {tokens / median_s:9,.0f} tokens/s  MFU {mfu:4.0%}  "
              f"({min(measured) * 1e3:.0f} to {max(measured) * 1e3:.0f} ms)")


if __name__ == "__main__":
    main()
