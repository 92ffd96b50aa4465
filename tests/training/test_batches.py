"""Every token once an epoch, the same batch for the same number, documents apart."""

import numpy as np
import pytest
import torch
from tiny_training import documents

from components.training.batches import IGNORED, PackedRows, RecordRows, positions_in_documents, scored_rows

pytestmark = pytest.mark.code


def packed(rows=3, row_tokens=16, **kwargs):
    parts = documents()
    return PackedRows([t for t, _ in parts], [o for _, o in parts], eot_id=0, rows=rows, row_tokens=row_tokens, seed=1, **kwargs), parts


@pytest.mark.parametrize("row_tokens", [7, 16, 64, 700])
def test_every_token_is_a_target_exactly_once_an_epoch(row_tokens):
    data, parts = packed(rows=1, row_tokens=row_tokens)
    wanted = np.bincount(np.concatenate([t for t, _ in parts]), minlength=61)
    for epoch in (0, 1):
        seen = np.zeros(61, dtype=np.int64)
        for i in range(epoch * data.rows_an_epoch, (epoch + 1) * data.rows_an_epoch):
            targets = data.batch(i).targets_BT
            seen += np.bincount(targets[targets != IGNORED].numpy(), minlength=61)
        assert (seen == wanted).all()


def test_a_batch_depends_on_its_number_alone():
    forward, parts = packed()
    numbers = list(range(40))
    batches = {i: forward.batch(i) for i in numbers}
    fresh, _ = packed()
    for i in reversed(numbers):
        for a, b in zip(vars(batches[i]).values(), vars(fresh.batch(i)).values(), strict=True):
            assert a is b or torch.equal(a, b)


def test_epochs_have_different_orders_and_batches_straddle_them():
    data, _ = packed(rows=1)
    first = [data.batch(i).inputs_BT for i in range(data.rows_an_epoch)]
    second = [data.batch(i + data.rows_an_epoch).inputs_BT for i in range(data.rows_an_epoch)]
    assert not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    wide, _ = packed(rows=data.rows_an_epoch - 1)
    rows = torch.cat([wide.batch(0).inputs_BT, wide.batch(1).inputs_BT])
    assert torch.equal(rows[:data.rows_an_epoch], torch.cat(first))


def test_targets_are_the_inputs_one_place_on_and_every_row_is_text_of_the_corpus():
    data, parts = packed(rows=2)
    texts = [bytes(t[o[i]:o[i + 1]].astype(np.uint8)) for t, o in parts for i in range(len(o) - 1)]
    for i in range(20):
        batch = data.batch(i)
        keep = batch.targets_BT[:, :-1] != IGNORED
        assert torch.equal(batch.targets_BT[:, :-1][keep], batch.inputs_BT[:, 1:][keep])
        for row in batch.inputs_BT.numpy().astype(np.uint8):
            for piece in bytes(row).split(b"\0")[1:-1]:
                assert piece + b"\0" in texts


def test_positions_restart_at_end_of_text():
    rows = np.array([[5, 6, 0, 7, 8, 0, 0, 9], [0, 1, 2, 3, 4, 5, 6, 7]])
    assert positions_in_documents(rows, 0).tolist() == [[0, 1, 0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert packed(isolate=False)[0].batch(0).positions_BT is None


def test_scored_rows_score_whole_documents_once():
    (tokens, offsets), _ = documents()
    batches, n = scored_rows(tokens, offsets, eot_id=0, row_tokens=16, max_tokens=200, rows=4)
    scored = torch.cat([b.targets_BT.flatten() for b in batches])
    assert scored[scored != IGNORED].tolist() == tokens[:offsets[n]].tolist()
    assert offsets[n] <= 200 < offsets[n + 1]
    assert scored_rows(tokens, offsets, eot_id=0, row_tokens=16, max_tokens=1, rows=4)[1] == 1


def test_records_are_seen_once_an_epoch_with_the_loss_on_answers_of_equal_weight():
    rng = np.random.default_rng(0)
    records = []
    for i in range(53):
        prompt, answer = [i + 100] * int(rng.integers(2, 20)), [200 + i] * int(rng.integers(1, 5))
        records.append((prompt + answer, [0] * len(prompt) + [1] * len(answer)))
    data = RecordRows(records, rows=8, seed=1, pad_id=0)
    for epoch in (0, 1):
        batches = [data.batch(epoch * data.batches_an_epoch + i) for i in range(data.batches_an_epoch)]
        answers = torch.cat([b.targets_BT.flatten() for b in batches])
        assert sorted(answers[answers != IGNORED].tolist()) == sorted(i for ids, mask in records for i, m in zip(ids, mask, strict=True) if m)
        for b in batches:
            torch.testing.assert_close(b.weights_BT.sum(1), torch.ones(len(b.inputs_BT)))
            assert ((b.weights_BT > 0) == (b.targets_BT != IGNORED)).all()
            assert b.inputs_BT.shape[1] % 8 == 0
    assert sum(len(b.inputs_BT) for b in data.in_order()) == 53
