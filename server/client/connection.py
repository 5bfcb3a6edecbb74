"""Which server, with which key, how patiently: what both transports are made with.

ADAKRON_URL and ADAKRON_API_KEY stand in for what is not given. Knows the environment; sends nothing.
"""

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from server.client.errors import ConfigurationError

DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_WITHIN_S = 5.0


@dataclass(frozen=True)
class Connection:
    """Where to send, and how long to wait. Raises ConfigurationError for what cannot be used.

    url        as it was given; may hold a password, and is shown without
    api_key    never shown
    timeout_s  for one try's answer; the server is told, and stops working on what nobody waits for
    attempts   how often a request is sent, at most
    """

    url: str
    api_key: str | None = field(repr=False)
    timeout_s: float
    attempts: int

    @classmethod
    def of(cls, url: str | None, api_key: str | None, *, timeout_s: float, attempts: int) -> "Connection":
        """With the environment's address and key where none is given; an empty text is none."""
        found = url or os.environ.get("ADAKRON_URL") or DEFAULT_URL
        key = os.environ.get("ADAKRON_API_KEY") if api_key is None else api_key
        return cls(found, key or None, timeout_s, attempts)

    def __post_init__(self) -> None:
        if not self.timeout_s > 0 or self.attempts < 1:
            raise ConfigurationError("timeout_s should be more than 0, and attempts 1 or more")
        try:
            url, _ = httpx.URL(self.url), urlsplit(self.url).port  # httpx takes any port, and half an address
        except (httpx.InvalidURL, ValueError) as error:
            raise ConfigurationError("the server's address is none", hint="is ADAKRON_URL right?") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigurationError(
                "the server's address should begin with http:// or https://", hint="is ADAKRON_URL right?"
            )
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ConfigurationError(
                "the key cannot stand in a header", hint="is ADAKRON_API_KEY one line, as it was shown?"
            )

    @property
    def shown_url(self) -> str:
        """The address without user and password."""
        return str(httpx.URL(self.url).copy_with(userinfo=b""))

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries. Of trailing zeros the server's grammar of X-Timeout-S takes any number."""
        headers = {"x-timeout-s": f"{self.timeout_s:.3f}", "user-agent": "adakron-client"}
        return headers if self.api_key is None else headers | {"authorization": f"Bearer {self.api_key}"}

    @property
    def timeout(self) -> httpx.Timeout:
        return httpx.Timeout(self.timeout_s, connect=min(CONNECT_WITHIN_S, self.timeout_s))

    def shown(self, name: str) -> str:
        """How a client shows itself."""
        key = "None" if self.api_key is None else "'***'"
        return f"{name}({self.shown_url!r}, api_key={key})"
