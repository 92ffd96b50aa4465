"""A finished chain, damaged: by the uses in process, and by the commands as a person types them."""

from __future__ import annotations

import random
import re

import pytest

from benchmarks.reliability import chain_files, file_kinds, flips
from components import files
from components.operations import healing
from tests.checkout import Checkout, Finished

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_A12_A13_D3_D4_every_kind_of_file_that_a_chain_leaves_is_refused_or_made_whole(finished: Finished):
    layout, rng = finished.checkout.layout, random.Random(4)
    before = flips.state_of(layout)
    kinds = chain_files.of_chain(layout)
    told = [*flips.rounds(kinds, 3 * len(kinds), flips.flip, rng), *flips.rounds(kinds, len(kinds), flips.cut, rng)]
    found = flips.summed(told)
    assert found["met"], found["failures"]
    assert found["counts"]["kinds"] == len(kinds) >= 10 and found["counts"]["flips"] >= 30
    assert flips.state_of(layout) == before
    assert finished.checkout.lmworks("verify").returncode == 0


def damaged(checkout: Checkout, name: str) -> str:
    """The line of `lmworks verify` that names the damage, and the advice behind it."""
    done = checkout.lmworks("verify", code=4)
    assert name in done.stdout.replace("\n", ""), done.stdout
    return " ".join(done.stdout.split())


def test_A12_D3_weights_come_back_from_the_cache_and_a_bad_object_makes_its_stage_run_again(finished: Finished):
    checkout = finished.checkout
    layout, rng = checkout.layout, random.Random(5)
    before = flips.state_of(layout)
    path = layout.pretrained / "model" / "model.safetensors"
    flips.flip(path, rng)
    assert "lmworks run mends it" in damaged(checkout, "model.safetensors")
    done = checkout.lmworks("run")
    assert re.search(r"pretrain was healed \(data/pretrained/model/model.safetensors is damaged", " ".join(done.stdout.split()))
    assert flips.state_of(layout) == before
    small = layout.tokenizer / "tokenizer.json"
    md5 = str(healing.md5_of(small))
    for one in (small, healing.objects_folder(layout) / md5[:2] / md5[2:]):
        flips.flip(one, rng)
    done = checkout.lmworks("run")
    assert "tokenizer was healed" in " ".join(done.stdout.split()) and flips.state_of(layout) == before


def test_D3_dvc_lock_the_receipt_and_the_list_of_servers(finished: Finished):
    checkout = finished.checkout
    layout = checkout.layout
    before, pids = flips.state_of(layout), {name: entry["pid"] for name, entry in checkout.services().items() if "pid" in entry}
    layout.dvc_lock.write_text(layout.dvc_lock.read_text().replace("schema: '2.0'", "schema: '3.0'"))
    refused = checkout.lmworks("run", code=None)
    assert refused.returncode in (2, 4) and "dvc.lock" in refused.stderr + refused.stdout and "remove it" in " ".join((refused.stderr + refused.stdout).split())
    layout.dvc_lock.unlink()
    assert checkout.lmworks("run").returncode == 0 and flips.state_of(layout) == before
    for path in (layout.receipt, layout.services):
        flips.flip(path, random.Random(6))
    done = checkout.lmworks("run")
    assert "Traceback" not in done.stderr and flips.state_of(layout) == before
    files.read_sealed(layout.services)
    assert {name: entry["pid"] for name, entry in checkout.services().items() if "pid" in entry} == pids, "no second server beside the first"


def test_D3_D9_generate_refuses_a_damaged_model_and_names_it(finished: Finished):
    told = flips.generated(finished.checkout.layout, random.Random(7))
    assert told["outcome"] == file_kinds.REFUSED, told
