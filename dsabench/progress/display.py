"""The progress of runs on stderr: bars in a terminal, plain lines elsewhere, nothing when it is to be quiet."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dsabench.progress.durations import duration
from dsabench.progress.time_left import AUDIT, Timetable

if TYPE_CHECKING:
    from dsabench.engine.sink import Update

LINE_SECONDS = 30.0
"""Time between lines without a terminal: a log shows that work goes on, and stays short."""

WIDE = 110
"""Columns from which names of runs are whole and bars long."""


class Display:
    """Shows the runs of a timetable, and as many more as are `done` already and pass by."""

    def __init__(
        self,
        timetable: Timetable = Timetable({}),  # noqa: B008 - frozen
        *,
        console: Console | None = None,
        done: int = 0,
        quiet: bool = False,
        lines: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """console: on stderr. lines: whether there are lines where the console is no terminal."""
        if console is None:
            console = Console(stderr=True, highlight=False, force_terminal=False if os.environ.get("CI") else None)
        self.console, self.clock = console, clock
        self.live = console.is_terminal and not quiet
        self.quiet = quiet or not (self.live or lines)
        self.done = self.ended = done
        self.began = self.line_at = clock()
        self.numbers: dict[str, int] = {}
        self.labels: dict[str, str] = {}
        self.updates: dict[str, Update | None] = {}
        """The last update of each run under way."""
        self.part: tuple[str, float] | None = None
        """What is done before the first run, and its share."""
        self.shown: set[str] = set()
        self.left_at, self.left = -1.0, 0.0
        self.lock = threading.RLock()
        """Of all above: a thread draws the screen. Nothing is printed while it is held, because printing waits for the
        thread."""
        self.expect(timetable)
        self.screen = Live(
            console=console, get_renderable=self._rows, refresh_per_second=4, transient=True, auto_refresh=self.live
        )

    def expect(self, timetable: Timetable) -> None:
        """Show these runs, where they were not known at first."""
        self.total = self.done + len(timetable.runs)
        self.time_left = timetable.begin(self.clock)

    def __enter__(self) -> Self:
        if self.live:
            self.screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.screen.stop()

    @property
    def seconds(self) -> float:
        """Since the display was made."""
        return self.clock() - self.began

    def note(self, message: str) -> None:
        """One line that stays."""
        if not self.quiet:
            # Words are kept whole on a terminal, and lines elsewhere.
            self.console.print(message, markup=False, soft_wrap=not self.console.is_terminal)

    def note_once(self, message: str) -> None:
        """`note`, unless the same line was shown before: every run of a sweep says the same of its data."""
        if message not in self.shown:
            self.shown.add(message)
            self.note(message)

    def counted(self, part: str, share: float) -> None:
        """A part of what comes before the first run is under way, or done."""
        with self.lock:
            self.part = None if share >= 1.0 else (part, share)
            self.time_left.prepare(part, share, planned=part == AUDIT)
        if 0.0 < share < 1.0:
            self._line(f"{part}  {share:.0%}")

    def start(self, name: str, label: str | None = None) -> Callable[[Update], None]:
        """Show a run from now on; returns the observer of its updates. Several runs may be shown at a time. A run that
        is shown already starts anew."""
        with self.lock:
            self.part = None
            self.time_left.start(name)
            number = self.numbers.setdefault(name, len(self.numbers) + 1)
            self.labels[name] = label or name
            self.updates[name] = None

        def observe(update: Update) -> None:
            with self.lock:
                self.updates[name] = update
                self.time_left.update(name, update.step, update.evaluated)
            place = f"[{min(number, self.total)}/{self.total}] " if self.total > 1 else ""
            details = "  ".join([f"step {update.step}/{update.steps}", *_details(update)])
            self._line(f"{place}{self.labels[name]}  {details}")

        return observe

    def finish(self, name: str, outcome: str) -> None:
        """Print the run's outcome as a line that stays."""
        with self.lock:
            self.updates.pop(name, None)
            self.time_left.end(name)
            if name in self.time_left.parts:  # one that is done already passes by, and is counted
                self.ended = min(self.total, self.ended + 1)
            self.left_at = -1.0
        number = self.numbers.get(name)
        place = f"[{min(number, self.total)}/{self.total}] " if number and self.total > 1 else ""
        left = self._left() if self.total > 1 else ""
        self.note(f"{place}{self.labels.get(name, name)}  {outcome}{left and f'  ({left})'}")
        self.line_at = self.clock()

    def _line(self, text: str) -> None:
        """Without a terminal, a line now and then."""
        if not self.live and not self.quiet and self.clock() - self.line_at > LINE_SECONDS:
            self.line_at = self.clock()
            left = self._left()
            self.note(f"{text}{left and f'  ({left})'}")

    def _left(self) -> str:
        """'about 12 min left', the same in bars and lines; empty when nothing is."""
        now = self.clock()
        with self.lock:
            if now - self.left_at >= 1.0:  # a sweep of thousands of runs is not reckoned at every look
                self.left_at, self.left = now, self.time_left.left()
        seconds = self.left - (now - self.left_at)
        return f"about {duration(max(1.0, seconds))} left" if self.left > 0.0 else ""

    def _rows(self) -> RenderableType:
        """What a terminal shows: a row for the sweep, for what is prepared, and for each run under way."""
        with self.lock:
            return _grid(self._parts(self.console.width), self.console.width)

    def _parts(self, width: int) -> list[tuple[str, float, str, list[str]]]:
        rows: list[tuple[str, float, str, list[str]]] = []
        if self.total > 1:
            rows.append(("sweep", self.time_left.share(), f"{self.ended}/{self.total} runs", [self._left()]))
        if self.part is not None:
            rows.append((self.part[0], self.part[1], f"{self.part[1]:.0%}", []))
        for name, update in self.updates.items():
            details = ["starting"] if update is None else _details(update)
            count = "" if update is None else f"{update.step}/{update.steps}"
            label = self.labels[name] if width >= WIDE or self.total == 1 else self.labels[name].rpartition("-")[0]
            left = [self._left()] if self.total == 1 else []
            rows.append((label or self.labels[name], self.time_left.share(name), count, [*left, *details]))
        return rows


def _details(update: Update) -> list[str]:
    """What is said of a run beside its step, what matters most first."""
    found = []
    if update.evaluated is not None and update.evaluated < 1.0:
        found.append(f"evaluating {update.evaluated:.0%}")
    if update.loss is not None:
        found.append(f"loss {update.loss:.3f}")
    if update.val_loss is not None:
        found.append(f"val {update.val_loss:.3f}")
    if update.tokens_per_second is not None:
        found.append(f"{update.tokens_per_second:,.0f} tok/s")
    return found


def _grid(rows: Sequence[tuple[str, float, str, list[str]]], width: int) -> Table:
    """(label, share, count, details) as rows with a bar; details that do not fit whole are left out."""
    bar = 24 if width >= WIDE else 12
    names = max((len(row[0]) for row in rows), default=0)
    counts = max((len(row[2]) for row in rows), default=0)
    names = min(names, max(8, width - bar - counts - 8))
    room = width - names - bar - counts - 7  # two columns between parts, and the last one stays free
    grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    for columns, justify in ((names, "left"), (bar, "left"), (counts, "right"), (max(1, room), "left")):
        grid.add_column(width=columns, no_wrap=True, justify="right" if justify == "right" else "left")
    for label, share, count, details in rows:
        said = ""
        for detail in filter(None, details):
            longer = f"{said}  {detail}" if said else detail
            said = longer if len(longer) <= room else said
        grid.add_row(
            Text(label, overflow="ellipsis"),
            ProgressBar(total=1.0, completed=share, width=bar),
            Text(count),
            Text(said),
        )
    return grid
