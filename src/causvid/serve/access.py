"""Who may talk to the server: pages of its own origin, and beyond this machine only those who know the token."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from causvid.errors import UserError

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1", "[::1]")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Access:
    token: str | None
    local_only: bool  # bound to this machine: other names of it in a request are a trick (DNS rebinding)
    origins: tuple[str, ...] = ()  # further pages that may connect, as 'https://host:port'

    @classmethod
    def of(cls, host: str, token: str | None, origins: tuple[str, ...] = ()) -> Access:
        """Beyond this machine a token is needed; without one given, a new one is made."""
        if token is not None and len(token) < 12:
            raise UserError("a token has at least 12 characters; leave it out to have one made")
        local = is_loopback(host)
        return cls(token or (None if local else secrets.token_urlsafe(18)), local, origins)

    def problem(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str | None:
        """Why a request is refused; None if it is not."""
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            name, page = urlsplit(f"//{host}").hostname or "", urlsplit(origin or "").netloc
        except ValueError:
            return "this request names an address that cannot be read; open the one that the server printed"
        if self.local_only and not is_loopback(name):
            return f"this server answers on this machine only, and not as '{name}'"
        if origin is not None and page != host and origin not in self.origins:
            return f"pages of {origin} may not use this server; start it with that origin allowed"
        if self.token is not None and not self._knows_token(headers, query):
            return "a token is needed: open the address that the server printed, or send 'Authorization: Bearer TOKEN'"
        return None

    def _knows_token(self, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
        given = headers.get("authorization", "").removeprefix("Bearer ") or query.get("token", "")
        return hmac.compare_digest(given.encode(), (self.token or "").encode())
