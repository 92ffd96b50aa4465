"""What the registry's page says after somebody moved the alias in it, past every gate."""

from __future__ import annotations

import pytest

from tests.browser import opening
from tests.browser.chains import NAME, Chains
from tests.browser.opening import shown
from tests.browser.watched import Watched

pytestmark = pytest.mark.browser


def moved(chains: Chains, number: str) -> None:
    """As the page does it; then the next start of the servers, which looks at it."""
    chains.checkout.mlflow("POST", "registered-models/alias", {"name": NAME, "alias": "champion", "version": number})
    chains.checkout.lmworks("up")


def test_H2_a_champion_that_no_gate_chose_is_called_so(visit: Watched, chains: Chains):
    champion = chains.checkout.aliases(NAME)["champion"]
    assert champion != "2", "the second chain's model was refused"
    try:
        moved(chains, "2")
        opening.model(visit.page, chains.mlflow, NAME)
        shown(visit.page, "the alias champion was moved by hand to version 2")
        visit.picture("mlflow-moved-by-hand")
    finally:
        moved(chains, champion)
    visit.page.reload()
    shown(visit.page, f"Version {champion} is the champion.")
