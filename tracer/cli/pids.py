"""The value of -p: one pid or several with commas between, repeated or not."""

from __future__ import annotations

from collections.abc import Sequence

import click

PID_MAX_LIMIT = 1 << 22  # include/linux/threads.h


def parse_pids(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> tuple[int, ...]:
    """Callback of an option with ``multiple=True``: all pids, each once, in the order given.

    Raises click.BadParameter for what cannot be a pid.
    """
    words = [word.strip() for value in values for word in value.split(",")]
    for word in words:
        if not (word.isascii() and word.isdigit() and len(word) < 10 and 0 < int(word) <= PID_MAX_LIMIT):
            raise click.BadParameter(f"{word!r} is not a pid", ctx, param)
    return tuple(dict.fromkeys(map(int, words)))
