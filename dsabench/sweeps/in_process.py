"""Runs trained in this process, several of them by taking turns."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dsabench.engine import failures
from dsabench.engine.device import Execution
from dsabench.engine.sink import Update
from dsabench.engine.slot import Slots
from dsabench.errors import DsabenchError, StoreError
from dsabench.store import RunBusyError, RunRecord
from dsabench.sweeps.launcher import Busy, Crowded, Ended, Job, Outcome, Refused, TooManyWindows
from dsabench.sweeps.single_run import NoRoomBesideOthersError, Place, TooManyWindowsError, train_by_turns


class Here:
    """A launcher (`Launcher`) of one device."""

    def __init__(
        self, store: str | Path, execution: Execution, concurrency: int, notify: Callable[[str], None]
    ) -> None:
        """concurrency: runs that share the device."""
        self.place = Place(Path(store), execution, Slots(concurrency), notify)
        self.active: deque[tuple[Job, Generator[None, None, RunRecord]]] = deque()
        self.found_no_memory = False

    def has_room(self) -> bool:
        """As `Launcher` says."""
        return len(self.active) < self.place.slots.count

    def begin(self, job: Job, observe: Callable[[Update], None]) -> None:
        """As `Launcher` says."""
        if self.found_no_memory:
            gc.collect()  # reference cycles may still hold the run's memory
            self.found_no_memory = False
        self.active.append((job, train_by_turns(job, self.place, observe)))

    def turn(self) -> tuple[Job, Outcome] | None:
        """As `Launcher` says."""
        job, training = self.active.popleft()
        try:
            next(training)
        except StopIteration as end:
            record: RunRecord = end.value
            return job, Ended(record, lost=record.status == "failed" and failures.is_lost(self.place.execution))
        except RunBusyError:
            return job, Busy()
        except NoRoomBesideOthersError:
            self.found_no_memory = True
            return job, Crowded("found no memory beside other runs")
        except TooManyWindowsError as few:
            self.found_no_memory = True
            return job, TooManyWindows(few.fewer)
        except DsabenchError as error:
            return job, Refused(error)
        self.active.append((job, training))
        return None

    def one_at_a_time(self) -> None:
        """As `Launcher` says."""
        self.place = replace(self.place, slots=Slots())  # frees the memory of those before

    def close(self) -> None:
        """As `Launcher` says."""
        while self.active:
            with suppress(StoreError):  # the others are to be closed too
                self.active.popleft()[1].close()
