"""Addresses that the environment gives: which are taken, and how they are asked (J6). Some hold a secret: those never stand in a log, a page or an error."""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from components.errors import UserError

ALERT_WEBHOOK = "LMWORKS_ALERT_WEBHOOK"  # told of failed, crashed and late runs of deployments
PING_URL = "LMWORKS_PING_URL"  # asked for at the end of each such run
SECRETS = (ALERT_WEBHOOK, PING_URL)
SCHEMES = ("http", "https")
# what cloud machines call the service that hands out their keys
METADATA_NAMES = ("metadata", "metadata.google.internal", "instance-data")
METADATA_ADDRESSES = tuple(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200")))  # beside the link-local one: Amazon's, Alibaba's
METADATA = "the address of a cloud machine's metadata service, which nothing of lmworks ever asks"


def secret_address(variable: str) -> str | None:
    """The address that `variable` holds, "" where it is set and empty, None where it is not set. Raises UserError, without a word of the
    value, for what is no address."""
    if variable not in os.environ:
        return None
    url = os.environ[variable].strip()
    if url and (reason := refusal(url)):
        raise UserError(f"{variable} holds {reason} (its value is not shown, it may hold a secret). Mend it, then run: lmworks up")
    return url


def refusal(url: str) -> str | None:
    """Why an address is not taken, in words that do not repeat it; None for one that is."""
    if any(sign.isspace() or not sign.isprintable() for sign in url) or "\\" in url:
        return "no http or https address: there are spaces or control characters in it"
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "no http or https address"
    if parts.scheme not in SCHEMES or not host:
        return "no http or https address"
    return forbidden(host)


def forbidden(host: str) -> str | None:
    """Why no request goes to a host: link-local addresses (a cloud machine's keys lie at 169.254.169.254), multicast, none at all,
    and what else clouds keep keys at.

    Private and loopback addresses are taken: a receiver in the same network is the usual case. Names are not looked up here.
    """
    if host.lower().rstrip(".") in METADATA_NAMES:
        return METADATA
    try:
        number: Any = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            number = ipaddress.IPv4Address(socket.inet_aton(host))  # 2852039166, 0xa9fea9fe, 169.254.43518: what a resolver takes too
        except OSError:
            return None  # a name
    number = getattr(number, "ipv4_mapped", None) or number
    if number in METADATA_ADDRESSES:
        return METADATA
    if number.is_link_local or number.is_multicast or number.is_unspecified:
        return "a link-local, multicast or unspecified address, which nothing of lmworks ever asks"
    return None


def resolves_to_forbidden(host: str) -> bool:
    """Whether a name leads to an address that `forbidden` names. Raises OSError for a name that is none."""
    return any(forbidden(str(found[4][0])) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))


class SameHost(urllib.request.HTTPRedirectHandler):
    """Redirects are followed within one host alone: another host would get the secrets of the address or of a header."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        same = new.scheme in SCHEMES and new.hostname == old.hostname and new.port == old.port
        if not same or (old.scheme == "https" and new.scheme == "http"):
            raise urllib.error.HTTPError(req.full_url, code, f"it sends to another address ({new.scheme}://{new.netloc.rpartition('@')[2]}), which is not followed", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def opener(*, proxies: bool) -> urllib.request.OpenerDirector:
    """What asks http addresses and nothing else: no file:, no ftp:, no redirect to another host; `proxies`: as the environment names them."""
    made = urllib.request.OpenerDirector()
    handlers = [urllib.request.HTTPHandler, urllib.request.HTTPSHandler, urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor,
                urllib.request.UnknownHandler, SameHost]
    for handler in handlers:
        made.add_handler(handler())
    if proxies:
        made.add_handler(urllib.request.ProxyHandler())
    return made


def read(answer: Any, deadline_s: float) -> bytes:
    """The whole answer. Raises TimeoutError for one that drips in past the deadline (of time.monotonic), IncompleteRead for one that was cut."""
    whole = b""
    while part := answer.read1(2**16):  # a socket's own time-out begins anew with each byte
        whole += part
        if time.monotonic() > deadline_s:
            raise TimeoutError("the answer comes too slowly")
    if answer.length:
        raise http.client.IncompleteRead(whole, answer.length)
    return whole
