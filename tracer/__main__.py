"""``python -m tracer``: the same as the ``forktrace`` command."""

from tracer.cli import main

main()
