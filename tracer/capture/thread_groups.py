"""A group of threads as the JSON text that the table ``thread_groups`` holds, both ways."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields
from typing import Any

from tracer.lifecycle.snapshot import MAX_EXAMPLES, MAX_NAMES, ThreadGroup

KINDS = ("thread", "unjoined_thread")
FIELDS = frozenset(each.name for each in fields(ThreadGroup))


def group_to_json(group: ThreadGroup) -> str:
    return json.dumps({name: getattr(group, name) for name in sorted(FIELDS)})


def group_from_json(text: str) -> ThreadGroup:
    """Nothing in the text is trusted: raises ValueError for what ``group_to_json`` does not write."""
    try:
        stored = json.loads(text)
    except RecursionError:
        raise ValueError("thread group: nested too deep") from None
    if not isinstance(stored, dict) or set(stored) != FIELDS:
        raise ValueError("thread group: other fields than it has")
    numbers = {name: _integer(stored[name]) for name in ("count", "young", "first_ns", "last_ns")}
    held = stored["held_bytes"]
    return ThreadGroup(
        **numbers,
        parents=Counter({int(key): n for key, n in _counts(stored["parents"]).items()}),
        comms=Counter(_counts(stored["comms"])),
        examples=[_integer(each) for each in _list(stored["examples"])],
        held_bytes=None if held is None else _integer(held),
    )


def _integer(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("thread group: a count is none")
    return value


def _counts(value: Any) -> dict[str, int]:
    if not isinstance(value, dict) or len(value) > MAX_NAMES + 1:
        raise ValueError("thread group: no names with counts")
    return {key: _integer(n) for key, n in value.items()}


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > MAX_EXAMPLES:
        raise ValueError("thread group: no list of tids")
    return value
