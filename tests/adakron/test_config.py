"""Every key of adapter_config.json is required, typed, bounded, and refused by name."""

import dataclasses
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adakron.config import (
    FORMAT_VERSION,
    MAX_BOTTLENECK,
    MAX_HIDDEN,
    MAX_LABEL_CHARS,
    MAX_LABELS,
    MAX_LAYERS,
    MAX_TOKENS,
    AdaKronConfig,
    AdapterConfig,
    Calibration,
    Fingerprint,
)
from adakron.errors import ConfigError

FINGERPRINT = Fingerprint("0123456789abcdef" * 4, "ab" * 32, "c0" * 32)


def make(**changes: Any) -> AdapterConfig:
    known: dict[str, Any] = {
        "adakron": AdaKronConfig(bottleneck=12, factor=4),
        "hidden_size": 20,
        "num_hidden_layers": 3,
        "base_model_name_or_path": "some/encoder",
        "base_fingerprint": FINGERPRINT,
        "label_names": ("no", "yes", "perhaps"),
        "label_distribution": (0.5, 0.25, 0.25),
    }
    return AdapterConfig(**(known | changes))


def raw(**changes: Any) -> dict[str, Any]:
    """A valid adapter_config.json as an object, with some keys replaced."""
    return make().to_dict() | changes


def with_labels(names: list[Any]) -> dict[str, Any]:
    """The same with other labels, all three keys in step."""
    return raw(
        num_labels=len(names),
        id2label={str(index): name for index, name in enumerate(names)},
        label2id={name: index for index, name in enumerate(names)},
        label_distribution=None,
    )


def refusal(document: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        AdapterConfig.from_dict(document)
    return caught.value


# For each key, values of a wrong type or out of its bounds.
NOT_AN_INTEGER = [None, True, "12", 12.0, [12], {}, -1, 0]
NOT_A_NAME = [None, True, 3, "", "  ", "two\nlines", "\x00", ["x"], {}]
NOT_A_CHOICE = [None, True, 0, "", "nonsense", [], {}]
WRONG: dict[str, list[Any]] = {
    "peft_type": [*NOT_A_CHOICE, "LORA", "adakron"],
    "task_type": [*NOT_A_CHOICE, "CAUSAL_LM"],
    "inference_mode": [None, False, 1, "true", []],
    "modules_to_save": [None, "classifier", [], ["score"], ["classifier", "score"], [True], {}],
    "format_version": [None, True, "1", 1.0, [1], {}],
    "adakron_version": [*NOT_A_NAME, "9" * 65],
    "base_model_name_or_path": [*NOT_A_NAME, "x" * 513],
    "revision": [*NOT_A_NAME[1:], "a" * 129],
    "base_fingerprint": [None, "ab" * 32, [], 1, dataclasses.asdict(FINGERPRINT) | {"config_sha256": "AB" * 32}],
    "hidden_size": [*NOT_AN_INTEGER, MAX_HIDDEN + 1],
    "num_hidden_layers": [*NOT_AN_INTEGER, MAX_LAYERS + 1],
    "bottleneck": [*NOT_AN_INTEGER, MAX_BOTTLENECK + 4, 13],
    "factor": [*NOT_AN_INTEGER],
    "order": [*NOT_A_CHOICE, "A2_A1"],
    "activation": [*NOT_A_CHOICE, "gelu_new", "relu"],
    "first_layer": [*NOT_AN_INTEGER[:-1], 3, MAX_LAYERS],
    "head": [*NOT_A_CHOICE, "mlp"],
    "pooling": [*NOT_A_CHOICE, "max"],
    "problem_type": [*NOT_A_CHOICE, "token_classification"],
    "num_labels": [*NOT_AN_INTEGER, MAX_LABELS + 1],
    "id2label": [
        None,
        ["no", "yes", "perhaps"],
        {},
        {"0": "no", "1": "yes"},
        {"0": "no", "1": "yes", "3": "perhaps"},
        {"0": "no", "1": "yes", "02": "perhaps"},
        {"0": "no", "1": "yes", "2": 2},
        {"0": "no", "1": "yes", "2": None},
    ],
    "label2id": [
        None,
        ["no", "yes", "perhaps"],
        {},
        {"no": 0, "yes": 1},
        {"no": 0, "yes": 2, "perhaps": 1},
        {"no": False, "yes": True, "perhaps": 2},
        {"no": 0.0, "yes": 1, "perhaps": 2},
        {"no": "0", "yes": "1", "perhaps": "2"},
        {"no": 0, "yes": 1, "perhaps": 2, "other": 3},
    ],
    "max_length": [*NOT_AN_INTEGER, 3, MAX_TOKENS + 1],
    "text_fields": [None, "text", [], ["text_pair"], ["text_pair", "text"], ["text", "text"], [1], {"text": 1}],
    "multi_label_threshold": [None, True, "0.5", [0.5], 0, 1, -0.5, 1.5, float("nan"), float("inf")],
    "label_distribution": [
        True,
        0.5,
        "0.5",
        [0.5, 0.5],
        [0.5, 0.5, "0"],
        [0.5, 0.5, True],
        [-0.1, 0.5, 0.6],
        [0.1, 0.5, 1.1],
        [float("nan"), 0.5, 0.5],
    ],
    "calibration": [
        None,
        1.0,
        [],
        *({"temperature": bad, "threshold": None} for bad in (None, True, "1", 0, -1.0, 1e-4, 1e4, float("nan"))),
        *({"temperature": 1.0, "threshold": bad} for bad in (True, "0.5", 0, 1, 1.5, float("nan"))),
    ],
}
SUB_OBJECTS = {"base_fingerprint": list(dataclasses.asdict(FINGERPRINT)), "calibration": ["temperature", "threshold"]}


def test_every_key_has_its_wrong_values_here() -> None:
    assert set(WRONG) == set(raw())


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_wrong_value_is_refused_naming_the_key(key: str, value: Any) -> None:
    error = refusal(raw(**{key: value}))
    assert error.key is not None
    assert error.key.split(".")[0] == key
    assert str(error).startswith(error.key)


@pytest.mark.parametrize("key", list(WRONG))
def test_missing_key_is_refused_by_name(key: str) -> None:
    document = raw()
    del document[key]
    error = refusal(document)
    assert (error.key, str(error)) == (key, f"{key}: missing key")


@pytest.mark.parametrize(("outer", "key"), [(outer, key) for outer, keys in SUB_OBJECTS.items() for key in keys])
def test_missing_key_inside_an_object_is_refused_by_name(outer: str, key: str) -> None:
    document = raw()
    del document[outer][key]
    assert refusal(document).key == f"{outer}.{key}"


@pytest.mark.parametrize("key", ["lora_alpha", "auto_map", "custom_code", "Order", "order ", "__class__"])
def test_unknown_key_is_refused_by_name(key: str) -> None:
    error = refusal(raw(**{key: "x"}))
    assert (error.key, str(error)) == (key, f"{key}: unknown key")


@pytest.mark.parametrize("outer", list(SUB_OBJECTS))
def test_unknown_key_inside_an_object_is_refused_by_name(outer: str) -> None:
    document = raw()
    document[outer]["more"] = 1
    assert refusal(document).key == f"{outer}.more"


def test_unknown_key_with_control_characters_is_shown_escaped_and_cut() -> None:
    error = refusal(raw(**{"\r\nfake log line\x1b[31m" + "x" * 10_000: 1}))
    assert str(error).isprintable()
    assert error.key is not None
    assert error.key.isprintable()
    assert len(error.key) < 200
    assert len(str(error)) < 200


def test_refused_value_is_shown_escaped_and_cut() -> None:
    error = refusal(raw(pooling="\r\n" + "x" * 10_000))
    assert str(error).isprintable()
    assert len(str(error)) < 300


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, 999])
def test_other_format_version_is_named_before_anything_else(version: int) -> None:
    document = raw(format_version=version, a_key_of_that_format=1)
    del document["pooling"]
    error = refusal(document)
    assert error.key == "format_version"
    assert str(version) in str(error)
    assert error.hint is not None
    assert "upgrade" in error.hint


# Labels.


@pytest.mark.parametrize(
    "name", ["", " ", "\t", "two\nlines", "\x00", "\x1b[31m", "\u202egnp", "\ud800", "x" * (MAX_LABEL_CHARS + 1)]
)
def test_label_that_is_blank_unprintable_or_endless_is_refused(name: str) -> None:
    assert refusal(with_labels(["no", name])).key == "id2label"


@pytest.mark.parametrize("name", ["x" * MAX_LABEL_CHARS, "très bien", "好", "🙂", "__class__", "../x", "http://x/"])
def test_any_printable_label_is_kept_verbatim(name: str) -> None:
    assert AdapterConfig.from_dict(with_labels(["no", name])).label_names == ("no", name)


def test_repeated_label_is_refused() -> None:
    document = raw(id2label={"0": "no", "1": "no", "2": "yes"}, label2id={"no": 1, "yes": 2})
    assert refusal(document).key == "id2label"


def test_no_label_is_refused() -> None:
    assert refusal(with_labels([])).key == "num_labels"


def test_ten_thousand_labels_are_the_most() -> None:
    names = [f"label {index}" for index in range(MAX_LABELS + 1)]
    assert AdapterConfig.from_dict(with_labels(names[:-1])).num_labels == MAX_LABELS
    assert refusal(with_labels(names)).key == "num_labels"


def test_labels_keep_their_index_order_whatever_the_order_of_the_file() -> None:
    document = with_labels([f"l{index}" for index in range(12)])
    document["id2label"] = dict(reversed(document["id2label"].items()))
    assert AdapterConfig.from_dict(document).label_names == tuple(f"l{index}" for index in range(12))


@pytest.mark.parametrize(
    ("problem_type", "count", "accepted"),
    [
        ("regression", 1, True),
        ("regression", 2, False),
        ("single_label_classification", 1, False),
        ("single_label_classification", 2, True),
        ("multi_label_classification", 1, True),
        ("multi_label_classification", 3, True),
    ],
)
def test_number_of_labels_fits_the_problem(problem_type: str, count: int, accepted: bool) -> None:
    document = with_labels([f"l{index}" for index in range(count)]) | {"problem_type": problem_type}
    if accepted:
        assert AdapterConfig.from_dict(document).num_labels == count
    else:
        assert refusal(document).key == "num_labels"


@pytest.mark.parametrize("names", ["ab", ["no", "yes"], {"no", "yes"}])
def test_label_names_in_memory_must_be_a_tuple(names: Any) -> None:
    with pytest.raises(ConfigError, match="label_names"):
        make(label_names=names, label_distribution=None)


@pytest.mark.parametrize("key", ["order", "config_sha256", "temperature", "0", "no"])
def test_duplicate_key_in_a_config_is_refused(key: str) -> None:
    text = json.dumps(raw())
    twice = text.replace(f'"{key}": ', f'"{key}": null, "{key}": ', 1)
    assert twice != text
    with pytest.raises(ConfigError, match="stands twice") as caught:
        AdapterConfig.from_json(twice)
    assert caught.value.key == key


# Strings are data.


@pytest.fixture
def nothing_can_be_opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a configuration opened something")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        patch.setattr("os.open", refuse)
        patch.setattr("io.open", refuse)
        patch.setattr(socket, "socket", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


@pytest.mark.usefixtures("nothing_can_be_opened")
@pytest.mark.parametrize("name", ["/etc/passwd", "../../secret", "http://169.254.169.254/", "file:///etc/passwd"])
def test_string_is_never_opened_as_path_or_url(name: str) -> None:
    assert AdapterConfig.from_json(json.dumps(raw(base_model_name_or_path=name))).base_model_name_or_path == name


# The dataclasses.


@pytest.mark.parametrize(
    ("hidden_size", "bottleneck", "layers", "total"), [(768, 48, 12, 599_232), (1024, 16, 24, 614_592)]
)
def test_parameters_per_layer_are_those_of_the_paper(
    hidden_size: int, bottleneck: int, layers: int, total: int
) -> None:
    assert AdaKronConfig(bottleneck=bottleneck).parameters_per_layer(hidden_size) * layers == total


def test_parameters_per_layer_with_all_sizes_different() -> None:
    # d = 20, k = 4, q = 3: A1 3 x 20 + 3, A2 4 x 20 + 4, up 20 x 12 + 20
    assert AdaKronConfig(bottleneck=12, factor=4).parameters_per_layer(20) == 63 + 84 + 260


def test_quotient_is_r_over_k() -> None:
    assert AdaKronConfig(bottleneck=12, factor=4).quotient == 3


@pytest.mark.parametrize("config", [AdaKronConfig(), FINGERPRINT, Calibration(), make()])
def test_configuration_is_frozen(config: Any) -> None:
    name = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, 3)


@pytest.mark.parametrize("value", ["", "ab" * 31, "ab" * 33, "AB" * 32, "g" * 64, "٠" * 64, None, 3])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_fingerprint_takes_64_lower_case_hex_digits_alone(value: Any, position: int) -> None:
    digests = ["ab" * 32] * 3
    digests[position] = value
    with pytest.raises(ConfigError, match=dataclasses.fields(Fingerprint)[position].name):
        Fingerprint(*digests)


def test_takes_pair_says_whether_there_is_a_second_text() -> None:
    assert not make(text_fields=("text",)).takes_pair
    assert make(text_fields=("text", "text_pair")).takes_pair


# Round trip.

labels = st.text(
    st.characters(exclude_categories=["C", "Zl", "Zp"]).filter(str.isprintable), min_size=1, max_size=12
).filter(str.strip)
shares = st.floats(0, 1)
open_unit = st.floats(0, 1, exclude_min=True, exclude_max=True)
names = st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1, max_size=40).filter(str.strip)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)


@st.composite
def adapter_configs(draw: st.DrawFn) -> AdapterConfig:
    factor, quotient = draw(st.integers(1, 16)), draw(st.integers(1, 64))
    layers = draw(st.integers(1, MAX_LAYERS))
    method = AdaKronConfig(
        factor * quotient, factor, draw(st.sampled_from(["a2_a1", "a1_a2"])), draw(st.integers(0, layers - 1))
    )
    problem = draw(st.sampled_from(["single_label_classification", "multi_label_classification", "regression"]))
    least, most = {"regression": (1, 1), "multi_label_classification": (1, 6)}.get(problem, (2, 6))
    label_names = tuple(draw(st.lists(labels, min_size=least, max_size=most, unique=True)))
    distribution = st.none() | st.tuples(*[shares] * len(label_names))
    return AdapterConfig(
        adakron=method,
        hidden_size=draw(st.integers(1, MAX_HIDDEN)),
        num_hidden_layers=layers,
        base_model_name_or_path=draw(names),
        base_fingerprint=Fingerprint(draw(digests), draw(digests), draw(digests)),
        label_names=label_names,
        problem_type=problem,
        head=draw(st.sampled_from(["linear", "roberta"])),
        pooling=draw(st.sampled_from(["cls", "mean", "pooler"])),
        max_length=draw(st.integers(4, MAX_TOKENS)),
        text_fields=draw(st.sampled_from([("text",), ("text", "text_pair")])),
        revision=draw(st.none() | names),
        multi_label_threshold=draw(open_unit),
        label_distribution=draw(distribution),
        calibration=Calibration(draw(st.floats(1e-3, 1e3)), draw(st.none() | open_unit)),
        adakron_version=draw(names),
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(adapter_configs())
def test_any_configuration_survives_the_trip_through_json(config: AdapterConfig) -> None:
    assert AdapterConfig.from_json(config.to_json()) == config
    assert AdapterConfig.from_json(config.to_json().encode()) == config


def test_from_dict_ignores_the_order_of_keys_and_the_python_type_of_numbers() -> None:
    document = dict(reversed(raw(label_distribution=[1, 0, 0]).items()))
    assert AdapterConfig.from_dict(document) == make(label_distribution=(1.0, 0.0, 0.0))
