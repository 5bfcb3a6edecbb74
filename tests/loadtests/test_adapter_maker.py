"""Artefacts that the engine takes, on a backbone of any size, and whose every part decides the answer."""

import dataclasses
from itertools import pairwise
from typing import Any

import pytest
import torch

from adakron import Adapter, Backbone, Engine, Row
from adakron.artefact import Adapter as Artefact
from loadtests.adapter_maker import AdapterMaker
from tests.tiny import tiny_backbone

TEXTS = ("the man saw a long word", "no", "it is good and new and very first")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture(scope="module")
def engine(backbone: Backbone) -> Engine:
    return Engine(backbone, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def maker(backbone: Backbone) -> AdapterMaker:
    return AdapterMaker(info(backbone), bottleneck=12, num_labels=7)


def info(backbone: Backbone) -> dict[str, Any]:
    return {
        "engine": {
            "backbone": backbone.name,
            "hidden_size": backbone.hidden_size,
            "num_layers": backbone.num_hidden_layers,
            "fingerprint": dataclasses.asdict(backbone.fingerprint),
        }
    }


def answers(engine: Engine, adapter: Artefact) -> set[str]:
    engine.add("x", adapter)
    results = engine.classify([Row(adapter="x", text=text) for text in TEXTS])
    engine.remove("x")
    assert all(result.score > 0.99 for result in results)
    return {result.label for result in results}


@pytest.mark.parametrize("serial", [0, 1, 6, 7, 48, 49, 700])
def test_every_text_gets_the_label_of_the_signature(engine: Engine, maker: AdapterMaker, serial: int) -> None:
    made = maker.make(serial)
    adapter = Adapter.from_bytes(made.data)
    assert adapter.sha256 == made.signature.sha256
    assert answers(engine, adapter) == {made.signature.label}


@pytest.mark.parametrize("other", [1, 2, 6, 701])
def test_layers_under_the_head_of_another_give_the_label_of_neither(
    engine: Engine, maker: AdapterMaker, other: int
) -> None:
    made = [maker.make(serial) for serial in (0, other)]
    labels = {one.signature.label for one in made}
    own, stranger = (Adapter.from_bytes(one.data) for one in made)
    for layers, head in ((own, stranger), (stranger, own)):
        tensors = {name: (head if name.startswith("head.") else layers).tensors[name] for name in own.tensors}
        assert not labels & answers(engine, Adapter.build(own.config, tensors))


def test_all_artefacts_differ_and_neighbours_give_different_labels(maker: AdapterMaker) -> None:
    made = [maker.make(serial).signature for serial in range(120)]
    assert len({one.sha256 for one in made}) == 120
    assert all(one.label != other.label for one, other in pairwise(made))


def test_what_cannot_be_made_is_refused(backbone: Backbone, maker: AdapterMaker) -> None:
    with pytest.raises(ValueError, match="expected a serial below"):
        maker.make(maker.count)
    with pytest.raises(ValueError, match="odd number of labels from 3 to 20"):
        AdapterMaker(info(backbone), num_labels=20)
    with pytest.raises(ValueError, match="multiple of 4"):
        AdapterMaker(info(backbone), bottleneck=6, num_labels=3)
