"""What POST /v1/classify takes.

A request has one of three forms, told apart by their keys, and nothing else passes:

    {"adapter": "sst2", "inputs": [..]}             one adapter
    {"adapters": ["sst2", "mood@3"], "inputs": ..}  the same texts through several
    {"items": [{"adapter": "sst2", "text": ".."}]}  every text names its own

Checked here: JSON types, unknown fields, bounds. A text that is well-formed but cannot be classified (blank, too long,
a pair missing) is the engine's to judge, and fails alone.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from server.errors import InvalidRequestError
from server.names import MAX_REFERENCE_CHARACTERS, REFERENCE_PATTERN
from server.validation import invalid_request

MAX_ROWS = 128
MAX_TOP_K = 10_000
MAX_GENERATION = 2**63 - 1
MAX_BODY_BYTES = 2**20
# Above the engine's own limit, which refuses one text and not the call; nothing longer fits in a body anyway.
MAX_TEXT_CHARACTERS = MAX_BODY_BYTES

Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]
ReferenceText = Annotated[
    str,
    Field(
        min_length=1,
        max_length=2 * MAX_REFERENCE_CHARACTERS,  # the grammar refuses it sooner, and says why
        json_schema_extra={"pattern": f"^{REFERENCE_PATTERN}$", "maxLength": MAX_REFERENCE_CHARACTERS},
        description="A name, `sst2` or `acme/spam`; or pinned to a version, `sst2@3`, or content, `sst2@sha256:..`.",
    ),
]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, regex_engine="rust-regex")


class TextInput(_Strict):
    """One text, or a pair of texts for an adapter trained on pairs."""

    text: Text
    text_pair: Text | None = None


class Item(TextInput):
    """One text with the adapter it is for."""

    adapter: ReferenceText


def _kind_of_inputs(value: object) -> str | None:
    return "<one>" if isinstance(value, str) else "<list>" if isinstance(value, list) else None


def _kind_of_input(value: object) -> str | None:
    return "<text>" if isinstance(value, str) else "<object>" if isinstance(value, dict | TextInput) else None


Input = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[TextInput, Tag("<object>")],
    Discriminator(
        _kind_of_input,
        custom_error_type="input_type",
        custom_error_message="should be a string or an object with text and text_pair",
    ),
]
Inputs = Annotated[
    Annotated[Text, Tag("<one>")] | Annotated[list[Input], Field(min_length=1, max_length=MAX_ROWS), Tag("<list>")],
    Discriminator(
        _kind_of_inputs,
        custom_error_type="inputs_type",
        custom_error_message="should be a string or a list of strings and objects",
    ),
]


class _Options(_Strict):
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K)] | None = Field(
        default=1, description="How many (label, score) pairs `scores` holds, best first; null for all."
    )
    truncate: bool = Field(
        default=True, description="Cut a text at the adapter's max_length; false makes a longer one an error."
    )
    abstain_below: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="Withhold a label whose score is lower; null for the adapter's own threshold, 0 for none. "
        "Refused by a regression, which has no scores.",
    )
    min_generation: Annotated[int, Field(ge=0, le=MAX_GENERATION)] | None = Field(
        default=None, description="Answer only from a catalogue at least this new, as PUT returned it; else 503."
    )


class OneAdapterRequest(_Options):
    """Texts through one adapter."""

    adapter: ReferenceText
    inputs: Inputs


class ManyAdaptersRequest(_Options):
    """The same texts through several adapters; inputs x adapters counts against the limit of 128 rows."""

    adapters: Annotated[list[ReferenceText], Field(min_length=1, max_length=MAX_ROWS)]
    inputs: Inputs


class ItemsRequest(_Options):
    """Texts that each name their adapter."""

    items: Annotated[list[Item], Field(min_length=1, max_length=MAX_ROWS)]


ClassifyRequest = OneAdapterRequest | ManyAdaptersRequest | ItemsRequest

_FORMS: dict[frozenset[str], type[OneAdapterRequest] | type[ManyAdaptersRequest] | type[ItemsRequest]] = {
    frozenset({"adapter", "inputs"}): OneAdapterRequest,
    frozenset({"adapters", "inputs"}): ManyAdaptersRequest,
    frozenset({"items"}): ItemsRequest,
}
_FORM_KEYS = frozenset({"adapter", "adapters", "inputs", "items"})


def parse_classify_request(value: object) -> ClassifyRequest:
    """Check a decoded body. Raises InvalidRequestError (422), which names the field and says what was expected."""
    if not isinstance(value, dict):
        raise InvalidRequestError("the body should be a JSON object")
    form = _FORMS.get(_FORM_KEYS.intersection(value))
    if form is None:
        raise InvalidRequestError(
            "the body should have exactly one of adapter + inputs, adapters + inputs, or items",
            hint='for example {"adapter": "sst2", "inputs": ["a text"]}',
        )
    try:
        return form.model_validate(value)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_context=False, include_input=False)) from None
