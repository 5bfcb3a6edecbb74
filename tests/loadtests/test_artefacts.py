import hashlib
import json
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from loadtests.artefacts import SignatureMaker, find_base
from tests.loadtests.artefact import LABELS, artefact_bytes


def metadata_of(data: bytes) -> dict[str, str]:
    length = struct.unpack("<Q", data[:8])[0]
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata


def test_only_the_bias_of_the_head_changes() -> None:
    base = artefact_bytes()
    made = SignatureMaker(base).make(7).data
    before, after = load(base), load(made)
    assert before.keys() == after.keys()
    assert [name for name in before if not np.array_equal(before[name], after[name])] == ["head.bias"]
    assert metadata_of(base) == metadata_of(made)


def test_the_signature_names_the_hash_of_the_bytes_and_the_label_that_wins() -> None:
    artefact = SignatureMaker(artefact_bytes()).make(3)
    assert artefact.signature.sha256 == hashlib.sha256(artefact.data).hexdigest()
    assert artefact.signature.label == LABELS[int(load(artefact.data)["head.bias"].argmax())] == LABELS[3]


def test_neighbours_have_different_labels_and_all_have_different_bytes() -> None:
    maker = SignatureMaker(artefact_bytes())
    made = [maker.make(serial).signature for serial in range(3 * len(LABELS))]
    assert all(one.label != other.label for one, other in pairwise(made))
    assert len({signature.sha256 for signature in made}) == len(made)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_all_artefacts_of_every_dtype_differ(dtype: str) -> None:
    maker = SignatureMaker(artefact_bytes(("no", "yes"), dtype=dtype))
    assert len({maker.make(serial).signature.sha256 for serial in range(maker.count)}) == maker.count


def test_serials_beyond_the_last_are_refused() -> None:
    maker = SignatureMaker(artefact_bytes())
    with pytest.raises(ValueError, match="expected a serial below"):
        maker.make(maker.count)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_golden_examples_move_by_the_difference_of_the_biases(dtype: str) -> None:
    base = artefact_bytes(("no", "yes"), dtype=dtype, bias=(0.5, -2.0), example_logits=(1.5, -1.0))
    made = SignatureMaker(base).make(1).data
    example = json.loads(metadata_of(made)["adakron.expected"])["examples"][0]
    assert example["logits"] == [1.0, 1025.0]  # text alone gives 1.0 and 1.0
    assert example["text"] == "A text."


def test_the_bias_of_a_roberta_head_is_the_one_of_its_last_layer() -> None:
    made = SignatureMaker(artefact_bytes(bias_name="head.out_proj.bias")).make(2).data
    assert load(made)["head.out_proj.bias"].argmax() == 2


def test_an_artefact_of_another_problem_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a single-label artefact; found regression"):
        SignatureMaker(artefact_bytes(("value",), problem_type="regression"))


def test_an_artefact_without_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one of the tensors head\.bias"):
        SignatureMaker(artefact_bytes(bias_name="layers.0.a1.bias"))


def test_bytes_that_are_no_artefact_are_refused() -> None:
    with pytest.raises(ValueError, match="safetensors"):
        SignatureMaker(b"\x10\0\0\0\0\0\0\0 not json at all")


def test_a_safetensors_file_of_something_else_is_refused() -> None:
    header = b'{"__metadata__":{}}     '
    with pytest.raises(ValueError, match=r"expected adakron\.config"):
        SignatureMaker(len(header).to_bytes(8, "little") + header)


def test_find_base_takes_the_single_label_artefact_with_most_labels(tmp_path: Path) -> None:
    for name, data in {
        "two": artefact_bytes(("a", "b")),
        "acme/five": artefact_bytes(),
        "many": artefact_bytes(tuple("abcdefgh"), problem_type="multi_label_classification"),
    }.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "adapter_model.safetensors").write_bytes(data)
    assert find_base(tmp_path) == tmp_path / "acme" / "five" / "adapter_model.safetensors"


def test_find_base_in_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="found none"):
        find_base(tmp_path)


def test_the_artefacts_are_what_the_real_reader_takes() -> None:
    import torch

    from adakron.artefact import Adapter, Example, expected_shapes
    from adakron.config import AdaKronConfig, AdapterConfig, Fingerprint

    fingerprint = Fingerprint("1" * 64, "2" * 64, "3" * 64)
    config = AdapterConfig(AdaKronConfig(12), 20, 2, "tiny", fingerprint, LABELS, "single_label_classification")
    tensors = {name: torch.full(shape, 0.25) for name, shape in expected_shapes(config).items()}
    base = Adapter.build(config, tensors, [Example("A text.", None, (1.0, 2.0, 3.0, 4.0, 5.0))])
    artefact = SignatureMaker(base.to_bytes()).make(9)
    made = Adapter.from_bytes(artefact.data)
    assert made.sha256 == artefact.signature.sha256
    assert made.config == base.config
    assert made.tensors["head.bias"].tolist() == [0.0, 0.0, 0.0, 0.0, 1032.0]
    assert made.expected[0].logits == (0.75, 1.75, 2.75, 3.75, 1036.75)
