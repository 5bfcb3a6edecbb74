"""The verbs of `adakron` that talk to a running server: push, list, show, activate, rollback, split, rm, export, sync.

ADAKRON_URL names the server, ADAKRON_API_KEY the key. What a verb found out goes to stdout, what went wrong to stderr
in one line with exit code 1. Knows argparse and printing; `server.client` and `server.sync` do the work.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.client import AdaKron
    from server.client.replies import ActivateReply, DeleteReply, SplitDone

FAILED = 1
_DEFAULT_URL = "http://127.0.0.1:8000"


def add_commands(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verbs to a command line."""
    push = _add(verbs, "push", _push, "register an artefact, and activate it")
    push.add_argument("path", type=Path, help="adapter_model.safetensors, or the folder it is in")
    push.add_argument("name", nargs="?", help="name of the adapter (default: that of the folder)")
    push.add_argument("--stage", action="store_true", help="do not activate: it answers as NAME@VERSION alone")

    listing = _add(verbs, "list", _list, "list the adapters of the server")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")

    show = _add(verbs, "show", _show, "show one adapter: versions, split, history")
    show.add_argument("name")
    show.add_argument("--json", action="store_true", help="all the server says of it")

    activate = _add(verbs, "activate", _activate, "let a name answer with a version")
    activate.add_argument("name")
    activate.add_argument("version", type=int)

    rollback = _add(verbs, "rollback", _rollback, "let a name answer with the version before, or another one")
    rollback.add_argument("name")
    rollback.add_argument("--to", type=int, metavar="VERSION", help="(default: the one that was active before)")

    split = _add(verbs, "split", _split, "share the calls to a name out among versions: split NAME 3=90 4=10")
    split.add_argument("name")
    split.add_argument("weights", nargs="*", type=_weight, metavar="VERSION=PERCENT")
    split.add_argument("--shadow", type=int, metavar="VERSION", help="compare its answers, and return none of them")

    remove = _add(verbs, "rm", _remove, "remove an adapter, or one version: rm NAME[@VERSION]")
    remove.add_argument("reference", metavar="NAME[@VERSION]")

    export = _add(verbs, "export", _export, "write an artefact of the server to a folder")
    export.add_argument("reference", metavar="NAME[@VERSION]")
    export.add_argument("folder", type=Path)

    sync = _add(verbs, "sync", _sync, "make the server match a folder; shows what would change unless --apply")
    sync.add_argument("folder", type=Path, help="holds NAME/adapter_model.safetensors, or ORG/NAME/...")
    sync.add_argument("--apply", action="store_true", help="do it")
    sync.add_argument("--prune", action="store_true", help="also remove what is on the server alone")


def _add(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]",
    verb: str,
    run: Callable[[argparse.Namespace, "AdaKron"], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(verb, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("--url", default=None, help=f"the server (default: ADAKRON_URL, or {_DEFAULT_URL})")
    parser.set_defaults(run=lambda options: _run(run, options))
    return parser


def _run(run: Callable[[argparse.Namespace, "AdaKron"], int], options: argparse.Namespace) -> int:
    from adakron.errors import AdaKronError
    from server.client import AdaKron, ClientError
    from server.errors import ServerError

    try:
        with AdaKron(options.url) as client:
            return run(options, client)
    except (ClientError, AdaKronError, ServerError) as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}")


def _complain(text: str) -> int:
    print(f"adakron: {' '.join(text.split())}", file=sys.stderr)
    return FAILED


def _push(options: argparse.Namespace, client: "AdaKron") -> int:
    from adakron.artefact import WEIGHTS_FILE

    path: Path = options.path / WEIGHTS_FILE if options.path.is_dir() else options.path
    name = options.name or path.absolute().parent.name
    reply = client.put(name, path, activate=not options.stage)
    print(_state(reply) + (", which changes nothing that the probe texts show" if reply["no_effect"] else ""))
    return 0


def _list(options: argparse.Namespace, client: "AdaKron") -> int:
    for adapter in client.adapters():
        if options.json:
            print(json.dumps(adapter, ensure_ascii=False))
            continue
        version = "staged" if adapter["version"] is None else f"@{adapter['version']}"
        share = " split" if adapter["split"] else ""
        used = adapter["last_used_at"] or "never"
        print(
            f"{adapter['name']}\t{version}{share}\t{adapter['size_bytes'] or 0:,} bytes\t{adapter['tier']}"
            f"\t{adapter['requests']} requests\tlast {used}"
        )
    return 0


def _show(options: argparse.Namespace, client: "AdaKron") -> int:
    adapter = client.adapter(options.name)
    if options.json:
        print(json.dumps(adapter, ensure_ascii=False, indent=1))
        return 0
    print(f"{adapter['name']}: {adapter['problem_type']}, {adapter['num_labels']} labels, ETag {adapter['generation']}")
    for version in adapter["versions"]:
        mark = "active" if version["active"] else "kept"
        print(f"  @{version['version']}\t{mark}\t{version['sha256'][:12]}\t{version['created_at']}")
    if adapter["split"]:
        print(f"  split {json.dumps(adapter['split'])}, shadow rows {json.dumps(adapter['shadow_rows'])}")
    for event in adapter["history"]:
        changed = "" if event["version"] is None else f"@{event['version']}"
        who = event["key_id"] or event["source"] or "unknown"
        print(f"  {event['at']}\t{event['action']} {changed}\tgeneration {event['generation']}\tby {who}")
    return 0


def _activate(options: argparse.Namespace, client: "AdaKron") -> int:
    print(_state(client.activate(options.name, options.version)))
    return 0


def _rollback(options: argparse.Namespace, client: "AdaKron") -> int:
    print(_state(client.rollback(options.name, options.to)))
    return 0


def _split(options: argparse.Namespace, client: "AdaKron") -> int:
    reply = client.split(options.name, dict(options.weights), options.shadow)
    shares = ", ".join(f"{weight} % to @{version}" for version, weight in reply["weights"].items())
    shadow = "" if reply["shadow"] is None else f"; shadow @{reply['shadow']}"
    print(f"{reply['name']}: {shares}{shadow}{_lag(reply)}")
    return 0


def _remove(options: argparse.Namespace, client: "AdaKron") -> int:
    name, version = _reference(options.reference)
    reply = client.delete(name, version)
    freed = ", ".join(f"{tier} {size:,}" for tier, size in reply["freed_bytes"].items() if size)
    print(
        f"removed {name} {', '.join(f'@{n}' for n in reply['versions'])}; bytes freed: {freed or 'none'}{_lag(reply)}"
    )
    return 0


def _export(options: argparse.Namespace, client: "AdaKron") -> int:
    from adakron import Adapter

    name, version = _reference(options.reference)
    if version is None:
        version = client.adapter(name)["version"]
    adapter = Adapter.from_bytes(client.export(name, version))
    adapter.write(options.folder)
    print(f"{name}@{version} ({adapter.sha256[:12]}) is in {options.folder}")
    return 0


def _sync(options: argparse.Namespace, client: "AdaKron") -> int:
    from tqdm import tqdm

    from server.sync import apply_plan, make_plan, read_folder

    if not options.folder.is_dir():
        return _complain(f"{options.folder} is not a folder")
    files = read_folder(options.folder)
    plan = make_plan(files, client.adapters())
    changes = [("add", plan.add), ("replace", plan.replace), ("remove", plan.remove if options.prune else ())]
    if not options.apply:
        for verb, names in changes:
            for name in names:
                print(f"{verb} {name}")
        left = "" if options.prune else f", {len(plan.remove)} on the server alone"
        print(f"{plan.unchanged} unchanged{left}; nothing was changed: --apply does it")
        return 0
    total = sum(len(names) for _, names in changes)
    failed = 0
    with tqdm(total=total, unit="adapter", disable=None) as bar:  # none where nobody looks at it
        for outcome in apply_plan(plan, files, client, prune=options.prune):
            bar.update()
            if outcome.complaint is not None:
                failed += 1
                bar.clear()
                _complain(f"{outcome.name}: {outcome.complaint}")
    print(f"{total - failed} changed, {plan.unchanged} unchanged, {failed} failed")
    return FAILED if failed else 0


def _weight(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9][0-9]{0,8}=[0-9]{1,3}", text):
        raise argparse.ArgumentTypeError(f"expected VERSION=PERCENT, such as 3=90; got {text!r}")
    version, _, percent = text.partition("=")
    return int(version), int(percent)


def _reference(text: str) -> tuple[str, int | None]:
    from server.names import parse_reference

    reference = parse_reference(text)
    return reference.name, reference.version


def _state(reply: "ActivateReply") -> str:
    what = "active" if reply["active"] else "staged"
    return f"{reply['name']}@{reply['version']} is {what} ({reply['sha256'][:12]}){_lag(reply)}"


def _lag(reply: "ActivateReply | SplitDone | DeleteReply") -> str:
    return f"; not yet on {', '.join(reply['lagging'])}" if reply["lagging"] else ""
