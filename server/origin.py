"""Who asked for a change, as the log of changes has it."""

from starlette.requests import Request

from server.access.caller import current_caller
from server.error_replies import request_id_of
from server.records import Origin


def origin_of(request: Request) -> Origin:
    """The key and the address that a request came from, and its id."""
    source = None if request.client is None else request.client.host[:64]
    return Origin(current_caller().key_id, source, request_id_of(request.scope))
