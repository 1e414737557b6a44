"""scripts/bench: what tracing costs.  Each part is a module; this one runs those asked for and prints their tables."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import consumer
import kernel
import machine
import slowdown
import startup
import tables
from tracers import ROOT

PARTS = ("slowdown", "consumer", "start", "memory", "kernel")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures what tracing costs.")
    parser.add_argument("--quick", action="store_true", help="few repetitions: a minute and a half")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there, too")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: all ({' '.join(PARTS)})")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    begin = time.monotonic()
    found: dict[str, Any] = {"machine": machine.describe()}
    say(", ".join(f"{key}: {value}" for key, value in found["machine"].items()))
    with TemporaryDirectory(prefix="forktrace-bench-") as directory:
        programs = Path(directory)
        make = ["make", "--silent", "-C", str(ROOT / "tests/programs"), f"BUILD={directory}"]
        subprocess.run(make, check=True)
        for part in arguments.parts or PARTS:
            say("")
            figures, text = measure(part, programs, arguments.quick)
            found[part] = figures
            say(text)
    say(f"\n{time.monotonic() - begin:.0f} s in all")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1, default=dataclasses.asdict) + "\n")
    return 0


def measure(part: str, programs: Path, quick: bool) -> tuple[Any, str]:
    """The figures of one part, and their table."""
    if part == "slowdown":
        rows, untraced = slowdown.measure(programs, 3 if quick else 9)
        return rows, tables.slowdown(rows, untraced)
    if part == "consumer":
        consumed = consumer.measure(programs, 0.5 if quick else 3)
        replayed = consumer.replay(programs, 5_000 if quick else 20_000)
        rest = consumer.at_rest(programs, 2 if quick else 5)
        figures = {"live": consumed, "replayed": replayed, "at_rest": rest}
        return figures, tables.consumer(consumed, replayed, rest)
    if part == "start":
        times = startup.measure(programs, 3 if quick else 7)
        return times, tables.times(times)
    if part == "memory":
        memory = startup.memory(programs, 20_000 if quick else 100_000)
        return memory, tables.memory(memory)
    loads = kernel.measure(programs, quick)
    return loads, tables.kernel(loads)


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
