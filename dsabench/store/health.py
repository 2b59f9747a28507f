"""The health of a store: runs, sweeps and caches compared with what was written, every byte, and the way out.

Only reads. A run that is being written is not looked at: its files change. What a kill leaves behind is no damage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from dsabench.errors import StoreError
from dsabench.store import atomic_folder, curves, index, remedies, seals
from dsabench.store.files import is_held
from dsabench.store.layout import LOCK, METRICS, RECORD, existing_store, run_folder
from dsabench.store.reader import read_raw, run_names
from dsabench.store.records import DamagedError, RunRecord
from dsabench.store.removal import GONE
from dsabench.store.sealed_cache import read_sealed
from dsabench.store.sweep_records import readable_sweeps
from dsabench.store.table import row_of
from dsabench.store.verification import checkpoint_damage

State = Literal["sealed", "unsealed", "damaged", "running"]

STATES: tuple[State, ...] = ("sealed", "unsealed", "damaged", "running")
"""sealed: all of it is what was written. unsealed: stored before 0.3, and nothing contradicts itself. damaged: it is
not what was written, contradicts itself, or cannot be read. running: a process writes it, and it is not looked at."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class RunHealth(_Document):
    """One run."""

    run_id: str
    """The run."""

    state: State
    """sealed: all of it is what was written. unsealed: stored before 0.3, and nothing contradicts itself. damaged: it
    is not what was written, contradicts itself, or cannot be read. running: a process writes it; not looked at."""

    problems: list[str] = []
    """What is wrong with its record and its metrics: it is never judged."""

    checkpoint: list[str] = []
    """What is wrong with its checkpoints; its results stand when nothing else is wrong."""

    advice: str = ""
    """What to do."""

    commands: list[str] = []
    """The commands that do it, in order."""


class SweepHealth(_Document):
    """One sweep's record that is damaged."""

    problem: str
    """What is wrong with it."""

    advice: str
    """What to do."""


class StoreHealth(_Document):
    """What `dsabench runs verify --json` prints."""

    schema_version: Literal[1] = 1
    """Version of this document."""

    store: str
    """The store."""

    ok: bool
    """Whether no run and no sweep is damaged; else the command ends with exit code 1."""

    counts: dict[str, int]
    """Runs by their state."""

    bytes: int
    """Size of the files that were compared."""

    runs: list[RunHealth]
    """The runs that were looked at."""

    sweeps: list[SweepHealth]
    """Damaged records of sweeps; empty when runs were named."""

    notes: list[str]
    """What is no damage: a cache that is made anew, files that a kill left behind. None when runs were named."""


def check_store(
    store: str | Path, run_ids: Iterable[str] | None = None, told: Callable[[int, int, int], None] = lambda *_: None
) -> StoreHealth:
    """Compare these runs with what was written; without `run_ids` all of them, and sweeps and caches too.

    told: called before each run with how many were looked at, how many there are, and bytes so far.

    Raises:
        StoreError: there is no such store or run, or a newer dsabench wrote it.
    """
    path = existing_store(store)
    names = run_names(path) if run_ids is None else list(dict.fromkeys(run_ids))
    records, damaged_sweeps = readable_sweeps(path)
    found, size = [], 0
    for i, name in enumerate(names):
        told(i, len(names), size)
        health, read = _run_health(run_folder(path, name), remedies.Remedies(path, records))
        found.append(health)
        size += read
    sweeps = [SweepHealth(problem=problem, advice=remedies.OF_A_SWEEP) for problem in damaged_sweeps]
    sweeps = sweeps if run_ids is None else []
    counts = {state: sum(run.state == state for run in found) for state in STATES}
    return StoreHealth(
        store=str(store),
        ok=not counts["damaged"] and not sweeps,
        counts=counts,
        bytes=size,
        runs=found,
        sweeps=sweeps,
        notes=[*_cache_notes(path), *_leftover_notes(path)] if run_ids is None else [],
    )


def _run_health(folder: Path, remedy: remedies.Remedies) -> tuple[RunHealth, int]:
    """The health of the run in `folder`, and the size of its files that were compared."""
    name = folder.name
    row, may_change = row_of(folder)
    if may_change and is_held(folder / LOCK):
        return RunHealth(run_id=name, state="running"), 0
    record, is_whole = _record(folder)
    problems = []
    if row["status"] in ("damaged", "unreadable"):
        problems = [str(row["error"]).removeprefix(f"run {name}: ")]
    checkpoint = [] if record is None else _checkpoint_problems(folder, record)
    if problems or checkpoint:
        advice, commands = remedy.of(name, record, is_whole, str(row["status"]), "".join(problems))
        problems = [problem.replace(f"{folder}/", "") for problem in problems]
        health = RunHealth(
            run_id=name, state="damaged", problems=problems, checkpoint=checkpoint, advice=advice, commands=commands
        )
    else:
        health = RunHealth(run_id=name, state="sealed" if row.get("seal") == "sealed" else "unsealed")
    return health, _size(folder)


def _record(folder: Path) -> tuple[RunRecord | None, bool]:
    """The run's record, if it can be read, and whether it is what was written."""
    try:
        return read_raw(folder), True
    except DamagedError as error:
        return error.record, False
    except StoreError:
        return None, False


def _checkpoint_problems(folder: Path, record: RunRecord) -> list[str]:
    found = checkpoint_damage(folder, record)
    for before in atomic_folder.candidates(folder)[1:]:
        found += seals.checkpoint_problems(before)
    return [problem.replace(f"{folder}/", "") for problem in found]


def _size(folder: Path) -> int:
    paths = [folder / RECORD, folder / METRICS, *(p for c in atomic_folder.candidates(folder) for p in c.iterdir())]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _cache_notes(store: Path) -> list[str]:
    damaged = []
    for seal, names in ((index.SEAL, index.FILES), (curves.SEAL, (curves.CURVES,))):
        for name in names:
            if (store / name).exists():
                try:
                    read_sealed(store, seal, name)
                except (OSError, ValueError):
                    damaged.append(name)
    return [f"{name} is not what was written: a cache, which the next reader makes anew" for name in damaged]


def _leftover_notes(store: Path) -> list[str]:
    """What kills left behind, where no process is writing."""
    gone = [path.name for path in store.glob(f"{GONE}*")]
    notes = [f"{name} is left of a run that was removed; the next `dsabench runs rm` deletes it" for name in gone]
    for name in run_names(store):
        folder = store / name
        left = sorted(p.name for p in (*folder.glob(".*.tmp"), *folder.glob("checkpoint.new")))
        if left and not is_held(folder / LOCK):
            notes.append(f"{name}/{left[0]} is left of a process that was killed; it is never read")
    return notes
