"""The verbs `adakron keys create | list | revoke`: they write the catalogue's database, whether a server runs or not.

Every server on that database follows within about a second. A key goes to stdout, alone and once, so that a script
can take it; all else goes to stderr. Knows argparse and printing; `server.access.store` does the work.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from server.access.keys import SCOPES, tenant_prefix

if TYPE_CHECKING:
    from server.access.keys import Key
    from server.access.store import KeyStore

FAILED = 1
_DAY_S = 24 * 3600
_MAX_DAYS = 36_500
_MAX_ROWS = 1_000_000_000


def add_commands(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb to a command line."""
    keys = verbs.add_parser(
        "keys", help="make, list and revoke API keys", description="Make, list and revoke API keys."
    )
    actions = keys.add_subparsers(title="actions", metavar="ACTION", required=True)

    create = _add(actions, "create", _create, "make a key, and show it this once")
    create.add_argument("--scopes", nargs="+", choices=SCOPES, required=True, help="what it opens", metavar="SCOPE")
    create.add_argument("--prefix", type=tenant_prefix, metavar="TENANT", help="only adapters named TENANT/...")
    create.add_argument("--expires-days", type=_between(1, _MAX_DAYS), metavar="DAYS", help="(default: it does not)")
    create.add_argument(
        "--rows-per-minute", type=_between(1, _MAX_ROWS), metavar="ROWS", help="(default: as the server's setting)"
    )
    create.add_argument("--note", default="", help="for people: whose it is, or what for")

    listing = _add(actions, "list", _list, "list the keys, without their secrets")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")

    revoke = _add(actions, "revoke", _revoke, "end a key for good")
    revoke.add_argument("id", help="the part between the underscores, as `list` shows it")


def _add(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]",
    action: str,
    run: Callable[[argparse.Namespace, "KeyStore"], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = actions.add_parser(action, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("--state-dir", help="of the server (default: ADAKRON_STATE_DIR, or the server's own default)")
    parser.add_argument(
        "--catalogue-url", help="of the server (default: ADAKRON_CATALOGUE_URL, or in the state folder)"
    )
    parser.set_defaults(run=lambda options: _run(run, options))
    return parser


def _run(run: Callable[[argparse.Namespace, "KeyStore"], int], options: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from server import state
    from server.errors import ServerError
    from server.settings import Settings

    given = {name: getattr(options, name) for name in ("state_dir", "catalogue_url")}
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
        state.make_folder(settings.state_dir)
        state.check_not_restoring(settings.state_dir)
        state.check_complete(settings.catalogue, settings.open_blobs())
        store = settings.open_keys(is_writer=True)
    except ValidationError as error:
        return _complain(error.errors()[0]["msg"].removeprefix("Value error, "))
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}")
    except ServerError as error:
        return _complain(f"{error}; {error.hint}" if error.hint else str(error))
    try:
        return run(options, store)
    except ServerError as error:
        return _complain(str(error))
    finally:
        store.close()


def _create(options: argparse.Namespace, store: "KeyStore") -> int:
    if len(options.note) > 128 or not options.note.isprintable():
        return _complain("a note has at most 128 characters, all printable")
    days = options.expires_days
    secret, key = store.create(
        options.scopes,
        prefix=options.prefix,
        expires_s=None if days is None else int(time.time()) + days * _DAY_S,
        rows_per_minute=options.rows_per_minute,
        note=options.note,
    )
    print(secret)
    print(
        f"key {key.id}: {_what(key)}; works within about a second where a server runs. It is not shown again: keep it "
        "where secrets are kept, and give it to clients as ADAKRON_API_KEY.",
        file=sys.stderr,
    )
    return 0


def _list(options: argparse.Namespace, store: "KeyStore") -> int:
    _, keys = store.all()
    now_s = time.time()
    for key in keys:
        if options.json:
            print(json.dumps(_public(key, now_s), ensure_ascii=False))
            continue
        note = f"\t{key.note}" if key.note else ""
        print(f"{key.id}\t{_status(key, now_s)}\t{_what(key)}\tsince {_date(key.created_s)}{note}")
    return 0


def _revoke(options: argparse.Namespace, store: "KeyStore") -> int:
    if not store.revoke(options.id):
        return _complain(f"there is no key {options.id[:64]!r}; `adakron keys list` shows them")
    print(f"key {options.id} is revoked; servers that run refuse it within about a second")
    return 0


def _what(key: "Key") -> str:
    parts = [" ".join(scope for scope in SCOPES if scope in key.scopes)]
    if key.prefix is not None:
        parts.append(f"for {key.prefix}")
    if key.rows_per_minute is not None:
        parts.append(f"{key.rows_per_minute} rows a minute")
    if key.expires_s is not None:
        parts.append(f"until {_date(key.expires_s)}")
    return ", ".join(parts)


def _public(key: "Key", now_s: float) -> dict[str, Any]:
    return {
        "id": key.id,
        "status": _status(key, now_s),
        "scopes": [scope for scope in SCOPES if scope in key.scopes],
        "prefix": key.prefix,
        "rows_per_minute": key.rows_per_minute,
        "created_at": _date(key.created_s),
        "expires_at": None if key.expires_s is None else _date(key.expires_s),
        "revoked_at": None if key.revoked_s is None else _date(key.revoked_s),
        "note": key.note,
    }


def _status(key: "Key", now_s: float) -> str:
    if key.revoked_s is not None:
        return "revoked"
    return "live" if key.is_live(now_s) else "expired"


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _between(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 12 and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"expected a number from {least} to {most}; got {text[:64]!r}")
        return int(text)

    return parse


def _complain(text: str) -> int:
    print(f"adakron: {' '.join(text.split())}", file=sys.stderr)
    return FAILED
