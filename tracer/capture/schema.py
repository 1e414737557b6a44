"""The layout of a capture file, which writer and reader share; docs/capture.md explains it to people.

The reader compares these statements with the file's own: a change needs a new ``VERSION`` and a step in
``UPGRADES``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from sqlite3 import Connection

APPLICATION_ID = 0x464B5452  # "FKTR", in the database header
VERSION = 1

TABLES: Mapping[str, str] = {
    "meta": """CREATE TABLE meta (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL             -- JSON
) WITHOUT ROWID""",
    "tasks": """CREATE TABLE tasks (    -- every process; times in ns of CLOCK_BOOTTIME, 0: not seen
  id INTEGER PRIMARY KEY,         -- pid << 32 | start time in clock ticks
  parent INTEGER NOT NULL,        -- tasks.id of the process that had to wait for it
  forker INTEGER NOT NULL,        -- of the one that called clone
  forked_ns INTEGER NOT NULL,
  stack INTEGER NOT NULL,         -- stacks.id; 0: none came with the fork, -1: forked before the trace
  ns_pid INTEGER NOT NULL,        -- pid in its innermost namespace
  forker_ns_pid INTEGER NOT NULL,
  exit_signal INTEGER NOT NULL,   -- what its death sends: 17 is SIGCHLD
  fork_comm TEXT NOT NULL,        -- the forker's name when it forked
  comm TEXT NOT NULL,
  execs INTEGER NOT NULL,
  threads INTEGER NOT NULL,       -- living ones
  exited_ns INTEGER NOT NULL,
  exit_code INTEGER,              -- wait status: exit status << 8 | signal | 0x80 for a core
  exit_parent INTEGER NOT NULL,   -- its parent when it died
  reaped_ns INTEGER NOT NULL,
  reaper INTEGER NOT NULL,        -- tasks.id of the process under which it was released
  reaped_by_call TEXT NOT NULL,   -- wait4, waitid; empty when no call was seen
  fate TEXT NOT NULL,             -- waited, zombie, orphaned, autoreaped, running, unknown
  root INTEGER NOT NULL           -- 1: a target
)""",
    "processes": """CREATE TABLE processes (
  id INTEGER PRIMARY KEY,
  comm TEXT NOT NULL,
  ns_pid INTEGER NOT NULL,
  alive INTEGER NOT NULL,
  reaped_others INTEGER NOT NULL
)""",
    "facts": """CREATE TABLE facts (        -- of parents and adopters: what a verdict rests on
  process INTEGER PRIMARY KEY,    -- tasks.id
  facts TEXT NOT NULL             -- JSON
)""",
    "wait_places": """CREATE TABLE wait_places (  -- where a process waits
  process INTEGER NOT NULL,       -- tasks.id
  stack INTEGER NOT NULL,         -- stacks.id
  target INTEGER NOT NULL,        -- -1: any child; a pid; a negated process group; -2147483648: else
  options INTEGER NOT NULL,       -- the call's
  PRIMARY KEY (process, stack)
) WITHOUT ROWID""",
    "libraries": """CREATE TABLE libraries (
  id INTEGER PRIMARY KEY,
  kind TEXT NOT NULL,
  name TEXT NOT NULL,
  version TEXT,
  file TEXT,
  line INTEGER,
  function TEXT,
  build_id TEXT
)""",
    "frames": """CREATE TABLE frames (
  id INTEGER PRIMARY KEY,
  function TEXT,
  file TEXT,
  line INTEGER,
  module TEXT,
  language TEXT NOT NULL,
  library INTEGER,                -- libraries.id
  "offset" INTEGER                -- within the module; unsigned, kept as its two's complement
)""",
    "stacks": """CREATE TABLE stacks (
  id INTEGER PRIMARY KEY,
  cut TEXT,                       -- why it ends early
  forked_by INTEGER,              -- libraries.id
  responsible INTEGER,            -- libraries.id
  read_late INTEGER NOT NULL      -- 1: its script's frames were read some milliseconds after the fork
)""",
    "stack_frames": """CREATE TABLE stack_frames (
  stack INTEGER NOT NULL,
  position INTEGER NOT NULL,      -- 0: the leaf
  frame INTEGER NOT NULL,
  PRIMARY KEY (stack, position)
) WITHOUT ROWID""",
    "stack_libraries": """CREATE TABLE stack_libraries (
  stack INTEGER NOT NULL,
  position INTEGER NOT NULL,      -- 0: nearest to the fork
  library INTEGER NOT NULL,
  PRIMARY KEY (stack, position)
) WITHOUT ROWID""",
    "stack_counts": """CREATE TABLE stack_counts (
  stack INTEGER PRIMARY KEY,      -- stacks.id, 0: no stack
  forks INTEGER NOT NULL,
  waited INTEGER NOT NULL,
  zombie INTEGER NOT NULL,
  orphaned INTEGER NOT NULL,
  autoreaped INTEGER NOT NULL,
  running INTEGER NOT NULL,
  unknown INTEGER NOT NULL
)""",
    "failed_forks": """CREATE TABLE failed_forks (
  stack INTEGER NOT NULL,
  errno INTEGER NOT NULL,
  thread INTEGER NOT NULL,        -- 1: it was to be a thread
  count INTEGER NOT NULL,
  "limit" TEXT,                   -- JSON of the limit that refused them, where it is known
  PRIMARY KEY (stack, errno, thread)
) WITHOUT ROWID""",
    "totals": """CREATE TABLE totals (
  name TEXT PRIMARY KEY,
  count INTEGER NOT NULL
) WITHOUT ROWID""",
    "latency": """CREATE TABLE latency (      -- of reaping: log-linear buckets, 16 steps an octave
  bucket INTEGER PRIMARY KEY,     -- shift << 5 | mantissa; -1: the maximum in ns
  count INTEGER NOT NULL
)""",
}

# The order of the columns of tasks, as attributes.  `.value` and `.real` make plain str and int of the enum
# and the bool: sqlite3 binds those without a search for an adapter.
TASK_FIELDS = (
    "id", "parent", "forker", "forked_ns", "stack", "ns_pid", "forker_ns_pid", "exit_signal", "fork_comm", "comm",
    "execs", "threads", "exited_ns", "exit_code", "exit_parent", "reaped_ns", "reaper", "reaped_by_call",
    "fate.value", "root.real",
)  # fmt: skip

# Old version to the step that makes the next one of it, on a copy in memory, when such a file is read.
UPGRADES: Mapping[int, Callable[[Connection], None]] = {}
