"""Settings: defaults, what is refused, and that nothing can change them later."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from server.settings import Settings


def test_defaults_listen_on_loopback() -> None:
    assert (Settings().host, Settings().port) == ("127.0.0.1", 8000)


def test_variable_fills_the_field_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAKRON_BATCH_BUDGET_TOKENS", "1024")
    assert Settings().batch_budget_tokens == 1024


def test_argument_wins_over_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAKRON_PORT", "9000")
    assert Settings(port=9001).port == 9001


def test_paths_are_absolute_and_home_is_expanded() -> None:
    assert Settings(state_dir=Path("~/x")).state_dir == Path.home() / "x"
    assert Settings(adapters_dir=Path("here")).adapters_dir == Path.cwd() / "here"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_address_is_known_as_one(host: str) -> None:
    assert Settings(host=host).is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "127.0.0.1.example.org"])
def test_address_that_others_reach_is_known_as_one(host: str) -> None:
    assert not Settings(host=host).is_loopback


@pytest.mark.parametrize("host", ["", "a b", "host:80/x", "é"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ValidationError, match="host"):
        Settings(host=host)


def test_origins_are_split_at_commas() -> None:
    assert Settings(cors_origins="https://a.example, http://localhost:3000").cors == (
        "https://a.example",
        "http://localhost:3000",
    )
    assert Settings().cors == ()


@pytest.mark.parametrize("origin", ["*", "https://*.example", "example.org", "https://a.example/path", "null"])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError, match="origin"):
        Settings(cors_origins=origin)


def test_password_of_redis_is_never_shown() -> None:
    settings = Settings.model_validate({"rate_limit_url": "redis://:secret@host:6379/0"})
    assert "secret" not in f"{settings!r} {settings.model_dump_json()}"
    for wrong in ("memcached://:secret@host:1", "redis://:secret@host/0", "redis://:secret@host:1/0?db=2"):
        with pytest.raises(ValidationError, match="redis://host") as caught:
            Settings.model_validate({"rate_limit_url": wrong})
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 0},
        {"port": 65_536},
        {"replicas": 0},
        {"device": "tpu"},
        {"dtype": "float16"},
        {"batch_budget_tokens": 1},
        {"device_budget_bytes": 0},
        {"log_level": "LOUD"},
        {"rate_limit_rows": 0},
        {"tenant_adapters": 0},
        {"tenant_bytes": -1},
        {"colour": "red"},
    ],
)
def test_value_out_of_bounds_or_unknown_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Settings.model_validate(wrong)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


def test_catalogue_is_a_file_in_the_state_folder_unless_a_url_says_otherwise(tmp_path: Path) -> None:
    assert Settings(state_dir=tmp_path).catalogue == f"sqlite:///{tmp_path}/catalogue.sqlite"
    assert Settings.model_validate({"catalogue_url": "postgresql://me@db/x"}).catalogue == "postgresql://me@db/x"


def test_password_of_the_catalogue_is_never_shown() -> None:
    settings = Settings.model_validate({"catalogue_url": "postgresql://me:secret@db/x"})
    assert "secret" not in f"{settings!r} {settings} {settings.model_dump_json()}"
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"catalogue_url": "mysql://me:secret@db/x"})
    assert "secret" not in str(caught.value)


def test_pinned_names_come_as_a_list_with_commas_and_must_be_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAKRON_PINNED", "sst2, acme/x,")
    assert Settings().pinned == ("sst2", "acme/x")
    with pytest.raises(ValidationError, match="pinned"):
        Settings(pinned=("../x",))
