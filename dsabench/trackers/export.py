"""Export of a store's runs to a tracker, once or for as long as they train."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from dsabench.errors import StoreError
from dsabench.store import DamagedError, read_metrics, read_run
from dsabench.store.verification import damage
from dsabench.trackers.content import points_of, run_of
from dsabench.trackers.names import TARGETS, TRACKERS
from dsabench.trackers.tracker import Run, Session, Tracker, TrackerError

POLL_S = 1.0
"""Seconds between two looks at runs that train."""


@dataclass
class Outcome:
    """The outcome of an export, by run."""

    written: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    """Runs that the tracker has already as they are."""

    failed: dict[str, str] = field(default_factory=dict)
    """run_id -> the reason why it was not written, or not wholly."""


def known_target(name: str | None) -> str:
    """The name of a target. Raises TrackerError when none was given, or there is no such target."""
    if name is None:
        raise TrackerError(f"--to is missing; give one of: {', '.join(TARGETS)}")
    if name not in TARGETS:
        raise TrackerError(f"--to {name}: no such target; there are: {', '.join(TARGETS)}")
    return name


def open_tracker(name: str, out: Path, store: Path) -> Tracker:
    """The tracker `name`, which writes below the folder `out`; the folder is made.

    Raises:
        TrackerError: no such tracker, it is not installed, or `out` cannot be its folder.
    """
    if known_target(name) not in TRACKERS:
        raise TrackerError(f"--to {name}: no tracker; there are: {', '.join(TRACKERS)}")
    if missing := [package for package in TRACKERS[name].packages if importlib.util.find_spec(package) is None]:
        raise TrackerError(
            f"--to {name}: the package {missing[0]} is not installed; install it with\npip install 'dsabench[trackers]'"
        )
    make_folder(out, store)
    opened: Tracker = import_module(f"dsabench.trackers.{name}").open_at(out.resolve())
    return opened


def make_folder(out: Path, store: Path) -> None:
    """Make the folder `out` to write to. Raises TrackerError where it is inside the store or cannot be written."""
    inside, around = out.resolve(), store.resolve()
    if inside == around or around in inside.parents:
        raise TrackerError(f"--out {out}: inside the store {store}, which keeps its own files; name a place outside it")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackerError(f"--out {out}: {error.strerror}; name a folder that can be made and written") from error
    if not os.access(out, os.W_OK):
        raise TrackerError(f"--out {out}: cannot be written to; name another folder")


def export(
    store: Path,
    run_ids: Iterable[str],
    tracker: Tracker,
    *,
    follow: bool = False,
    told: Callable[[Run], None] = lambda run: None,
) -> Outcome:
    """Write these runs to `tracker`, one after another. Only reads the store.

    With `follow`, running runs are read again every POLL_S seconds and missing ones are waited for, until each has
    ended. When a resumed run drops records, the run is written anew without them. A run that cannot be read, or that
    the tracker does not take, is in the outcome's `failed`; the others go on. told: called with each run when all of it
    was written.
    """
    outcome = Outcome()
    waiting = {run_id: _Following(store, run_id, tracker) for run_id in dict.fromkeys(run_ids)}
    try:
        while waiting:
            for run_id, following in list(waiting.items()):
                try:
                    run = following.bring_up_to_date(follow)
                except StoreError as error:
                    if follow and not (store / run_id).exists():
                        continue  # it has not begun
                    outcome.failed[run_id] = str(error)
                except Exception as error:  # whatever a tracker raises: the other runs are written all the same
                    outcome.failed[run_id] = f"{type(error).__name__}: {error}"
                else:
                    if run is None:
                        continue
                    (outcome.same if following.same else outcome.written).append(run_id)
                    told(run)
                following.leave()
                del waiting[run_id]
            if waiting:
                time.sleep(POLL_S)
    finally:
        for following in waiting.values():
            following.leave()
        tracker.close()
    return outcome


class _Following:
    """One run, and the part of it that was written."""

    def __init__(self, store: Path, run_id: str, tracker: Tracker) -> None:
        self.store, self.run_id, self.tracker = store, run_id, tracker
        self.session: Session | None = None
        self.same = False
        self._name = ""
        self._written: list[str] = []

    def bring_up_to_date(self, follow: bool) -> Run | None:
        """Write what is new. Returns the run when it has ended or is not followed; None when more will come."""
        # The record first: nothing is recorded after it says `done`.
        record = read_run(self.store, self.run_id)
        records = read_metrics(self.store, self.run_id)
        if record.status != "running" and (wrong := damage(self.store / self.run_id, record)):
            raise DamagedError(f"damaged: {'; '.join(wrong)}", record)
        run = run_of(record)
        lines = [json.dumps(one) for one in records]
        if self.session is not None and not self._goes_on(run, lines):
            self.leave()
        if self.session is None:
            self.session = self.tracker.begin(run, points_of(records, run.started))
            self._name, self._written = run.name, []
            self.same = self.session is None
            if self.session is None:
                return run
        fresh: Sequence[dict[str, object]] = records[len(self._written) :]
        if fresh:
            self.session.log(points_of(fresh, run.started))
            self._written = lines
        if record.status == "running" and follow:
            return None
        session, self.session = self.session, None
        if record.status == "running":
            session.leave()
        else:
            session.end(run)
        return run

    def _goes_on(self, run: Run, lines: list[str]) -> bool:
        return run.name == self._name and lines[: len(self._written)] == self._written

    def leave(self) -> None:
        """Close the session, if there is one."""
        session, self.session = self.session, None
        if session is not None:
            with suppress(Exception):  # its error was told already, or nobody waits for it
                session.leave()
