"""Killed at any time, resumed bit for bit; stopped politely; never a step on a loss that is not finite."""

import errno
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_training
import torch
from tiny_training import ACCUMULATION, STEPS, train, weights

from components import files, storage
from components.errors import UserError
from components.reporting import stop
from components.training import checkpoint, loop, threads
from components.training.checkpoint import Checkpoints

pytestmark = pytest.mark.code
SCRIPT = Path(tiny_training.__file__)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    points = []

    class Run:
        def log(self, step, metrics):
            points.append((step, metrics))

        def flush(self):
            pass

    model, curve = train(tmp_path_factory.mktemp("whole"), run=Run())
    return weights(model), curve, points


# 2 accumulated batches a step, 14 steps an epoch: between the two batches of a step before any checkpoint
# and in epoch 0; in epoch 1 inside accumulation
@pytest.mark.parametrize("call", [4, 2 * 9 + 2, 2 * 17 + 2])
def test_C2_C5_killed_and_resumed_weights_are_those_of_an_uninterrupted_run(tmp_path, uninterrupted, call):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path, str(call)], capture_output=True, text=True, timeout=300,
                          env={"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1])})
    assert done.returncode == -9, done.stderr
    finished = (call - 1) // ACCUMULATION
    assert [p.name for p in Checkpoints(tmp_path, "key").found()] == [f"step-{s:08d}" for s in range(4, finished + 1, 4)][-2:]
    model, curve = train(tmp_path)
    assert weights(model) == uninterrupted[0]
    assert curve == uninterrupted[1]


def ended(folder, call, how):
    """Train until loss computation number `call`, where `how` is called."""
    calls, whole = 0, loop.batch_loss

    def counted(*args):
        nonlocal calls
        calls += 1
        if calls == call:
            how()
        return whole(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "batch_loss", counted)
        train(folder)


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", [13, 14, 15])
def test_C5_resumed_around_the_border_of_epochs(tmp_path, uninterrupted, step):
    """14 steps an epoch; a stop request at `step` leaves a checkpoint of exactly that many updates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stop, "requested", False)
        ended(tmp_path, 2 * step - 1, lambda: setattr(stop, "requested", True))
    assert Checkpoints(tmp_path, "key").found()[-1].name == f"step-{step:08d}"
    assert weights(train(tmp_path)[0]) == uninterrupted[0]


@pytest.fixture
def signals():
    """Handlers as a stage has them; afterwards those that stood before."""
    handlers = [(n, signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    stop.install()
    yield
    stop.requested, stop.exit_code = False, 130
    for n, handler in handlers:
        signal.signal(n, handler)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 130)])
def test_C8_a_signal_finishes_the_step_saves_and_stops(tmp_path, uninterrupted, signals, number, exit_code):
    ended(tmp_path, 2 * 9 + 1, lambda: signal.raise_signal(number))
    assert stop.exit_code == exit_code
    stop.requested = False  # the next process
    assert Checkpoints(tmp_path, "key").found()[-1].name == "step-00000010"
    assert weights(train(tmp_path)[0]) == uninterrupted[0]


def test_C8_a_second_ctrl_c_waits_for_nothing_and_the_last_checkpoint_is_good(tmp_path, uninterrupted, signals):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    ended(tmp_path, 2 * 9 + 1, twice)
    assert Checkpoints(tmp_path, "key").found()[-1].name == "step-00000008"
    stop.requested = False
    assert weights(train(tmp_path)[0]) == uninterrupted[0]


def test_C14_a_clock_that_jumps_an_hour_changes_neither_the_order_of_checkpoints_nor_the_result(tmp_path, uninterrupted, monkeypatch, capsys):
    """The first life's clock is an hour ahead, the second's jumps to and fro with each look; newer checkpoints have older times."""
    ended(tmp_path, 2 * 13 + 1, interrupt)
    found = Checkpoints(tmp_path, "key").found()
    now, jumps = time.time, itertools.cycle([3600, -3600, 0])
    for path, ahead_s in zip(found, (3600, 0), strict=True):
        for one in [path, *path.iterdir()]:
            os.utime(one, (now() + ahead_s, now() + ahead_s))
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: int((now() + next(jumps)) * 1e9))
    model, curve = train(tmp_path)
    assert f"resumes after step {int(found[-1].name.removeprefix('step-'))} of" in capsys.readouterr().err
    assert weights(model) == uninterrupted[0] and curve == uninterrupted[1]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_two_trainings_are_identical_and_learn(tmp_path, optimizer, architecture):
    (a, curve), (b, _) = (train(tmp_path / name, optimizer=optimizer, architecture=architecture) for name in "ab")
    assert weights(a) == weights(b)
    assert curve[-1]["train/loss"] < curve[0]["train/loss"]


def test_C3_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, uninterrupted, capsys):
    ended(tmp_path, 2 * 13 + 1, interrupt)
    newest = Checkpoints(tmp_path, "key").found()[-1] / "optimizer.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    assert weights(train(tmp_path)[0]) == uninterrupted[0]
    said = capsys.readouterr().err
    assert "step-00000012 cannot be used" in said
    assert "is damaged: sha256" in said


def test_D6_D8_a_checkpoint_that_the_disk_does_not_read_stays_and_training_waits_for_it(tmp_path, uninterrupted):
    ended(tmp_path, 2 * 13 + 1, interrupt)
    found = Checkpoints(tmp_path, "key").found()
    weights_file = found[-1] / "model.safetensors"
    weights_file.rename(tmp_path / "aside")
    weights_file.symlink_to("/proc/self/mem")  # its first byte is EIO, on any machine
    with pytest.raises(OSError, match="Input/output error: .*step-00000012") as told:
        train(tmp_path)
    assert "does not read or write any more" in storage.said(told.value, tmp_path) and Checkpoints(tmp_path, "key").found() == found
    weights_file.unlink()
    (tmp_path / "aside").rename(weights_file)
    model, curve = train(tmp_path)
    assert weights(model) == uninterrupted[0] and curve == uninterrupted[1]


@pytest.mark.parametrize(("code", "kind", "words"), [
    (errno.EMFILE, UserError, "cannot read the checkpoint .*too many open files.*it stays"), (errno.EACCES, UserError, "no permission for .*it stays"),
    (errno.ESTALE, OSError, "step-00000012"), (errno.ENOENT, UserError, "cannot read the checkpoint .*it stays")])
def test_D6_D7_no_error_of_the_disk_removes_a_checkpoint(tmp_path, monkeypatch, code, kind, words):
    ended(tmp_path, 2 * 13 + 1, interrupt)
    found = Checkpoints(tmp_path, "key").found()

    def fails(path):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(checkpoint.files, "sha256_file", fails)
    with pytest.raises(kind, match=words):
        train(tmp_path)
    assert len(found) == 2 and Checkpoints(tmp_path, "key").found() == found


def test_C3_when_no_checkpoint_is_whole_training_says_that_it_starts_again(tmp_path, uninterrupted, capsys):
    ended(tmp_path, 2 * 13 + 1, interrupt)
    for found in Checkpoints(tmp_path, "key").found():
        (found / "model.safetensors").unlink()
    assert weights(train(tmp_path)[0]) == uninterrupted[0]
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("Going back to the one before it") == 1 and "step-00000008 cannot be used" in said
    assert said.count("No other is left: training starts at step 0 again") == 1


def test_C3_a_kill_while_writing_leaves_the_checkpoints_before_it(tmp_path, monkeypatch, uninterrupted):
    def killed(partial, final):
        if final.name == "step-00000012":
            raise KeyboardInterrupt
        return publish(partial, final)

    publish = files.publish
    monkeypatch.setattr(checkpoint.files, "publish", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    monkeypatch.undo()
    assert [p.name for p in sorted(tmp_path.iterdir())] == [".partial-00000012", "step-00000004", "step-00000008"]
    assert weights(train(tmp_path)[0]) == uninterrupted[0]
    assert not list(tmp_path.glob(".partial*"))


def test_B4_a_checkpoint_of_other_settings_is_not_resumed(tmp_path, capsys):
    ended(tmp_path, 2 * 9 + 1, interrupt)
    checkpoints = Checkpoints(tmp_path, "another key")
    assert checkpoints.restore(torch.nn.Linear(1, 1), None) is None
    assert "other settings" in capsys.readouterr().err


def test_D1_no_room_for_a_checkpoint_is_said_and_the_earlier_one_stays(tmp_path, monkeypatch):
    usage = checkpoint.shutil.disk_usage(tmp_path)
    full = lambda path: usage._replace(free=0 if list(tmp_path.glob("step-*")) else usage.free)  # noqa: E731
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", full)
    with pytest.raises(UserError, match="no space in"):
        train(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000004"]


def test_D8_a_folder_removed_while_training_stops_it(tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    monkeypatch.setattr(loop, "rate", lambda step, **k: (checkpoint.shutil.rmtree(folder, ignore_errors=True), 0.1)[1])
    with pytest.raises(UserError, match="was removed while training ran"):
        train(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_C13_a_loss_that_is_not_finite_stops_before_the_step_and_names_it(tmp_path, monkeypatch, value):
    calls, whole, before = 0, loop.batch_loss, {}

    def spoiled(model, batch):
        nonlocal calls
        calls += 1
        before.update(weights=weights(model), model=model)
        return whole(model, batch) * (value if calls == 2 * 6 + 2 else 1)  # second batch of step 7

    monkeypatch.setattr(loop, "batch_loss", spoiled)
    with pytest.raises(UserError, match="loss of step 7 is"):
        train(tmp_path)
    assert weights(before["model"]) == before["weights"]
    assert [p.name for p in Checkpoints(tmp_path, "key").found()] == ["step-00000004"]


def test_C13_a_gradient_that_is_not_finite_stops_too(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.torch.nn.utils, "clip_grad_norm_", lambda *a, **k: torch.tensor(float("nan")))
    with pytest.raises(UserError, match="gradient norm of step 1 is nan"):
        train(tmp_path)


def test_accumulated_batches_are_one_large_batch(tmp_path, uninterrupted):
    """Gradients are those of all targets together, however they are divided."""
    from components.training import gpt
    from components.training.batches import Batch, PackedRows

    parts = tiny_training.documents()
    data = PackedRows([t for t, _ in parts], [o for _, o in parts], eot_id=0, rows=2, row_tokens=16, seed=3)
    a, b = data.batch(0), data.batch(1)
    a.targets_BT[0, :9] = -100
    model = gpt.create(gpt.Shape(architecture="llama", vocab_size=61, n_layer=1, n_head=2, n_embd=16, n_hidden=32, context=16, tied=True), 0)
    both = Batch(*(torch.cat([x, y]) for x, y in zip((a.inputs_BT, a.targets_BT, a.positions_BT), (b.inputs_BT, b.targets_BT, b.positions_BT), strict=True)))
    weight = a.weight() + b.weight()
    for one in (a, b):
        (loop.batch_loss(model, one) / weight).backward()
    divided = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    (loop.batch_loss(model, both) / both.weight()).backward()
    for p, g in zip(model.parameters(), divided, strict=True):
        torch.testing.assert_close(p.grad, g)


def test_points_hold_speed_for_the_tracker_and_the_curve_holds_no_clock(uninterrupted):
    _, curve, points = uninterrupted
    assert [step for step, _ in points] == [5, 10, 15, 20, STEPS]
    assert all(metrics["train/tokens_per_s"] > 0 for _, metrics in points)
    assert set().union(*curve) == {"step", "train/loss", "train/learning_rate", "train/grad_norm"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_B11_cuda_asked_for_and_absent_offers_cpu():
    with pytest.raises(UserError, match="training.device=cpu") as error:
        threads.prepare(1, "cuda")
    assert error.value.exit_code == 2


def test_compiling_without_a_compiler_is_said_before_anything_runs(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match="training.compile=false"):
        threads.prepare(1, "cpu", compiled=True)
