"""docs/forktrace.1 against the commands themselves: every option of each, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from tracer.cli import COMMANDS, cli

PAGE = Path(__file__).parents[2] / "docs" / "forktrace.1"


def command(name: str) -> click.Command:
    found = cli if not name else cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


def described(name: str) -> dict[frozenset[str], str]:
    """The option lists of a command's subsection: names of an option -> its whole line."""
    sections = re.split(r"^\.S[sh] ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    title = f"forktrace {name}".strip()
    (section,) = (text for text in sections if text.partition("\n")[0] == title)
    lines = [line for line in section.splitlines() if line.startswith(".It Fl")]
    return {frozenset("-" + flag for flag in re.findall(r"Fl (-?[\w-]+)", line)): line for line in lines}


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_the_page_has_the_options_that_the_command_has(name: str) -> None:
    cmd = command(name)
    context = click.Context(cmd, help_option_names=["-h", "--help"])
    options = {frozenset(p.opts): p for p in cmd.get_params(context) if isinstance(p, click.Option)}
    # click makes a command's help option once, by the context that first asked for it: any other test's.
    options = {names: option for names, option in options.items() if "--help" not in names}
    page = described(name)
    assert page.pop(frozenset(("-h", "--help")))
    assert set(page) == set(options)
    for names, option in options.items():
        if isinstance(option.type, click.Choice):
            assert f"Cm {' | '.join(option.type.choices)}" in page[names]
        assert ("Ar " in page[names] or "Cm " in page[names]) == (not option.is_flag and not option.is_eager)


def test_the_page_has_every_command_and_no_other() -> None:
    titles = re.findall(r"^\.Ss forktrace ?(.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(titles) == sorted(["", *COMMANDS])


def test_the_page_has_every_exit_status_of_the_errors() -> None:
    from tracer import errors

    statuses = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    text = PAGE.read_text(encoding="utf-8").partition(".Sh EXIT STATUS")[2].partition(".Sh")[0]
    assert {int(number) for number in re.findall(r"^\.It (\d+)$", text, re.MULTILINE)} == {0, *statuses}
