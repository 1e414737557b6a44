"""README.md and docs/*.md against the repository: what they link to, call, name and quote must be there."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tracer.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FIGURE = re.compile(r"\d[\d.,]* ?(?:ms|us|µs|ns)\b|\d[\d.,]*x(?= |$|[.,;])|\d ?% (?:slower|faster|of a CPU)")
COMMAND = re.compile(r"`(?:sudo )?(?:\./)?(?:scripts/|forktrace |pytest |strace |perf )")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code_and_prose(page: Path) -> tuple[list[str], str]:
    """The lines of code blocks, indented or fenced, and the text without them.  Output ("```text") is neither."""
    code, prose, fenced, output, may_begin = [], [], False, False, True
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fenced, output = not fenced, line == "```text"
        elif fenced and output:
            continue
        elif fenced or (line.startswith("    ") and may_begin):
            code.append(line.strip())
        else:
            prose.append(line)
            may_begin = not line.strip()  # an indented block does not interrupt a paragraph
    return code, "\n".join(prose)


def calls(page: Path) -> Iterator[list[str]]:
    """What a reader is told to type, in words and without sudo."""
    code, prose = code_and_prose(page)
    for line in [*code, *re.findall(r"`([^`\n]+)`", prose)]:
        if re.match(r"(?:sudo )?(?:\S*/)?(?:forktrace(?: |$)|scripts/)", line):
            words = shlex.split(line, comments=True)
            words = words[words[0] == "sudo" :]
            end = next((at for at, word in enumerate(words) if word in ("|", ">", "&")), None)
            yield words[:end]


@each_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    _, prose = code_and_prose(page)
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", prose)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@each_page
def test_what_one_is_told_to_type_exists(page: Path) -> None:
    for program, *words in calls(page):
        if "scripts/" in program:
            assert os.access(ROOT / program, os.X_OK), program
        else:
            parse([word for word in words if word not in ("…", "...")])


def parse(words: list[str]) -> None:
    """Raises click.UsageError for an option that is not there.  Values and arguments are not looked at."""
    command: click.Command = cli
    context: click.Context | None = None
    while True:
        context = click.Context(command, parent=context, **command.context_settings)
        _, words, _ = command.make_parser(context).parse_args(list(words))
        if not (isinstance(command, click.Group) and words):
            return
        name, *words = words
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name}"
        command = found


@each_page
def test_measured_figures_carry_the_command_that_measures_them(page: Path) -> None:
    _, prose = code_and_prose(page)
    whole_page = page.name == "overhead.md"  # all of it is one command's output, named at its top
    paragraphs = [prose] if whole_page else re.split(r"\n\s*\n|\n(?=[-|] |\d+\. )", prose)
    assert [text for text in paragraphs if FIGURE.search(text) and not COMMAND.search(text)] == []


def test_the_bounds_are_those_of_the_code() -> None:
    rows = re.findall(
        r"^\| `(tracer[\w.]+)\.([A-Z_]+)` \| (\d+) \|", read("docs/architecture.md"), re.MULTILINE
    )
    assert len(rows) > 10
    wrong = {
        f"{module}.{name}": value
        for module, name, value in rows
        if getattr(importlib.import_module(module), name) != int(value)
    }
    assert wrong == {}


def test_the_reasons_why_a_stack_ends_are_those_of_the_code() -> None:
    section = read("docs/stacks.md").partition("## Why a stack ends early")[2].partition("\n## ")[0]
    reasons = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    assert len(reasons) > 8
    sources = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tracer").rglob("*.py"))
    parts = [part.strip() for reason in reasons for part in reason.split("…")]
    assert [part for part in parts if part not in sources] == []


def test_the_traps_are_numbered_as_the_code_numbers_them_and_name_their_scenarios() -> None:
    section = read("docs/lifecycle.md").partition("## Traps")[2]
    traps = dict(re.findall(r"^(\d+)\. (.+?)(?=^\d+\. |\Z)", section, re.MULTILINE | re.DOTALL))
    assert list(traps) == [str(number) for number in range(1, 21)]
    used = {
        number
        for place in ("bpf", "tracer")
        for file in (ROOT / place).rglob("*.[cph]*")
        if file.suffix in (".c", ".h", ".py")
        for number in re.findall(r"\btrap (\d+)", file.read_text(encoding="utf-8"))
    }
    assert used <= set(traps)
    named = {
        (scenario, int(number))
        for number, text in traps.items()
        for scenario in re.findall(r"`(\w+)`", text.partition("*Shown by* fates")[2].partition(";")[0])
    }
    assert named == {(scenario, trap) for scenario, covered in scenarios().items() for trap in covered}


def scenarios() -> dict[str, tuple[int, ...]]:
    """The traps that each scenario covers, as tests/kernel/test_fates.py says."""
    for node in ast.parse(read("tests/kernel/test_fates.py")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "SCENARIOS" and node.value:
            found: dict[str, tuple[int, ...]] = ast.literal_eval(node.value)
            return found
    raise AssertionError("no SCENARIOS")
