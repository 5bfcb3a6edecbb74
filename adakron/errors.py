"""What can go wrong in adakron, one class per cause.

    AdaKronError
    ├── ConfigError               a configuration key is unknown, missing, of the wrong type or out of bounds
    ├── FormatError               an artefact's bytes are not what the format says
    │   ├── HeaderError           the safetensors container itself: size, header text, entries, offsets
    │   ├── MissingTensorError    an expected tensor is absent
    │   ├── UnexpectedTensorError a tensor nobody expects
    │   ├── DtypeError            not F32, F16 or BF16
    │   ├── ShapeError            a tensor of another shape than the configuration implies
    │   └── NonFiniteError        NaN or infinity in a tensor
    ├── BackboneError             the backbone cannot be found, verified or attached to
    ├── BaseMismatchError         a good adapter, made for another backbone
    ├── GoldenMismatchError       the adapter does not reproduce the logits it was shipped with
    ├── UnknownAdapterError       no such adapter on this engine
    ├── BankFullError             no memory left for another adapter
    └── DataError                 a data set or a file of rows is unusable

A message says what was expected and what was found; `hint` says what to do. Knows nothing of HTTP statuses.
"""


class AdaKronError(Exception):
    """Base of all errors raised on purpose by this package.

    code   stable, for programs: UPPER_SNAKE
    hint   what the reader can do about it, or None
    """

    code = "ADAKRON_ERROR"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(AdaKronError):
    code = "INVALID_CONFIG"

    def __init__(self, message: str, *, key: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.key = key


class FormatError(AdaKronError):
    """An artefact that is refused; names the tensor, what was expected and what was found, where that applies."""

    code = "INVALID_ARTEFACT"

    def __init__(
        self,
        message: str,
        *,
        tensor: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.tensor = tensor
        self.expected = expected
        self.found = found


class HeaderError(FormatError):
    code = "INVALID_SAFETENSORS"


class MissingTensorError(FormatError):
    code = "MISSING_TENSOR"


class UnexpectedTensorError(FormatError):
    code = "UNEXPECTED_TENSOR"


class DtypeError(FormatError):
    code = "INVALID_DTYPE"


class ShapeError(FormatError):
    code = "INVALID_SHAPE"


class NonFiniteError(FormatError):
    code = "NON_FINITE_TENSOR"


class BackboneError(AdaKronError):
    code = "BACKBONE_UNUSABLE"


class BaseMismatchError(AdaKronError):
    code = "BASE_MISMATCH"


class GoldenMismatchError(AdaKronError):
    code = "GOLDEN_MISMATCH"


class UnknownAdapterError(AdaKronError):
    code = "ADAPTER_NOT_FOUND"

    def __init__(self, key: str, *, hint: str | None = None) -> None:
        super().__init__(f"no adapter {key!r} on this engine", hint=hint)
        self.key = key

    def __reduce__(self) -> tuple[type["UnknownAdapterError"], tuple[str], dict[str, object]]:
        return type(self), (self.key,), self.__dict__  # a copy starts from the key, not from the message


class BankFullError(AdaKronError):
    code = "BANK_FULL"


class DataError(AdaKronError):
    code = "INVALID_DATA"
