"""Addresses outside this machine that may hold a secret: from the environment alone, and never in a log, a page or an error."""

from __future__ import annotations

import os

from components.errors import UserError

ALERT_WEBHOOK = "LMWORKS_ALERT_WEBHOOK"  # told of failed, crashed and late runs of deployments
PING_URL = "LMWORKS_PING_URL"  # asked for at the end of each such run
SECRETS = (ALERT_WEBHOOK, PING_URL)


def secret_address(variable: str) -> str | None:
    """The address that `variable` holds, None without one. Raises UserError, without a word of the value, for what is no address."""
    url = os.environ.get(variable, "").strip()
    if not url:
        return None
    if not url.startswith(("http://", "https://")) or any(sign.isspace() for sign in url):
        raise UserError(f"{variable} holds no http or https address (its value is not shown, it may hold a secret). Mend it, then run: lmworks up")
    return url
