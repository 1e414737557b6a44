"""Exports: a finished trace in the formats of other programs.

One module a format, each with ``write(trace, stream, all_forks)``; ``formats`` lists them, ``attribution`` is what all
of them draw: how many children each stack forked.
"""
