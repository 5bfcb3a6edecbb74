"""What stands in the place of a span where nothing is traced. Does nothing."""

from types import TracebackType


class NoSpan:
    """Context manager; one for all."""

    def __enter__(self) -> "NoSpan":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def fail(self, error: Exception) -> None:
        """As `server.telemetry.tracing.BatchSpan.fail`."""


NO_SPAN = NoSpan()
