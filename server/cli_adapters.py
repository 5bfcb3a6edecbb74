"""The verbs that manage a server's adapters: push, list, show, activate, rollback, split, rm, export, sync.

ADAKRON_URL names the server, ADAKRON_API_KEY the key. Knows arguments and printing; `server.client` and `server.sync`
do the work, and `server.cli_errors` says what went wrong.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli_arguments import Json, Name, Reference, Url, connect, is_watched, print_json
from server.cli_errors import FAILED, USAGE, CommandError, complain

if TYPE_CHECKING:
    from server.client.replies import ActivateReply, AdapterSummary, DeleteReply, SplitDone
    from server.sync import Plan


def add_commands(app: typer.Typer) -> None:
    """Add the verbs to a command line."""
    for verb in (push, list_adapters, show, activate, rollback, split, remove, export, sync):
        app.command({"list_adapters": "list", "remove": "rm"}.get(verb.__name__))(verb)


def push(
    path: Annotated[Path, typer.Argument(help="adapter_model.safetensors, or the folder it is in")],
    name: Annotated[str | None, typer.Argument(help="name of the adapter (default: that of the folder)")] = None,
    stage: Annotated[bool, typer.Option("--stage", help="do not activate: it answers as NAME@VERSION alone")] = False,
    as_json: Json = False,
    url: Url = None,
) -> int:
    """Register an artefact, and activate it."""
    folder = path if path.is_dir() else path.absolute().parent
    with connect(url) as client:
        reply = client.put(name or folder.absolute().name, path, activate=not stage)
    if as_json:
        print_json(reply)
    else:
        print(_state(reply) + (", which changes nothing that the probe texts show" if reply["no_effect"] else ""))
    return 0


def list_adapters(as_json: Json = False, url: Url = None) -> int:
    """List the adapters of the server; with --json one object a line."""
    with connect(url) as client:
        adapters = client.adapters()
        if is_watched() and not as_json:
            _print_table(adapters)
            return 0
        for adapter in adapters:
            if as_json:
                print_json(adapter)
            else:
                print("\t".join(_columns(adapter)))
    return 0


def show(name: Name, as_json: Json = False, url: Url = None) -> int:
    """Show one adapter: versions, split, history."""
    with connect(url, name) as client:
        adapter = client.adapter(name)
    if as_json:
        print_json(adapter, indent=1)
        return 0
    print(f"{adapter['name']}: {adapter['problem_type']}, {adapter['num_labels']} labels, ETag {adapter['generation']}")
    for version in adapter["versions"]:
        mark = "active" if version["active"] else "kept"
        print(f"  @{version['version']}\t{mark}\t{version['sha256'][:12]}\t{version['created_at']}")
    if adapter["split"]:
        shares, shadow = adapter["split"], adapter["shadow_rows"]
        print(f"  split {_shares(shares['weights'], shares['shadow'])}; shadow rows {shadow or 'none'}")
    for event in adapter["history"]:
        changed = "" if event["version"] is None else f"@{event['version']}"
        who = event["key_id"] or event["source"] or "unknown"
        print(f"  {event['at']}\t{event['action']} {changed}\tgeneration {event['generation']}\tby {who}")
    return 0


def activate(name: Name, version: int, as_json: Json = False, url: Url = None) -> int:
    """Let a name answer with a version."""
    with connect(url, name) as client:
        return _print_state(client.activate(name, version), as_json)


def rollback(
    name: Name,
    to: Annotated[int | None, typer.Option(metavar="VERSION", help="(default: the one that was active before)")] = None,
    as_json: Json = False,
    url: Url = None,
) -> int:
    """Let a name answer with the version before, or another one."""
    with connect(url, name) as client:
        return _print_state(client.rollback(name, to), as_json)


def split(
    name: Name,
    weights: Annotated[list[str] | None, typer.Argument(metavar="[VERSION=PERCENT]...")] = None,
    shadow: Annotated[
        int | None, typer.Option(metavar="VERSION", help="compare its answers, and return none of them")
    ] = None,
    as_json: Json = False,
    url: Url = None,
) -> int:
    """Share the calls to a name out among versions: split NAME 3=90 4=10."""
    shares = dict(_weight(text) for text in weights or ())
    with connect(url, name) as client:
        reply = client.split(name, shares, shadow)
    if as_json:
        print_json(reply)
    else:
        print(f"{reply['name']}: {_shares(reply['weights'], reply['shadow'])}{_lag(reply)}")
    return 0


def remove(reference: Reference, as_json: Json = False, url: Url = None) -> int:
    """Remove an adapter, or one version: rm NAME[@VERSION]."""
    name, version = _parsed(reference)
    with connect(url, name) as client:
        reply = client.delete(name, version)
    if as_json:
        print_json(reply)
        return 0
    freed = ", ".join(f"{tier} {size:,}" for tier, size in reply["freed_bytes"].items() if size) or "none"
    print(f"removed {name} {', '.join(f'@{n}' for n in reply['versions'])}; bytes freed: {freed}{_lag(reply)}")
    return 0


def export(reference: Reference, folder: Path, as_json: Json = False, url: Url = None) -> int:
    """Write an artefact of the server to a folder."""
    from adakron import Adapter

    name, version = _parsed(reference)
    with connect(url, name) as client:
        if version is None:
            version = client.adapter(name)["version"]
        adapter = Adapter.from_bytes(client.export(name, version))
    adapter.write(folder)
    if as_json:
        print_json({"name": name, "version": version, "sha256": adapter.sha256, "folder": str(folder)})
    else:
        print(f"{name}@{version} ({adapter.sha256[:12]}) is in {folder}")
    return 0


def sync(
    folder: Annotated[Path, typer.Argument(help="holds NAME/adapter_model.safetensors, or ORG/NAME/...")],
    apply: Annotated[bool, typer.Option("--apply", help="do it")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="also remove what is on the server alone")] = False,
    as_json: Json = False,
    url: Url = None,
) -> int:
    """Make the server match a folder; shows what would change unless --apply."""
    from server.cli_progress import progress
    from server.sync import apply_plan, make_plan, read_folder

    if not folder.is_dir():
        raise CommandError(f"{folder} is not a folder")
    files = read_folder(folder)
    with connect(url) as client:
        plan = make_plan(files, client.adapters())
        if not apply:
            _print_plan(plan, prune=prune, as_json=as_json)
            return 0
        changes = [*plan.add, *plan.replace, *(plan.remove if prune else ())]
        failed: dict[str, str] = {}
        with progress("adapters", len(changes)) as advance:
            for outcome in apply_plan(plan, files, client, prune=prune):
                advance()
                if outcome.complaint is not None:
                    failed[outcome.name] = outcome.complaint
    for name, complaint in failed.items():
        complain(f"{name}: {complaint}")
    changed = len(changes) - len(failed)
    if as_json:
        print_json({"changed": changed, "unchanged": plan.unchanged, "failed": failed})
    else:
        print(f"{changed} changed, {plan.unchanged} unchanged, {len(failed)} failed")
    return FAILED if failed else 0


def _print_plan(plan: "Plan", *, prune: bool, as_json: bool) -> None:
    changes = {"add": plan.add, "replace": plan.replace, "remove": plan.remove if prune else ()}
    if as_json:
        print_json({**changes, "unchanged": plan.unchanged, "surplus": plan.remove})
        return
    for verb, names in changes.items():
        for name in names:
            print(f"{verb} {name}")
    left = "" if prune else f", {len(plan.remove)} on the server alone"
    print(f"{plan.unchanged} unchanged{left}; nothing was changed: --apply does it")


def _print_table(adapters: "Iterable[AdapterSummary]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "version", "size", "tier", "requests", "last use", box=None, pad_edge=False)
    for adapter in adapters:
        table.add_row(*_columns(adapter))
    Console(markup=False, highlight=False).print(table)


def _columns(adapter: "AdapterSummary") -> tuple[str, ...]:
    version = "staged" if adapter["version"] is None else f"@{adapter['version']}"
    return (
        adapter["name"],
        version + (" split" if adapter["split"] else ""),
        f"{adapter['size_bytes'] or 0:,} bytes",
        adapter["tier"],
        f"{adapter['requests']} requests",
        f"last {adapter['last_used_at'] or 'never'}",
    )


def _print_state(reply: "ActivateReply", as_json: bool) -> int:
    if as_json:
        print_json(reply)
    else:
        print(_state(reply))
    return 0


def _weight(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9][0-9]{0,8}=[0-9]{1,3}", text):
        raise CommandError(f"{text!r} is no share", hint="write VERSION=PERCENT, such as 3=90", code=USAGE)
    version, _, percent = text.partition("=")
    return int(version), int(percent)


def _parsed(text: str) -> tuple[str, int | None]:
    from server.names import parse_reference

    reference = parse_reference(text)
    return reference.name, reference.version


def _shares(weights: dict[str, int], shadow: int | None) -> str:
    shares = ", ".join(f"{weight} % to @{version}" for version, weight in weights.items())
    return shares if shadow is None else f"{shares}; shadow @{shadow}"


def _state(reply: "ActivateReply") -> str:
    what = "active" if reply["active"] else "staged"
    return f"{reply['name']}@{reply['version']} is {what} ({reply['sha256'][:12]}){_lag(reply)}"


def _lag(reply: "ActivateReply | SplitDone | DeleteReply") -> str:
    return f"; not yet on {', '.join(reply['lagging'])}" if reply["lagging"] else ""
