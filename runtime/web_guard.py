"""What keeps other sites away from the page of a running loop: whom a request means, and what an answer allows."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit


def own_names(host: str) -> frozenset[str]:
    """What this machine is called in a browser, besides its addresses."""
    name = socket.gethostname().lower()
    return frozenset({"localhost", host.lower(), name, f"{name}.local"})


def is_own(host_header: str, names: frozenset[str]) -> bool:
    """Whether a request means this machine.

    A page of another site whose name is made to resolve to this machine (DNS rebinding) sends that name. An address
    cannot be made to resolve to anything.
    """
    try:
        name = urlsplit(f"//{host_header}").hostname or ""
        return name in names or bool(ip_address(name))
    except ValueError:
        return False


def headers(page: str) -> dict[str, str]:
    """What every answer says: only the page's own script and style run, and no other site may show any of it."""
    hashes = {tag: _hash(page, tag) for tag in ("script", "style")}
    policy = {
        "default-src": "'none'",
        "script-src": hashes["script"],
        "style-src": hashes["style"],
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }


def _hash(page: str, tag: str) -> str:
    inside = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    assert inside is not None
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode()}'"


def is_same_site(request: Mapping[str, str]) -> bool:
    """Whether a request with these headers comes from the page itself or from no browser at all."""
    origin = request.get("origin")
    is_elsewhere = origin is not None and urlsplit(origin).netloc != request.get("host")
    return not is_elsewhere and request.get("sec-fetch-site", "none") in ("same-origin", "none")
