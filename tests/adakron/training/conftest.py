"""A tiny backbone in a folder and folders of labelled rows, made once for all training tests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.adakron.training.labelled import ROWS, save_backbone, save_task


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("backbone") / "tiny-bert")


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """task_folder(kind): 96 training and 32 validation rows of that kind."""
    root = tmp_path_factory.mktemp("tasks")
    return {kind: save_task(root / kind, kind) for kind in ROWS}.__getitem__


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Models this small lose more to waking threads than they win, above all on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
