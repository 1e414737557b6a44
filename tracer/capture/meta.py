"""What a capture says of its trace as a whole: when, where, of whom, and what may be wrong with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tracer.trace import Reconciliation, Target


@dataclass(frozen=True, slots=True)
class Meta:
    """started_at: seconds since the epoch, at the moment that CLOCK_BOOTTIME was ``start_ns``.
    end_ns: CLOCK_BOOTTIME of the last flush.  finished: the tracer ended the trace itself.
    """

    version: str
    host: Mapping[str, Any]
    started_at: float
    start_ns: int
    targets: tuple[Target, ...] = ()
    min_age_s: float = 1.0
    lost_events: int = 0
    incomplete_because: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    limits: tuple[Mapping[str, Any], ...] = field(default=())
    reconciliation: Reconciliation | None = None
    finished: bool = False
    end_ns: int = 0


def to_rows(meta: Meta) -> dict[str, str]:
    """Field name to JSON text, as the table ``meta`` holds it."""
    return {name: json.dumps(value) for name, value in asdict(meta).items()}


def from_rows(rows: Mapping[str, str]) -> Meta:
    """The inverse.  Nothing in ``rows`` is trusted: raises ValueError for a missing or mistyped field."""
    try:
        fields = {name: json.loads(rows[name]) for name in _KINDS}
    except KeyError as error:
        raise ValueError(f"meta: {error} is missing") from None
    except RecursionError:
        raise ValueError("meta: nested too deep") from None
    for name, kinds in _KINDS.items():
        if type(fields[name]) not in kinds:
            raise ValueError(f"meta: {name} is no {kinds[0].__name__}")
    numbers = fields["started_at"], fields["min_age_s"]
    if not all(0 <= number < 1e12 for number in numbers):  # also false for NaN
        raise ValueError("meta: a time is out of range")
    fields["targets"] = tuple(
        Target(_typed(int, each, "pid"), _typed(str, each, "comm")) for each in _each(fields["targets"], dict)
    )
    fields["incomplete_because"] = _each(fields["incomplete_because"], str)
    fields["notes"] = _each(fields["notes"], str)
    fields["limits"] = _each(fields["limits"], dict)
    if (found := fields["reconciliation"]) is not None:
        fields["reconciliation"] = Reconciliation(
            standing=_typed(int, found, "standing"),
            explained=_typed(int, found, "explained"),
            pre_existing=_typed(int, found, "pre_existing"),
            unexplained=_typed(int, found, "unexplained"),
            unexplained_pids=_each(_typed(list, found, "unexplained_pids"), int),
        )
    return Meta(**fields)


_KINDS: Mapping[str, tuple[type, ...]] = {
    "version": (str,),
    "host": (dict,),
    "started_at": (float, int),
    "start_ns": (int,),
    "targets": (list,),
    "min_age_s": (float, int),
    "lost_events": (int,),
    "incomplete_because": (list,),
    "notes": (list,),
    "limits": (list,),
    "reconciliation": (dict, type(None)),
    "finished": (bool,),
    "end_ns": (int,),
}


def _typed(kind: type, mapping: Mapping[str, Any], name: str) -> Any:
    value = mapping.get(name)
    if type(value) is not kind:
        raise ValueError(f"meta: {name} is no {kind.__name__}")
    return value


def _each(values: list[Any], kind: type) -> tuple[Any, ...]:
    if any(type(value) is not kind for value in values):
        raise ValueError(f"meta: an entry is no {kind.__name__}")
    return tuple(values)
