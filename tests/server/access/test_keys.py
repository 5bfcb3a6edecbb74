import hashlib
import math
import re

import pytest

from server.access.keys import SCOPES, Key, digest_of, id_in, is_same, make_key, tenant_prefix


def test_key_has_its_form_and_256_random_bits() -> None:
    key, key_id = make_key()
    assert re.fullmatch(r"ad_[0-9A-Za-z]{12}_[0-9A-Za-z]{43}", key)
    assert id_in(key.encode()) == key_id
    assert 43 * math.log2(62) >= 256


def test_keys_differ() -> None:
    assert len({make_key()[0] for _ in range(1000)}) == 1000


def test_digest_is_sha256_of_the_whole_key() -> None:
    assert digest_of(b"ad_x_y") == hashlib.sha256(b"ad_x_y").hexdigest()


def test_only_the_whole_key_is_the_same() -> None:
    key = make_key()[0].encode()
    digest = digest_of(key)
    assert is_same(key, digest)
    assert not any(is_same(wrong, digest) for wrong in (b"", key[:-1], key + b"x", key.swapcase(), b"\xff\x00"))


@pytest.mark.parametrize(
    "malformed",
    [b"", b"hf_abc", b"ad_", b"ad_short_" + b"x" * 43, b"ad_" + b"x" * 12 + b"_" + b"y" * 42, b"\x00" * 59]
    + [b"ad_" + b"x" * 12 + b"_" + b"y" * 43 + end for end in (b"\n", b" ", b"z")]
    + ["ad_aaaaaaaaaaa\u0661_".encode() + b"y" * 43],
)
def test_malformed_key_names_no_id(malformed: bytes) -> None:
    assert id_in(malformed) is None


@pytest.mark.parametrize(
    ("expires_s", "revoked_s", "is_live"),
    [(None, None, True), (101, None, True), (100, None, False), (99, None, False), (None, 1, False), (101, 1, False)],
)
def test_key_lives_until_it_expires_or_is_revoked(expires_s: int | None, revoked_s: int | None, is_live: bool) -> None:
    key = Key("id", "0" * 64, frozenset(SCOPES), None, 1, expires_s, revoked_s)
    assert key.is_live(100) is is_live


@pytest.mark.parametrize(("text", "prefix"), [("acme", "acme/"), ("acme/", "acme/"), ("a.b-c_1", "a.b-c_1/")])
def test_tenant_is_a_whole_segment(text: str, prefix: str) -> None:
    assert tenant_prefix(text) == prefix


@pytest.mark.parametrize("text", ["", "/", "acme//", "acme/x", "Acme", "a..b", "a--b", "../x", "é", "acme/\n"])
def test_what_no_name_begins_with_is_no_tenant(text: str) -> None:
    with pytest.raises(ValueError, match="not a tenant"):
        tenant_prefix(text)
