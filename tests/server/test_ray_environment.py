"""The environment of Ray: HAProxy's settings only with HAProxy, the operator's own values kept, a private token."""

import os
import stat
from pathlib import Path

import pytest

from server import ray_environment


def variables(*, uses_haproxy: bool) -> dict[str, str]:
    return dict(
        ray_environment.ray_environment(token_path=Path("/state/token"), uses_haproxy=uses_haproxy, cores=8, threads=3)
    )


def test_token_authentication_is_on_and_usage_is_not_reported() -> None:
    for uses_haproxy in (False, True):
        found = variables(uses_haproxy=uses_haproxy)
        assert (found["RAY_AUTH_MODE"], found["RAY_AUTH_TOKEN_PATH"]) == ("token", "/state/token")
        assert found["RAY_USAGE_STATS_ENABLED"] == "0"
        assert found["OMP_NUM_THREADS"] == "3"


def test_haproxy_is_used_only_if_asked() -> None:
    assert variables(uses_haproxy=True)["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert not [name for name in variables(uses_haproxy=False) if "HAPROXY" in name or "HA_PROXY" in name]


@pytest.mark.parametrize("name", ["TIMEOUT_SERVER_S", "HARD_STOP_AFTER_S"])
def test_haproxy_gives_up_after_the_service_does(name: str) -> None:
    from server.bulk import ENDS_WITHIN_S, MAX_BEGIN_WITHIN_S
    from server.service import MAX_TIMEOUT_S

    longest_s = max(MAX_TIMEOUT_S, MAX_BEGIN_WITHIN_S + ENDS_WITHIN_S)
    assert int(variables(uses_haproxy=True)[f"RAY_SERVE_HAPROXY_{name}"]) > longest_s


def test_value_of_the_operator_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    ray_environment.apply({"OMP_NUM_THREADS": "3", "RAYON_NUM_THREADS": "3"})
    assert (os.environ["OMP_NUM_THREADS"], os.environ["RAYON_NUM_THREADS"]) == ("7", "3")
    monkeypatch.delenv("RAYON_NUM_THREADS")


def test_token_is_long_private_and_new_each_time(tmp_path: Path) -> None:
    path = tmp_path / "token"
    ray_environment.make_token(path)
    first = path.read_text()
    ray_environment.make_token(path)
    assert len(first) == 64
    assert first != path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
