"""A release that is killed at every place, one life after the other: the registry is always as it was, or as it should be."""

from __future__ import annotations

import checkout
import pytest

from components.layout import Layout
from components.release import history, lineage, model_files, registry
from components.release import release as releasing

pytestmark = pytest.mark.code

LOOSE = {"gates.bits_per_byte_margin": 9.0, "gates.score_margin": 1.0}


class Lives:
    """Releases of one checkout in processes of their own, each killed or not."""

    def __init__(self, nursery, layout: Layout, name: str) -> None:
        self.nursery, self.layout, self.name = nursery, layout, name

    def release(self, **kill) -> int:
        """How it ended: 0, or -9."""
        answer, = self.nursery.ask([{"do": "release", "root": str(self.layout.root), "name": self.name, "overrides": LOOSE, **kill}])
        assert answer["status"] in (0, -9), answer["told"]
        return answer["status"]

    def killed_at(self, place: str) -> dict:
        """The registered model after a kill -9 there."""
        assert self.release(failpoints=f"{place}@{self.name}=kill9") == -9
        model = registry.registered(self.layout, self.name)
        assert model is None or history.by_hand(model) is None
        return model

    def moves(self) -> list[tuple]:
        return [(move["from"], move["to"]) for move in history.history(registry.registered(self.layout, self.name))]


def versions_of(client, name: str) -> dict[str, str]:
    """{version: verdict}, each with the bytes that it was registered with."""
    found = client.search_model_versions(f"name = '{name}'")
    return {str(version.version): version.tags[registry.VERDICT] for version in found}


@pytest.mark.slow
def test_C7_H1_killed_at_every_place_the_alias_is_old_or_new_and_what_is_there_is_used_again(nursery, mlflow_url, tmp_path):
    config = checkout.configuration(name="lives", **LOOSE)
    layout = checkout.make(tmp_path, config)
    lives, client = Lives(nursery, layout, "lives"), registry.client(layout)

    assert lives.release(killed_upload=3) == -9 and registry.registered(layout, "lives") is None
    half, = client.search_logged_models([lineage.experiment_id(client, "lives")])
    assert half.status.value == "PENDING" and model_files.FILES not in half.tags
    assert lives.killed_at("registry.uploaded") is None
    assert lives.killed_at("registry.version_created")["aliases"] == {} and versions_of(client, "lives") == {"1": "undecided"}
    assert lives.killed_at("registry.judged")["aliases"] == {"candidate": "1"} and versions_of(client, "lives") == {"1": "passed"}
    assert lives.killed_at("registry.history_written")["aliases"] == {"candidate": "1"} and lives.moves() == []
    assert lives.killed_at("registry.alias_moved")["aliases"] == {"candidate": "1", "champion": "1"} and lives.moves() == [(None, "1")]
    assert not releasing.receipt_current(config, layout)

    assert lives.release() == 0 and releasing.receipt_current(config, layout)
    for name in ("lives", "lives-instruct"):
        assert registry.registered(layout, name)["aliases"] == {"candidate": "1", "champion": "1"} and versions_of(client, name) == {"1": "passed"}
        with model_files.fetched(client.get_model_version(name, "1"), layout):
            assert registry.model_id(client.get_model_version(name, "1")) != half.model_id
    assert lives.moves() == [(None, "1")]


@pytest.mark.slow
def test_C7_killed_while_a_champion_is_replaced_the_alias_is_at_one_of_the_two(nursery, mlflow_url, tmp_path):
    layout = checkout.make(tmp_path, checkout.configuration(name="heirs", **LOOSE), seed=1)
    lives = Lives(nursery, layout, "heirs")
    assert lives.release() == 0
    checkout.retrain(layout, checkout.configuration(name="heirs", **LOOSE), seed=2)
    assert lives.killed_at("registry.history_written")["aliases"] == {"candidate": "2", "champion": "1"} and lives.moves() == [(None, "1")]
    assert lives.killed_at("registry.alias_moved")["aliases"] == {"candidate": "2", "champion": "2"} and lives.moves() == [(None, "1"), ("1", "2")]
    assert lives.release() == 0 and lives.moves() == [(None, "1"), ("1", "2")] and set(versions_of(registry.client(layout), "heirs")) == {"1", "2"}
