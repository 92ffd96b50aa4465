"""The figure `checkpoints`, short: a training killed inside its checkpoint writes."""

import pytest

from benchmarks.reliability import checkpoints

pytestmark = pytest.mark.code


def test_C3_C4_a_kill_inside_a_checkpoint_write_always_leaves_a_verified_checkpoint_to_load():
    found = checkpoints.measure(16, seed=11)
    assert found["met"], found
    assert found["counts"]["kills"] == 16 and found["counts"]["most_partial_folders_left_by_a_kill"] == 1
    assert len(found["repeats"][0]["killed"]) > 3, "at several places, and at any moment"
