"""What an operator can set: one frozen object, filled from ADAKRON_* variables and the flags of `adakron serve`.

Flags win over variables. Read once, in the launching process, and handed to the replicas as data: nothing else in the
server looks at the environment. Knows nothing of Ray or of the engine.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.access.loopback import is_loopback
from server.access.store import KeyStore
from server.blobs import BlobStore
from server.database import parse_url, sqlite_url
from server.errors import InvalidRequestError
from server.names import check_name
from server.records import Quota
from server.remote_blobs import open_blobs
from server.telemetry.busiest import NAMED_ADAPTERS

ENV_PREFIX = "ADAKRON_"
_HOST = re.compile(r"[0-9A-Za-z:.\-]{1,253}")
_REDIS = re.compile(r"rediss?://([^@/\s]*@)?[0-9A-Za-z.\-]{1,253}:[0-9]{1,5}(/[0-9]{1,3})?")
_ORIGIN = re.compile(r"https?://[0-9a-z.\-]{1,253}(:[0-9]{1,5})?")


class Settings(BaseSettings):
    """Raises pydantic.ValidationError for an unknown key, a wrong type, or a value out of bounds."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True)

    host: str = Field("127.0.0.1", description="address to listen on; one that others reach needs keys")
    port: int = Field(8000, ge=1, le=65_535, description="port to listen on")
    replicas: PositiveInt | None = Field(
        None, le=64, description="processes that hold the encoder (default: one per GPU, else half the cores)"
    )
    backbone: str = Field("default", min_length=1, max_length=512, description="hub id or folder of the encoder")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the encoder runs")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="number format of the encoder")
    batch_invariant: bool = Field(
        False, description="a row's logits are equal to the last bit whatever else is in its batch; slower"
    )
    state_dir: Path = Field(Path("~/.local/state/adakron"), description="catalogue and stored adapters")
    catalogue_url: SecretStr | None = Field(
        None,
        description="catalogue in PostgreSQL: postgresql://user@host/database (default: a file in the state folder)",
    )
    blob_url: str | None = Field(
        None,
        max_length=512,
        pattern="^[a-z0-9+]+://",
        description="stored adapters elsewhere, such as s3://bucket/prefix",
    )
    cache_budget_bytes: PositiveInt = Field(
        10 * 2**30, description="most bytes of copies on this disk of adapters that are stored elsewhere"
    )
    batch_budget_tokens: int | None = Field(
        None, ge=512, le=1_048_576, description="most tokens in one batch (default: 2048 on a CPU, 16384 on a GPU)"
    )
    device_budget_bytes: PositiveInt | None = Field(
        None,
        description="most bytes of adapters on the device, for each replica; those used least make room "
        "(default: 2 GiB on a CPU, half of what is free on a GPU)",
    )
    host_budget_bytes: int = Field(
        2**30,
        ge=0,
        description="most bytes of copies in host memory of adapters that left the device, for each replica",
    )
    pinned: Annotated[tuple[str, ...], NoDecode] = Field(
        (), max_length=1000, description="names, separated by commas, whose active versions always stay on the device"
    )
    keep_versions: PositiveInt | None = Field(
        None, description="versions a name keeps beside those that answer; older ones are deleted (default: all)"
    )
    rate_limit_rows: PositiveInt | None = Field(
        None, le=1_000_000_000, description="most rows a minute by one key (default: no limit of the server's)"
    )
    rate_limit_url: SecretStr | None = Field(
        None, description="Redis that counts for all replicas together: redis://host:6379/0 (default: each its share)"
    )
    tenant_adapters: PositiveInt | None = Field(
        None, description="most adapters of one tenant, the first of two segments of a name (default: no limit)"
    )
    tenant_bytes: PositiveInt | None = Field(
        None, description="most bytes of all versions that one tenant keeps (default: no limit)"
    )
    cors_origins: str = Field(
        "", max_length=4096, description="web pages that may call, such as https://app.example.org, with commas between"
    )
    adapters_dir: Path | None = Field(None, description="folder of adapters to start with (default: the shipped ones)")
    plain: bool = Field(False, description="Ray's Python proxy instead of HAProxy: slower, runs anywhere")
    metrics_adapters: int = Field(
        NAMED_ADAPTERS, ge=0, le=1000, description="adapters that /metrics names, the busiest; the others count as one"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("WARNING", description="least severity logged")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="form of the log on stderr; auto is text on a terminal, else JSON"
    )
    access_log: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of requests that are logged, from 0 to 1; those answered with 5xx always are",
    )

    @property
    def catalogue(self) -> str:
        """The catalogue's URL, with its password if it has one: not for logs."""
        if self.catalogue_url is not None:
            return self.catalogue_url.get_secret_value()
        return sqlite_url(self.state_dir / "catalogue.sqlite")

    def open_blobs(self) -> BlobStore:
        """The stored artefacts. Raises StorageUnavailableError."""
        return open_blobs(self.blob_url, self.state_dir / "blobs", cache_budget_bytes=self.cache_budget_bytes)

    @property
    def is_loopback(self) -> bool:
        """Whether nobody outside of this machine reaches the address."""
        return is_loopback(self.host)

    @property
    def cors(self) -> tuple[str, ...]:
        """The origins of web pages that may call."""
        return tuple(origin for part in self.cors_origins.split(",") if (origin := part.strip()))

    @property
    def redis_url(self) -> str | None:
        """Where rows are counted for all replicas, with its password if it has one: not for logs."""
        return None if self.rate_limit_url is None else self.rate_limit_url.get_secret_value()

    @property
    def quota(self) -> Quota:
        """What each tenant may keep."""
        return Quota(self.tenant_adapters, self.tenant_bytes)

    def open_keys(self, *, is_writer: bool = False) -> KeyStore:
        """The keys. Raises StorageUnavailableError."""
        return KeyStore(self.catalogue, is_writer=is_writer)

    @field_validator("host")
    @classmethod
    def _refuse_what_is_no_host(cls, host: str) -> str:
        if not _HOST.fullmatch(host):
            raise ValueError("not an address or the name of a host")
        return host

    @field_validator("rate_limit_url")
    @classmethod
    def _refuse_other_than_redis(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not _REDIS.fullmatch(url.get_secret_value()):
            raise ValueError("expected redis://host:port/database")
        return url

    @field_validator("cors_origins")
    @classmethod
    def _refuse_what_is_no_origin(cls, origins: str) -> str:
        for origin in filter(None, (part.strip() for part in origins.split(","))):
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin[:64]!r} is not an origin such as https://app.example.org: scheme, host and port, no "
                    "path, no wildcard"
                )
        return origins

    @field_validator("catalogue_url")
    @classmethod
    def _refuse_unknown_database(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            parse_url(url.get_secret_value())
        return url

    @field_validator("pinned", mode="before")
    @classmethod
    def _split_names(cls, names: object) -> object:
        return tuple(name.strip() for name in names.split(",") if name.strip()) if isinstance(names, str) else names

    @field_validator("pinned")
    @classmethod
    def _refuse_malformed_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            try:
                check_name(name, param="pinned")
            except InvalidRequestError as error:
                raise ValueError(error.message) from error
        return names

    @field_validator("state_dir", "adapters_dir")
    @classmethod
    def _make_absolute(cls, folder: Path | None) -> Path | None:
        return None if folder is None else folder.expanduser().absolute()
