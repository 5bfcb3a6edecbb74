"""The JSON of the admin routes' replies, made of what `server.registry` and `server.bulk` return.

Knows field names, and the status of each artefact of a bulk upload; nothing of requests.
"""

from dataclasses import asdict
from typing import Any

from server import errors
from server.bulk import BulkResult, Item
from server.error_replies import as_server_error, error_object
from server.names import MAX_NAME_CHARACTERS
from server.registry import Activated, Deleted, Divided, Put, Shown

LISTED_LABELS = 256


def summary(adapter: Shown) -> dict[str, Any]:
    """One adapter in a list of all."""
    entry, config = adapter.entry, adapter.config
    active = entry.versions[entry.active] if entry.active is not None else None
    return {
        "name": adapter.name,
        "version": entry.active,
        "sha256": active.sha256 if active else None,
        "size_bytes": active.size_bytes if active else None,
        "versions": list(entry.versions),
        "generation": entry.generation,
        "problem_type": config.problem_type if config else None,
        "takes_pair": config.takes_pair if config else None,
        "num_labels": config.num_labels if config else None,
        "labels": list(config.label_names[:LISTED_LABELS]) if config else [],
        "resident": list(adapter.resident[entry.active]) if entry.active is not None else [],
        "tier": adapter.tiers[entry.active] if entry.active is not None else "store",
        "requests": adapter.requests,
        "last_used_at": adapter.last_used_at,
        "split": None if entry.split is None else entry.split.to_dict(),
    }


def description(adapter: Shown) -> dict[str, Any]:
    """One adapter whole: its versions, configuration and history."""
    entry = adapter.entry
    versions = [
        {
            "version": number,
            "sha256": row.sha256,
            "size_bytes": row.size_bytes,
            "created_at": row.created_at,
            "no_effect": row.no_effect,
            "active": number == entry.active,
            "resident": list(adapter.resident[number]),
            "tier": adapter.tiers[number],
        }
        for number, row in entry.versions.items()
    ]
    return {
        **summary(adapter),
        "versions": versions,
        "shadow_rows": adapter.shadow_rows,
        "config": adapter.config.to_dict() if adapter.config else None,
        "history": [asdict(event) for event in adapter.history],
    }


def put_reply(name: str, result: Put) -> dict[str, Any]:
    """What a registration did."""
    change = result.change
    return {
        "name": name,
        "version": change.version,
        "sha256": change.sha256,
        "active": change.is_active,
        "generation": change.generation,
        "no_effect": result.no_effect,
        "lagging": list(result.lagging),
    }


def bulk_reply(result: BulkResult) -> dict[str, Any]:
    """What a bulk registration did, an entry an artefact."""
    results = [_item_reply(item) for item in result.items]
    failed = sum("error" in reply for reply in results)
    return {
        "results": results,
        "registered": len(results) - failed,
        "failed": failed,
        "lagging": list(result.lagging),
    }


def _item_reply(item: Item) -> dict[str, Any]:
    if isinstance(item.outcome, Exception):
        error = as_server_error(item.outcome)
        name = item.name if len(item.name) <= MAX_NAME_CHARACTERS else errors.quoted(item.name)
        return {"name": name, "status": error.status, "error": {**error.details, **error_object(error)}}
    change = item.outcome
    return {
        "name": item.name,
        "status": 201 if change.is_new else 200,
        "version": change.version,
        "sha256": change.sha256,
        "active": change.is_active,
        "generation": change.generation,
        "no_effect": change.no_effect,
    }


def activate_reply(name: str, result: Activated) -> dict[str, Any]:
    """Which version answers now."""
    change = result.change
    return {
        "name": name,
        "version": change.version,
        "sha256": change.sha256,
        "active": True,
        "generation": change.generation,
        "lagging": list(result.lagging),
    }


def split_reply(name: str, result: Divided) -> dict[str, Any]:
    """How the traffic is divided now."""
    change = result.change
    return {
        "name": name,
        **change.split.to_dict(),
        "generation": change.generation,
        "lagging": list(result.lagging),
    }


def delete_reply(name: str, result: Deleted) -> dict[str, Any]:
    """What was freed, by tier in bytes."""
    return {
        "name": name,
        "versions": list(result.versions),
        "freed_bytes": {
            "device": result.device_bytes,
            "host": result.host_bytes,
            "disk": result.freed.disk_bytes,
            "remote": result.freed.remote_bytes,
        },
        "generation": result.generation,
        "lagging": list(result.lagging),
    }
