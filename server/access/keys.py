"""API keys as values: made, recognised, compared. Knows nothing of where they are kept or what they open.

    ad_<id>_<secret>    id: 12 characters, names the key in lists and logs; secret: 43 characters of base 62, 256 bits

A key is shown once, when it is made; what is kept is the SHA-256 of the whole. That is enough for random keys: there
is nothing to guess that a slow hash would protect.
"""

import hashlib
import hmac
import re
import secrets
import string
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from server.names import SEGMENT

Scope: TypeAlias = Literal["classify", "read", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

ID_CHARACTERS = 12
SECRET_CHARACTERS = 43  # 62 ** 43 > 2 ** 256
_ALPHABET = string.digits + string.ascii_letters
_KEY = re.compile(rb"ad_([0-9A-Za-z]{12})_[0-9A-Za-z]{43}")
_TENANT = re.compile(SEGMENT)


@dataclass(frozen=True, slots=True)
class Key:
    """One key without its secret. Times are in seconds since 1970.

    digest           SHA-256 of the key, in hex
    prefix           "acme/" where the key is for the adapters of that tenant alone
    rows_per_minute  what it may have classified, where that differs from the server's setting
    note             for people: whose it is, or what for
    """

    id: str
    digest: str
    scopes: frozenset[Scope]
    prefix: str | None
    created_s: int
    expires_s: int | None = None
    revoked_s: int | None = None
    rows_per_minute: int | None = None
    note: str = ""

    def is_live(self, now_s: float) -> bool:
        """Whether it opens anything at that time."""
        return self.revoked_s is None and (self.expires_s is None or now_s < self.expires_s)


def make_key() -> tuple[str, str]:
    """A new key and its id. The key is in no other place than the returned string."""
    key_id = _random(ID_CHARACTERS)
    return f"ad_{key_id}_{_random(SECRET_CHARACTERS)}", key_id


def digest_of(key: bytes) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key).hexdigest()


def id_in(key: bytes) -> str | None:
    """The id that a well-formed key names; None for anything else."""
    found = _KEY.fullmatch(key)
    return None if found is None else found[1].decode("ascii")


def is_same(key: bytes, digest: str) -> bool:
    """Whether `digest` is that of `key`; takes the same time however much of it agrees."""
    return hmac.compare_digest(digest_of(key).encode("ascii"), digest.encode("ascii"))


def tenant_prefix(text: str) -> str:
    """From "acme" or "acme/" to "acme/". Raises ValueError for what no name can begin with."""
    tenant = text.removesuffix("/")
    if not _TENANT.fullmatch(tenant) or ".." in tenant or "--" in tenant:
        raise ValueError(f"not a tenant: {text[:64]!r}; expected the first segment of names, such as acme")
    return f"{tenant}/"


def _random(characters: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(characters))
