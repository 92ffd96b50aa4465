"""A copy of this checkout with servers of its own, and one finished `smoke` chain in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.checkout import Checkout, Finished, copy_checkout


@pytest.fixture(scope="package")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    checkout = copy_checkout(tmp_path_factory.mktemp("e2e") / "checkout")
    checkout.lmworks("use", "smoke")
    checkout.lmworks("up")
    yield checkout
    checkout.lmworks("down", "--force", code=None)


@pytest.fixture(scope="package")
def finished(checkout: Checkout) -> Finished:
    """The smoke chain, run once."""
    done = checkout.lmworks("run")
    return Finished(checkout, done.stdout, done.stderr)
