"""A kernel small enough to be sure of: processes that fork, die, wait and are reparented, the records that the BPF side
would send of it, and the truth of each child.

Its target is a process with descendants; an init that nobody traces adopts what no subreaper does.  Releases are
recorded late, as by RCU.  Pids are few, and reused at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from records_of import INIT, START, START_TICKS, TARGET, Records

from tracer.lifecycle.graph import Seen
from tracer.lifecycle.task import NS_PER_TICK, Fate, pid_of, task_id
from tracer.records import RawEvent

PIDS = range(200, 212)
RCU_STEPS = 3
OPERATIONS = (
    "fork", "fork", "fork", "clone_parent", "exec", "exit", "exit", "exit", "wait", "wait", "wait_unseen", "ignore",
    "subreaper",
)  # fmt: skip
Step = tuple[str, int]  # an operation, and a number that picks who does it


@dataclass
class Process:
    id: int
    parent: Process | None  # now
    forked_by_parent: int  # identity of the one who must wait
    ignores: bool = False
    subreaper: bool = False
    dead: bool = False
    fate: Fate = Fate.RUNNING


@dataclass
class Kernel:
    """sent: records in order, those of releases late.  truth: every child ever forked, by identity."""

    light: bool = False  # no records of wait calls
    init_reaps: bool = True
    records: Records = field(default_factory=Records)
    truth: dict[int, Process] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.init = Process(INIT, None, 0)
        self.target = Process(TARGET, self.init, INIT)
        self._table: dict[int, Process] = {100: self.target}  # by pid; dead ones until they are released
        self._pending: list[tuple[int, int, int]] = []  # releases not recorded yet: step, task, parent
        self._step = 0

    @property
    def sent(self) -> list[RawEvent]:
        return self.records.events

    def run(self, steps: Sequence[Step]) -> None:
        for operation, pick in steps:
            self._step += 1
            self.records.now = START + (100 + self._step) * NS_PER_TICK  # a pid is not reused within one tick
            living = [process for process in self._table.values() if not process.dead]
            if living:
                getattr(self, f"_{operation}")(living[pick % len(living)], pick)
            self._record_releases(self._step - RCU_STEPS)

    def settle(self) -> None:
        """The records of all that happened are sent."""
        self._record_releases(self._step)
        self.records.now += NS_PER_TICK

    def seen(self) -> dict[int, Seen]:
        """/proc now."""
        return {
            process.id: Seen(
                process.id,
                process.parent.id if process.parent else 0,
                "sim",
                pid_of(process.id),
                process.dead,
            )
            for process in self._table.values()
        }

    # --- what processes do --------------------------------------------------------------------------------------

    def _fork(self, forker: Process, _: int, parent: Process | None = None) -> None:
        pid = next((pid for pid in PIDS if pid not in self._table), None)
        parent = parent or forker
        if pid is None or parent is self.init:
            return
        ticks = self.records.now // NS_PER_TICK
        child = Process(task_id(pid, ticks), parent, parent.id)
        assert ticks > START_TICKS
        self._table[pid] = self.truth[child.id] = child
        self.records.fork(child.id, parent.id, forker=forker.id)

    def _clone_parent(self, forker: Process, pick: int) -> None:
        self._fork(forker, pick, forker.parent)

    def _exec(self, process: Process, _: int) -> None:
        self.records.exec(process.id)

    def _ignore(self, process: Process, pick: int) -> None:
        process.ignores = bool(pick & 1)

    def _subreaper(self, process: Process, _: int) -> None:
        process.subreaper = True

    def _exit(self, process: Process, pick: int) -> None:
        parent = process.parent
        assert parent is not None
        autoreap = parent.ignores
        self.records.exit(process.id, parent.id, status=pick % 256 << 8, autoreap=autoreap)
        process.dead = True
        if parent.id != process.forked_by_parent:
            process.fate = Fate.ORPHANED
        else:
            process.fate = Fate.AUTOREAPED if autoreap else Fate.ZOMBIE
        self._leave_children(process)
        if autoreap or (parent is self.init and self.init_reaps):
            self._release(process)

    def _leave_children(self, process: Process) -> None:
        adopter = process.parent
        while adopter is not None and adopter is not self.init and (adopter.dead or not adopter.subreaper):
            adopter = adopter.parent
        for child in list(self._table.values()):
            if child.parent is process:
                child.parent = adopter or self.init
                if child.dead and (child.parent.ignores or (child.parent is self.init and self.init_reaps)):
                    self._release(child)

    def _wait(self, process: Process, pick: int, told: bool = True) -> None:
        zombies = [child for child in self._table.values() if child.dead and child.parent is process]
        if not zombies:
            return
        child = zombies[pick % len(zombies)]
        if child.forked_by_parent == process.id:
            child.fate = Fate.WAITED
        if told and not self.light:
            (self.records.wait if pick & 1 else self.records.waitid)(child.id, process.id)
        self._release(child)

    def _wait_unseen(self, process: Process, pick: int) -> None:
        """By io_uring."""
        self._wait(process, pick, told=False)

    # --- release ------------------------------------------------------------------------------------------------

    def _release(self, process: Process) -> None:
        assert process.parent is not None
        del self._table[pid_of(process.id)]
        self._pending.append((self._step, process.id, process.parent.id))

    def _record_releases(self, until_step: int) -> None:
        due = [entry for entry in self._pending if entry[0] <= until_step]
        self._pending = [entry for entry in self._pending if entry[0] > until_step]
        for _, task, parent in due:
            self.records.release(task, parent)
