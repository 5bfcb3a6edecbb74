"""What every test may rely on: a clean environment, labelled text where it exists, and the meaning of the markers.

Knows nothing of the packages under test, and imports none of them: collection stays fast.
"""

import os
from pathlib import Path

import pytest

# A setting of the person who runs the tests must not decide what they test.
_KEPT = {"ADAKRON_DATA_DIR"}


def pytest_configure() -> None:
    """Before anything is imported: no model hub, no telemetry, no settings from outside, no window."""
    for name in [name for name in os.environ if name.startswith("ADAKRON_") and name not in _KEPT]:
        del os.environ[name]
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["MPLBACKEND"] = "Agg"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked gpu where there is no CUDA device; torch is imported only if anything is so marked."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of labelled text that ADAKRON_DATA_DIR names; the test is skipped where it is not set."""
    if not (path := os.environ.get("ADAKRON_DATA_DIR")):
        pytest.skip("ADAKRON_DATA_DIR is not set")
    return Path(path)


@pytest.fixture(scope="session")
def project_dir() -> Path:
    """The root of the project."""
    return Path(__file__).resolve().parent.parent
