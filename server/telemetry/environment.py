"""Whether traces are wanted, by OpenTelemetry's own variables, and what makes them. Imports OpenTelemetry only then.

    OTEL_TRACES_EXPORTER                  otlp, console, none, or any exporter that is installed; several with commas
    OTEL_EXPORTER_OTLP_ENDPOINT           where to; by itself, as OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, it asks for otlp
    OTEL_SDK_DISABLED=true                nothing, whatever else is set

All others (OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, OTEL_BSP_*) are read by OpenTelemetry.
The one place beside the settings that looks at the environment: these names are a standard's, and not ours to rename.
"""

import os
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING

from starlette.applications import Starlette

if TYPE_CHECKING:
    from server.telemetry.tracing import Tracing

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_GROUP = "opentelemetry_traces_exporter"  # by which packages offer exporters
INSTALL = "pip install 'adakron[telemetry]'"


class TracingError(Exception):
    """Traces are asked for and cannot be had; the message is the one line to show."""


def wanted_exporters(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The names of the exporters that are asked for, as packages offer them; () where no traces are wanted."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    has_endpoint = any(environment.get(name) for name in _ENDPOINTS)
    named = environment.get("OTEL_TRACES_EXPORTER", "otlp" if has_endpoint else "")
    names = [name.strip() for name in named.split(",")]
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), "http/protobuf")
    otlp = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    return tuple(otlp if name == "otlp" else name for name in names if name not in ("", "none"))


def check_exporters(names: tuple[str, ...]) -> None:
    """Raises TracingError where one of them is not installed."""
    for name in names:
        _entry_point(name)


def open_tracing(process: str) -> "Tracing | None":
    """What traces this process, or None where no traces are wanted. Raises TracingError."""
    names = wanted_exporters()
    if not names:
        return None
    offered = [_entry_point(name) for name in names]
    from server.telemetry.tracing import Tracing

    return Tracing.exporting([point.load()() for point in offered], process)


def trace_requests(app: Starlette, tracing: "Tracing | None") -> None:
    """Have every request of `app` traced, where traces are wanted."""
    if tracing is None:
        return
    from server.telemetry.tracing import TracedRequests

    app.add_middleware(TracedRequests, tracing=tracing)


def _entry_point(name: str) -> EntryPoint:
    found = next(iter(entry_points(group=_GROUP, name=name)), None)
    if found is None or find_spec("opentelemetry.sdk") is None:
        raise TracingError(f"OTEL_* variables ask for traces by {name[:64]!r}, which is not installed; {INSTALL}")
    return found
