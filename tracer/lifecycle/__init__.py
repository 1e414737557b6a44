"""The family graph: events in, fates out.  Pure: no I/O, and no clock of its own."""
