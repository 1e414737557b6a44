"""Capture files: a trace as one SQLite file, written while it runs and read again without root, without bcc.

``writer`` takes the graph's snapshots once a second, ``reader`` gives the last one back, ``meta`` is what
both know of the trace as a whole, ``schema`` is the layout (docs/capture.md).
"""
