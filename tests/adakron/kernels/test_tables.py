import numpy as np
import pytest
import torch

from adakron.kernels.tables import ALIGNMENT, Tables

CPU = torch.device("cpu")
ARRAYS = [
    np.arange(5, dtype=np.int32),
    np.arange(6, dtype=np.int64).reshape(2, 3),
    np.empty((0, 3), np.int32),
    np.arange(7, dtype=np.int32),
]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return torch.device(request.param)


def values(tables):
    return [tensor.cpu().numpy() for tensor in tables.tensors]


def test_every_array_arrives_with_its_shape_and_dtype(device):
    for found, expected in zip(values(Tables.of(ARRAYS, device)), ARRAYS, strict=True):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert (found == expected).all()


def test_every_tensor_is_aligned(device):
    assert [tensor.data_ptr() % ALIGNMENT for tensor in Tables.of(ARRAYS, device).tensors] == [0] * len(ARRAYS)


def test_filling_again_keeps_the_place_and_leaves_nothing_of_the_former_batch(device):
    tables = Tables.of(ARRAYS, device)
    places = [tensor.data_ptr() for tensor in tables.tensors]
    tables.fill([np.array([9, 8], np.int32), np.array([[7, 6, 5]]), ARRAYS[2], np.empty(0, np.int32)])
    assert [tensor.data_ptr() for tensor in tables.tensors] == places
    first, second, _, last = values(tables)
    assert first.tolist() == [9, 8, 0, 0, 0]
    assert second.tolist() == [[7, 6, 5], [0, 0, 0]]
    assert not last.any()


@pytest.mark.parametrize(
    "change", [lambda a: np.arange(6, dtype=np.int32), lambda a: np.zeros((5, 2), np.int32)], ids=["longer", "wider"]
)
def test_an_array_that_does_not_fit_is_refused(change):
    with pytest.raises(ValueError, match="broadcast"):
        Tables.of(ARRAYS, CPU).fill([change(ARRAYS[0]), *ARRAYS[1:]])


def test_another_number_of_arrays_is_refused():
    with pytest.raises(ValueError, match="zip"):
        Tables.of(ARRAYS, CPU).fill(ARRAYS[:-1])


@pytest.mark.gpu
def test_a_copy_under_way_is_not_overwritten():
    device = torch.device("cuda")
    tables, big = Tables([np.zeros(1000, np.int64)], device), torch.ones(1 << 14, 1 << 14, device=device)
    kept = []
    for number in range(20):
        big @ big  # keeps the stream busy, so that copies queue up
        tables.fill([np.full(1000, number)])
        kept.append(tables.tensors[0].clone())
    assert [int(tensor.min()) for tensor in kept] == list(range(20))
    assert [int(tensor.max()) for tensor in kept] == list(range(20))
