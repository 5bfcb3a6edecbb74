"""Where a client sends, with what, and what it shows of it."""

import pytest

from server.client import AdaKron, AsyncAdaKron, ConfigurationError
from server.client.connection import DEFAULT_URL, Connection
from tests.server.client.conftest import Caller


def of(url: str | None = None, api_key: str | None = None) -> Connection:
    return Connection.of(url, api_key, timeout_s=5, attempts=1)


def test_environment_stands_in_for_what_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (of().url, of().api_key) == (DEFAULT_URL, None)
    monkeypatch.setenv("ADAKRON_URL", "http://elsewhere:8001")
    monkeypatch.setenv("ADAKRON_API_KEY", "ad_key")
    assert (of().url, of().api_key) == ("http://elsewhere:8001", "ad_key")
    assert (of("http://third:1", "own").url, of("http://third:1", "own").api_key) == ("http://third:1", "own")
    assert of(api_key="").api_key is None


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "http://[", "nonsense", "http://x:99999"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="ADAKRON_URL"):
        of(url)


@pytest.mark.parametrize("key", ["ad_\nsecret", "ad_✓secret", "ad_\x00secret"])
def test_a_key_that_no_header_holds_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ConfigurationError, match="ADAKRON_API_KEY") as caught:
        of(api_key=key)
    assert "secret" not in f"{caught.value!r}{caught.value.__cause__!r}"


@pytest.mark.parametrize(("timeout_s", "attempts"), [(0, 1), (-1, 1), (float("nan"), 1), (1, 0)])
def test_senseless_patience_is_refused(timeout_s: float, attempts: int) -> None:
    with pytest.raises(ConfigurationError):
        Connection.of(None, None, timeout_s=timeout_s, attempts=attempts)


@pytest.mark.parametrize("kind", [AdaKron, AsyncAdaKron])
def test_secrets_are_not_shown(kind: type[AdaKron] | type[AsyncAdaKron]) -> None:
    client = kind("http://me:password@host:1/x", "ad_secret")
    assert repr(client) == f"{kind.__name__}('http://host:1/x', api_key='***')"
    assert "secret" not in repr(client._connection)
    assert "api_key=None" in repr(kind("http://host"))


def test_every_request_carries_key_and_deadline(call: Caller) -> None:
    call("classify", "a", "sst2", client={"api_key": "ad_key", "timeout_s": 2.5})
    sent = call.server.wire.requests[0].headers
    assert (sent["authorization"], sent["x-timeout-s"]) == ("Bearer ad_key", "2.500")
    call("classify", "a", "sst2")
    assert "authorization" not in call.server.wire.requests[1].headers
