"""The kernel's side, seen from Python: compile (bcc, once), load, attach, drain.  Only ``compiler`` imports bcc."""
